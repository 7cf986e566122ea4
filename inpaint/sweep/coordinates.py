"""Parallel coordinates: one line per point over the axes of its settings and its score, as SVG."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from inpaint.config.sweep import SweepConfig
from inpaint.evaluation import html
from inpaint.sweep.analysis import axis_of, ranked
from inpaint.sweep.trials import Record


def coordinates(sweep: SweepConfig, records: Mapping[str, Record]) -> str:
    """One line per point over the axes of its settings and its mean score, the best in full colour."""
    paths = list(sweep.vary)
    points = [p for p in ranked(records, sweep) if all(path in p.values for path in paths)]
    if len(points) < 2 or not paths:
        return ""
    scores = [p.metrics[sweep.metric] for p in points]
    low, high = min(scores), max(scores)
    width, height, names = 720, 300, [*paths, sweep.metric]
    places = np.linspace(60, width - 60, len(names))
    parts = []
    for position, point in reversed(list(enumerate(points))):
        shares = [axis_of(sweep, path, point.values[path]) for path in paths]
        shares.append((point.metrics[sweep.metric] - low) / ((high - low) or 1.0))
        heights = [height - 40 - share * (height - 80) for share in shares]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, heights, strict=True))
        stroke = f'stroke="{html.COLOURS[0]}" stroke-opacity="{1 - 0.85 * position / len(points):.2f}"'
        parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
    for x, name in zip(places, names, strict=True):
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="40" y2="{height - 40}" stroke="#8c8c8c"/>')
        label = html.text(name.rpartition(".")[2])
        parts.append(f'<text x="{x:.1f}" y="{height - 18}" font-size="11" text-anchor="middle">{label}</text>')
    frame = f'<svg width="{width}" height="{height}" role="img" font-family="system-ui">'
    return f"<figure>{frame}{''.join(parts)}</svg></figure>"
