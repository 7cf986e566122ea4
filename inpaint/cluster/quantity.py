"""Kubernetes quantities (`8Gi`, `500m`) as numbers, so that sizes can be compared before a server sees them."""

from __future__ import annotations

import re

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_FACTOR = {
    None: 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip


def quantity(text: str) -> float:
    """The number a Kubernetes quantity stands for: bytes for memory, cores for CPU.

    Raises:
        ValueError: not a quantity; `2GiB` is the usual slip.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a Kubernetes quantity; write 8Gi, 500Mi or 500m")
    return float(match[1]) * _FACTOR[match[2]]


def cores(count: float) -> str:
    """CPU cores as Kubernetes writes them: `4`, `500m`."""
    return str(int(count)) if count == int(count) else f"{round(count * 1000)}m"
