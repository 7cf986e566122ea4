"""The conditions of a score. Two numbers whose conditions differ are not laid side by side without saying so."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from inpaint import __version__
from inpaint.errors import EvaluationError

_SCORING_CODE = (
    (
        "inpaint.evaluation",
        (
            "distributions",
            "faces",
            "holes",
            "inception",
            "metrics",
            "pairs",
            "perceptual",
            "pictures",
            "plan",
            "protocols",
            "scoring",
            "statistics",
            "sums",
            "sums_on_cpu",
            "windows",
            "windows_on_cpu",
        ),
    ),
    ("inpaint.masks", ("files", "ratios", "segments", "shapes", "strokes")),
)
_FILLING_CODE = {
    "inpaint": ("imaging.py",),
    "inpaint.evaluation": ("baselines.py", "subjects.py", "telea.py"),
    "inpaint.inference": ("filling.py", "progressive.py"),
    "inpaint.methods": (),
    "inpaint.nn": (),
}  # modules of each package, all where none is named


@dataclass(frozen=True)
class Stamp:
    """What was scored how.

    Attributes:
        code: `version` of the package, and `scoring`: digest of the modules that make the numbers.
        seeds: of image choice and pairs, and of the bootstrap.
        protocols: per protocol: `definition` digest, `size`, `images` (digest of names and pixels), `masks`, `pairs`,
            `n` per row, `metrics` (digests of the weights behind columns), `mask_kind`.
    """

    code: Mapping[str, str]
    seeds: Mapping[str, int]
    protocols: Mapping[str, Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        protocols = {name: dict(conditions) for name, conditions in self.protocols.items()}
        return {"code": dict(self.code), "seeds": dict(self.seeds), "protocols": protocols}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Stamp:
        """The inverse of `to_dict`."""
        return cls(values["code"], values["seeds"], values["protocols"])

    def differences(self, other: Stamp, protocol: str) -> list[str]:
        """What differs between two stamps for one protocol, as sentences; empty when numbers may be compared."""
        here, there = _flat(self, protocol), _flat(other, protocol)
        return [
            f"{name}: {_short(here.get(name))} and {_short(there.get(name))}"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]


def scoring_code() -> dict[str, str]:
    """The code's part of a stamp. Changes to tables, reports and commands leave `scoring` as it is."""
    digest = hashlib.sha256()
    for package, modules in _SCORING_CODE:
        for module in modules:
            digest.update((resources.files(package) / f"{module}.py").read_bytes())
    return {"version": __version__, "scoring": digest.hexdigest()}


@cache
def filling_code() -> str:
    """Digest of the modules that make the fills. No part of a stamp: a fill is scored alike whatever made it."""
    digest = hashlib.sha256()
    for package, modules in _FILLING_CODE.items():
        folder = resources.files(package)
        names = modules or sorted(file.name for file in folder.iterdir() if file.name.endswith(".py"))
        for name in names:
            digest.update(f"{package} {name}\n".encode() + (folder / name).read_bytes())
    return digest.hexdigest()


def images_sha(truths: Mapping[str, str]) -> str:
    """Digest of an image list: names, and digests of the pixels that were scored."""
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(truths.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def check_comparable(ours: Stamp, theirs: Stamp, protocol: str) -> None:
    """Refuse to compare results of different conditions.

    Raises:
        EvaluationError: with every difference named.
    """
    if found := ours.differences(theirs, protocol):
        raise EvaluationError(
            f"{protocol}: these results cannot be compared; they differ in {'; '.join(found)}. "
            "Score both under the same conditions, or give --force, which marks the table"
        )


def _flat(stamp: Stamp, protocol: str) -> dict[str, Any]:
    if protocol not in stamp.protocols:
        return {"protocol": None}
    values = dict(stamp.protocols[protocol])
    rows, metrics = values.pop("n", {}), values.pop("metrics", {})
    return {
        "protocol": protocol,
        "scoring code": stamp.code["scoring"],
        **{f"seed of {name}": seed for name, seed in stamp.seeds.items()},
        **values,
        **{f"n of {row}": n for row, n in rows.items()},
        **{f"weights of {name}": digest for name, digest in metrics.items()},
    }


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:12] if len(text) == 64 else text
