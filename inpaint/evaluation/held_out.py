"""Scoring while training: the same held-out photographs under the same holes each time, shared by the ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inpaint.config.holes import CentreHole, MaskSetHoles
from inpaint.config.run import RunConfig
from inpaint.evaluation.evaluate import score_parts
from inpaint.evaluation.holes import HoleSource
from inpaint.evaluation.perceptual import Networks, load_asked
from inpaint.evaluation.pictures import open_pictures
from inpaint.evaluation.plan import Plan, make_plan, truth_of
from inpaint.evaluation.protocols import Protocol, find_protocols
from inpaint.evaluation.results import ALL, tabulate
from inpaint.evaluation.scoring import Part
from inpaint.imaging import to_float
from inpaint.methods.base import Method, modes_kept


class TrainingEvaluator:
    """Scores a run's method on its held-out pairs.

    The pairs depend on the run's `evaluation` settings alone, so checkpoints of a run, and runs that share settings
    and data, are scored on the same ones. Photographs are decoded once and kept, cropped to the run's size. Holes are
    those that the run trains with where they are a mask set or the centred square; for all other kinds they are strokes
    of every hole ratio, so that scores can be compared whatever the training drew.

    Args:
        run: names the held-out set, the size, the holes and the protocol.
        device: where filling and scoring run.

    Raises:
        DataError: there is no held-out set, or no masks.
        EvaluationError: no such protocol, or no mask for one of its bins.
        WeightsError: weights of `evaluation.lpips` that cannot be used.
    """

    def __init__(self, run: RunConfig, device: torch.device | str) -> None:
        self.device = device
        self.networks = load_asked(run.evaluation.lpips, device=device)
        self.plan = _plan(run, self.networks)
        self._photos: dict[str, np.ndarray] = {}

    def __call__(self, method: Method, rank: int, world_size: int) -> dict[str, float]:
        """Mean scores over all ranks' parts, the same on every rank: `psnr`, and per bin `psnr@30-40`.

        Scores of the composite only, LPIPS as far as `evaluation.lpips` names it, and no infinite means; beside them
        the method's own scores, such as `edge_precision`. The method is scored in evaluation mode and given back in the
        mode it came in.
        """
        groups = self.plan.parts()[rank::world_size]
        own: list[dict[str, list[float]]] = []
        with modes_kept(method):
            method.eval()
            parts = list(self._score(method, groups, own))
        return _means(self.plan, _of_all_ranks(parts, world_size)) | _own_means(_of_all_ranks(own, world_size))

    def _score(self, method: Method, groups: list[tuple[str, ...]], own: list[dict[str, list[float]]]) -> list[Part]:
        plan = replace(self.plan, pictures=replace(self.plan.pictures, read=self._read))

        def fill(holed: Tensor, mask: Tensor, names: Sequence[str]) -> Tensor:
            truth = torch.from_numpy(np.stack([self._photos[name] for name in names])).permute(0, 3, 1, 2)
            scores = method.scores(to_float(truth.to(holed.device)), mask)
            own.append({name: values.tolist() for name, values in scores.items()})
            return method.inpaint(holed, mask)

        return list(score_parts(plan, groups, {"": fill}, device=self.device, perceptual=self.networks))

    def _read(self, name: str) -> np.ndarray:
        if name not in self._photos:
            share = next(iter(self.plan.shares.values()))
            self._photos[name] = truth_of(share, self.plan.pictures.read(name))
        return self._photos[name]


def _plan(run: RunConfig, networks: Networks) -> Plan:
    (protocol,) = find_protocols([run.evaluation.protocol])
    return make_plan(
        [_under_holes_of(run, protocol)],
        open_pictures(run.held_out_url),
        _source(run),
        size=run.data.image_size,
        dataset=run.data.dataset,
        limit=run.evaluation.images,
        seed=run.evaluation.seed,
        batch=run.evaluation.batch,
        present=networks.present,
        absent=networks.absent,
    )


def _under_holes_of(run: RunConfig, protocol: Protocol) -> Protocol:
    """The protocol, with one hole and no bins for a run that trains on the centred square alone."""
    if not isinstance(run.holes, CentreHole) or protocol.mask_loading == "centre":
        return protocol
    return replace(protocol, pairing="one_mask", bins=(), unions=())


def _source(run: RunConfig) -> HoleSource:
    if isinstance(run.holes, MaskSetHoles):
        return HoleSource(run.holes.url, run.holes.hole, seed=run.evaluation.seed)
    if isinstance(run.holes, CentreHole):
        return HoleSource(centre=run.holes.share)
    return HoleSource(seed=run.evaluation.seed)


def _own_means(batches: list[dict[str, list[float]]]) -> dict[str, float]:
    """Mean of each of the method's own scores over the images that have a value."""
    found: dict[str, list[float]] = {}
    for batch in batches:
        for name, values in batch.items():
            found.setdefault(name, []).extend(value for value in values if math.isfinite(value))
    return {name: math.fsum(values) / len(values) for name, values in found.items() if values}


def _of_all_ranks(parts: list[Any], world_size: int) -> list[Any]:
    if world_size == 1:
        return parts
    gathered: list[list[Any]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(gathered, parts)
    return [part for found in gathered for part in found]


def _means(plan: Plan, parts: list[Part]) -> dict[str, float]:
    scores = [score for part in parts for score in part.scores]
    ((table,),) = [list(found.values()) for found in tabulate(scores, seed=plan.seed).values()]
    return {
        column if row == ALL else f"{column}@{row}": cell.mean
        for row, columns in table.items()
        for column, cell in columns.items()
        if "@" not in column and math.isfinite(cell.mean)
    }
