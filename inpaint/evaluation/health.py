"""How a GAN fares, read from a run's logged numbers: who wins, whether gradients flow, whether anything broke."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Rows = Sequence[Mapping[str, float]]
Series = dict[str, list[tuple[float, float]]]
RECENT = 0.2  # share of the logged steps that "now" means


@dataclass(frozen=True)
class Health:
    """What the panel shows.

    Attributes:
        plots: title → label → (step, value).
        readings: name → value and its meaning, for the last fifth of the run.
        alarms: sentences about what is wrong; empty when nothing stands out.
    """

    plots: dict[str, Series]
    readings: dict[str, str]
    alarms: list[str]


def series_of(rows: Rows, names: Sequence[str]) -> Series:
    """The logged values of these names by step."""
    found = {name: [(float(row["step"]), float(row[name])) for row in rows if name in row] for name in names}
    return {name: points for name, points in found.items() if points}


def read_health(rows: Rows) -> Health:
    """The panel of a run's history.

    Args:
        rows: logged numbers, `update/term` by name, with their `step`.
    """
    names = sorted({name for row in rows for name in row if name != "step"})
    judges = sorted({name.split("/")[0] for name in names if name.split("/")[0].endswith("discriminator")})
    terms = [n for n in names if n.split("/")[0] in judges and n.split("/")[-1] not in ("loss", "learning_rate")]
    adversarial = [n for n in names if n.endswith("/adversarial") or "/adversarial_" in n]
    gradients = [n for n in names if "gradient" in n and "matching" not in n]
    plots = {
        "discriminator: real and filled": series_of(rows, [n for n in terms if "gradient" not in n]),
        "generator: adversarial term": series_of(rows, adversarial),
        "length of gradients": series_of(rows, gradients),
    }
    readings: dict[str, str] = {}
    alarms = _broken(rows)
    for judge in judges:
        readings |= _balance(rows, judge, alarms)
    for name in gradients:
        _gradient(rows, name, readings, alarms)
    return Health({title: found for title, found in plots.items() if found}, readings, alarms)


def _balance(rows: Rows, judge: str, alarms: list[str]) -> dict[str, str]:
    """The hinge terms of a discriminator: both 1 when it cannot tell, both 0 when it always can."""
    real, filled = _recent(rows, f"{judge}/real"), _recent(rows, f"{judge}/filled")
    if real is None or filled is None:
        return {}
    total = real + filled
    if total < 0.1:
        alarms.append(f"{judge} tells every fill from the truth (its terms sum to {total:.3g})")
    return {f"{judge}, real + filled": f"{total:.3g} (0: it always tells fill from truth; 2 under hinge: it cannot)"}


def _gradient(rows: Rows, name: str, readings: dict[str, str], alarms: list[str]) -> None:
    value = _recent(rows, name)
    if value is None:
        return
    readings[name] = f"{value:.3g}"
    if value == 0:
        alarms.append(f"{name} is 0: that network does not learn")


def _broken(rows: Rows) -> list[str]:
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                return [f"{name} is {value} at step {row['step']:g}"]
    return []


def _recent(rows: Rows, name: str) -> float | None:
    values = [row[name] for row in rows if name in row and math.isfinite(row[name])]
    last = values[-max(1, round(RECENT * len(values))) :]
    return sum(last) / len(last) if last else None
