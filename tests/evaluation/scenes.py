"""Photographs and holes that the tests of this folder share."""

from __future__ import annotations

import hashlib

import numpy as np

from inpaint.evaluation.holes import hole_set
from inpaint.evaluation.pictures import Pictures


def photographs(count=3, size=64, seed=0):
    """Smooth pictures of `size` pixels."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size] / size
    arrays = {}
    for i in range(count):
        a, b, c = rng.uniform(1, 5, 3)
        planes = [np.sin(a * rows + i), np.cos(b * columns), np.sin(c * (rows + columns))]
        arrays[f"photo-{i:02d}"] = np.round(127.5 + 120 * np.stack(planes, axis=2)).astype(np.uint8)
    fingerprint = hashlib.sha256(b"".join(arrays.values())).hexdigest()
    return Pictures(
        "photographs", tuple(arrays), arrays.__getitem__, fingerprint, lambda name: arrays[name].shape[:2]
    )


def rectangles(ratios, size=64):
    """Masks whose holes are the top rows: exact ratios that are multiples of 1 / size."""
    masks = {}
    for ratio in ratios:
        mask = np.zeros((size, size), np.uint8)
        mask[: round(ratio * size)] = 1
        masks[f"rows-{round(ratio * size):02d}"] = mask
    return hole_set("rows", "top rows", masks)
