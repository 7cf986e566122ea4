"""What can be scored: a checkpoint, a baseline, or a folder that another program filled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inpaint import checkpoints, storage
from inpaint.checkpoints.layout import find
from inpaint.checkpoints.loading import load_settings
from inpaint.config.base import suggest
from inpaint.config.evaluation import EvaluationRequest
from inpaint.config.run import RunConfig
from inpaint.errors import CheckpointError, EvaluationError
from inpaint.evaluation.baselines import BASELINES
from inpaint.evaluation.pictures import Pictures
from inpaint.evaluation.scoring import Filler, NamedFiller, anonymous
from inpaint.methods import untrained

ONE_SHOT, PROGRESSIVE = "one-shot", "progressive"
BASELINE = "baseline:"


@dataclass(frozen=True)
class Subject:
    """What is scored.

    Attributes:
        name: short, for files and tables.
        about: what is known of it: kind, run, step, weights' digest.
        fillers: by the name of the way it fills; several are compared pair by pair.
        home: folder its results belong in; None for one that has no run.
        run: its settings, for a checkpoint.
    """

    name: str
    about: Mapping[str, Any]
    fillers: Mapping[str, NamedFiller]
    home: str | None = None
    run: RunConfig | None = None


def load_subject(request: EvaluationRequest, device: torch.device | str) -> Subject:
    """The subject of a request that fills here.

    Raises:
        EvaluationError: no such baseline.
        CheckpointError: no such run or checkpoint.
    """
    if request.subject.startswith(BASELINE):
        return _baseline(request.subject.removeprefix(BASELINE), progressive=request.progressive)
    return _checkpoint(request, device)


def finished_filler(filled: Pictures, truth_size: Callable[[str], tuple[int, int]]) -> NamedFiller:
    """A filler that hands out finished images by name, as the 8-bit pixels that they are.

    Raises:
        EvaluationError: when called, for an image whose size is not that of its truth.
    """

    def fill(image: Tensor, mask: Tensor, names: Sequence[str]) -> Tensor:
        found = []
        for name in names:
            pixels, size = filled.read(name), truth_size(name)
            if pixels.shape[:2] != size:
                raise EvaluationError(
                    f"{name}: the filled image is {_size(pixels.shape)} and the truth {_size(size)}; "
                    "give images of the same size"
                )
            found.append(pixels)
        return torch.from_numpy(np.stack(found)).to(image.device).permute(0, 3, 1, 2)

    return fill


def _baseline(name: str, *, progressive: bool) -> Subject:
    if name not in BASELINES:
        known = ", ".join(BASELINES)
        raise EvaluationError(f"baseline:{name} is not a baseline{suggest(name, BASELINES)}; known: {known}")
    about = {"kind": "baseline", "name": name}
    return Subject(f"baseline-{name}", about, _ways(BASELINES[name], progressive=progressive))


def _checkpoint(request: EvaluationRequest, device: torch.device | str) -> Subject:
    place = checkpoints.run_url(request.subject, root=request.root)
    info = _best(place, request.best) if request.best else find(place)
    run = load_settings(info)
    method = checkpoints.load_method(info.url, device)
    about = {
        "kind": "checkpoint",
        "run": run.name,
        "preset": run.preset,
        "method": run.method.name,
        "dataset": run.data.dataset,
        "train": run.train_url,
        "step": info.step,
        "total_steps": run.total_steps,
        "global_batch": run.training.global_batch,
        "size": run.data.image_size,
        "url": info.url,
        "weights": weights_sha(info),
        "untrained": list(untrained(method, run, info.step)),
    }
    home = info.url.rpartition("/checkpoints/")[0] or None
    fillers = _ways(method.inpaint, progressive=request.progressive)
    return Subject(f"step-{info.step}", about, fillers, home, run)


def _best(place: str, metric: str) -> checkpoints.CheckpointInfo:
    if storage.exists(storage.join(place, "manifest.json")):
        raise CheckpointError(f"{place} is one checkpoint; give the run, or leave --best out")
    return checkpoints.best(place, metric)


def weights_sha(info: checkpoints.CheckpointInfo) -> str:
    """Digest of the networks of a checkpoint, from its manifest."""
    files = sorted((name, entry["sha256"]) for name, entry in info.files.items() if name.startswith("networks/"))
    return hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in files).encode()).hexdigest()


def _ways(inpaint: Filler, *, progressive: bool) -> dict[str, NamedFiller]:
    if not progressive:
        return {ONE_SHOT: anonymous(inpaint)}
    from inpaint import inference

    def rounds(image: Tensor, mask: Tensor) -> Tensor:
        return inference.progressive(inpaint, image, mask)

    return {ONE_SHOT: anonymous(inpaint), PROGRESSIVE: anonymous(rounds)}


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}×{shape[0]}"
