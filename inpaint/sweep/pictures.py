"""The same held-out images filled by each trial of the front, as in Fig. 5 of the ISNet paper."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from inpaint import storage
from inpaint.checkpoints import latest, load_method
from inpaint.evaluation.pictures import choose, open_pictures, square
from inpaint.imaging import composite, to_float, to_pixels
from inpaint.masks import make_holes
from inpaint.sweep.analysis import compared, pareto_front, ranked
from inpaint.sweep.trials import read_records, recorded, sweep_url

IMAGES = 4
TRIALS = 6
GREY = 200


def front_pictures(name: str, *, root: str) -> Mapping[str, Mapping[str, np.ndarray]]:
    """Trial → masked, filled, truth: four held-out images in a square, uint8 [2·H, 2·W, 3], under the run's own holes.

    The trials are of the points on the Pareto front, then of the best ones, up to six; of each its first seed.
    """
    sweep, records = recorded(name, root=root), read_records(name, root=root)
    chosen = [*pareto_front(records, compared(sweep, records)), *ranked(records, sweep)]
    shown: dict[str, Mapping[str, np.ndarray]] = {}
    for record in dict.fromkeys(point.trials[0].id for point in chosen):
        if len(shown) == TRIALS:
            break
        newest = latest(storage.join(sweep_url(name, root=root), "runs", f"{name}-{record}"))
        if newest is not None:
            shown[f"{record} {records[record].label}"] = _filled(newest.url)
    return shown


def _filled(checkpoint: str) -> Mapping[str, np.ndarray]:
    from inpaint.checkpoints.layout import find
    from inpaint.checkpoints.loading import load_settings

    run, method = load_settings(find(checkpoint)), load_method(checkpoint)
    pictures, size = open_pictures(run.held_out_url), run.data.image_size
    holes = make_holes(run.holes, size)
    images = [square(pictures.read(key), size=size, resize="lanczos") for key in choose(pictures.ids, IMAGES, seed=0)]
    masks = [holes(np.random.default_rng([run.evaluation.seed, number])) for number in range(len(images))]
    image = to_float(torch.from_numpy(np.stack(images))).permute(0, 3, 1, 2)
    mask = torch.from_numpy(np.stack(masks)).float()[:, None]
    with torch.no_grad():
        filled = composite(image, method.eval().inpaint(image, mask), mask)
    masked = torch.where(mask > 0.5, torch.full_like(image, GREY / 255), image)
    return {label: _square_of(batch) for label, batch in (("masked", masked), ("filled", filled), ("truth", image))}


def _square_of(batch: torch.Tensor) -> np.ndarray:
    images = list(to_pixels(batch).permute(0, 2, 3, 1).numpy())
    half = (len(images) + 1) // 2
    images += [np.zeros_like(images[0])] * (2 * half - len(images))
    return np.concatenate([np.concatenate(images[:half], axis=1), np.concatenate(images[half:], axis=1)])
