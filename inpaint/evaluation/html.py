"""Pieces of a page that opens from disk: frame, table, plot, slider. Nothing is fetched from anywhere.

Every piece is a string of HTML; text that comes from outside goes through `text`.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from string import Template

import numpy as np
from PIL import Image

COLOURS = ("#1f6f8b", "#c05621", "#4c7a34", "#7b4aa0", "#b0305c", "#8a7a1c", "#34506e", "#8c8c8c", "#d4a017", "#3aa6a0")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Section:
    """A part of a page: its heading and its HTML."""

    title: str
    body: str


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """A whole page, with its style and script inside."""
    anchors = [f"part-{number}" for number in range(len(sections))]
    parts = [
        f'<section id="{anchor}"><h2>{text(section.title)}</h2>{section.body}</section>'
        for anchor, section in zip(anchors, sections, strict=True)
    ]
    links = [
        f'<a href="#{anchor}">{text(section.title)}</a>' for anchor, section in zip(anchors, sections, strict=True)
    ]
    return Template(_template("page.html")).substitute(
        title=text(title),
        subtitle=text(subtitle),
        links="".join(links),
        sections="".join(parts),
        style=_template("page.css"),
        script=_template("page.js"),
    )


def text(value: object) -> str:
    """Escaped."""
    return html.escape(str(value))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are HTML (`text` escapes), the first column is a name."""
    head = "".join(f"<th>{text(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: Mapping[str, object]) -> str:
    """A table of names and values."""
    cells = [f'<tr><td>{text(name)}</td><td class="text">{text(value)}</td></tr>' for name, value in pairs.items()]
    rows = "".join(cells)
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def notes(sentences: Sequence[str]) -> str:
    """A list of remarks; empty when there is none."""
    return f'<ul class="notes">{"".join(f"<li>{text(s)}</li>" for s in sentences)}</ul>' if sentences else ""


def folded(summary: str, content: str) -> str:
    """Preformatted text behind a click."""
    return f"<details><summary>{text(summary)}</summary><pre>{text(content)}</pre></details>"


def plots(figures: Sequence[str]) -> str:
    """Plots side by side."""
    return f'<div class="plots">{"".join(figures)}</div>'


def line_plot(title: str, series: Mapping[str, Points], *, width: int = 520, height: int = 250) -> str:
    """Lines over a common x as an inline SVG.

    Args:
        title: above it.
        series: label → (x, y), in order of x; points that are not finite break their line.
        width, height: pixels.
    """
    drawn = {name: pieces for name, points in series.items() if (pieces := _unbroken(points))}
    if not drawn:
        return ""
    frame = _Frame.around([p for pieces in drawn.values() for piece in pieces for p in piece], width, height)
    lines, legend = [], []
    across = max(1, min(4, (width - 60) // (7 * max(map(len, drawn)) + 24)))
    for place, (name, pieces) in enumerate(drawn.items()):
        colour = COLOURS[place % len(COLOURS)]
        lines += [frame.line(piece, colour) for piece in pieces]
        left, top = 60 + (width - 60) // across * (place % across), height + 14 + 15 * (place // across)
        legend.append(f'<rect x="{left}" y="{top - 8}" width="9" height="9" fill="{colour}"/>')
        legend.append(f'<text x="{left + 13}" y="{top}" font-size="11">{text(name)}</text>')
    total = height + 22 + 15 * ((len(drawn) - 1) // across)
    return (
        f'<figure><svg width="{width}" height="{total}" viewBox="0 0 {width} {total}" role="img" '
        f'font-family="system-ui, sans-serif" fill="#1d2733"><text x="60" y="16" font-size="13" '
        f'font-weight="600">{text(title)}</text>{frame.axes()}{"".join(lines)}{"".join(legend)}</svg></figure>'
    )


def picture(pixels: np.ndarray) -> str:
    """An image as a data URI. Args: pixels, uint8 [H, W, 3]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def slider(layers: Mapping[str, np.ndarray], caption: str) -> str:
    """Pictures over one another with a slider that wipes from the first to the last.

    Args:
        layers: label → uint8 [H, W, 3], all of one size.
        caption: below it.
    """
    images = "".join(f'<img alt="{text(label)}" src="{picture(pixels)}">' for label, pixels in layers.items())
    ends = "".join(f"<span>{text(label)}</span>" for label in layers)
    last = len(layers) - 1
    return (
        f'<figure class="slider"><div class="stack">{images}</div>'
        f'<input type="range" min="0" max="{last}" step="0.01" value="1" aria-label="{text(caption)}">'
        f'<div class="ends">{ends}</div><figcaption>{text(caption)}</figcaption></figure>'
    )


def cards(pieces: Sequence[str]) -> str:
    """Sliders side by side."""
    return f'<div class="cards">{"".join(pieces)}</div>'


@dataclass(frozen=True)
class _Frame:
    """The axes of a plot: ranges of values, and where they lie in pixels."""

    left: float
    right: float
    low: float
    high: float
    width: int
    height: int

    @classmethod
    def around(cls, points: Points, width: int, height: int) -> _Frame:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        low, high = min(ys), max(ys)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, low - margin, high + margin, width, height)

    def x(self, value: float) -> float:
        return 60 + (value - self.left) / (self.right - self.left) * (self.width - 74)

    def y(self, value: float) -> float:
        return self.height - 26 - (value - self.low) / (self.high - self.low) * (self.height - 54)

    def line(self, points: Points, colour: str) -> str:
        """A line through its points; a point alone is a dot."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        drawn = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        if len(points) > 1:
            return drawn
        x, y = points[0]
        return f'{drawn}<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="2.5" fill="{colour}"/>'

    def axes(self) -> str:
        marks = []
        for value in _ticks(self.low, self.high, 5):
            y = self.y(value)
            marks.append(f'<line x1="60" x2="{self.width - 14}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e8ec"/>')
            marks.append(f'<text x="54" y="{y + 4:.1f}" font-size="11" text-anchor="end">{value:.4g}</text>')
        for value in _ticks(self.left, self.right, 6):
            x = self.x(value)
            place = f'x="{x:.1f}" y="{self.height - 8}"'
            marks.append(f'<text {place} font-size="11" text-anchor="middle">{value:g}</text>')
        return "".join(marks)


def _unbroken(points: Points) -> list[Points]:
    """The stretches of finite points between those that are not."""
    stretches = groupby(points, key=lambda point: math.isfinite(point[1]))
    return [list(stretch) for finite, stretch in stretches if finite]


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers inside a range, about `count` of them."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def _template(name: str) -> str:
    return (resources.files("inpaint.evaluation") / "templates" / name).read_text()
