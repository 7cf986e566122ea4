"""What `inpaint evaluate` is asked: the same values from the command line, or from a file on the cluster."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field, model_validator

from inpaint.config.base import Positive, Strict
from inpaint.config.run import ResourcesConfig


class FinishedImages(Strict):
    """Images that another program filled, beside the truth and the masks, all by the same names.

    Attributes:
        images, truth, masks: folders, archives or shard sets.
        hole: the value that means hole in the masks.
    """

    images: str
    truth: str
    masks: str
    hole: Literal["white", "black"]


class MaskFiles(Strict):
    """Mask files to fill under, instead of drawn strokes.

    Attributes:
        url: folder, archive or shard set.
        hole: the value that means hole in these files; required, because mask sets disagree.
    """

    url: str
    hole: Literal["white", "black"]


class EvaluationRequest(Strict):
    """One evaluation.

    Attributes:
        subject: a run or checkpoint (name or URL), `baseline:NAME`, or a name for finished images.
        data: folder, archive or shard set of the truth; `<dataset>/<split>` of the root's shards; the run's held-out
            set when None.
        protocols: names, or `all`.
        best: take the run's best checkpoint by this score (`psnr`, `l1@30-40`) instead of its newest.
        finished: score these instead of filling.
        masks: files to fill under; drawn strokes when None.
        progressive: fill progressively too, and report the paired difference.
        limit: most images; accepts fewer than a protocol demands, and marks that.
        size: pixels of both sides; the run's image size, else each protocol's, when None.
        seed: of choices and pairs.
        batch: images per call of the filler.
        lpips, features, faces: sources of the frozen networks behind scores, by name.
        sha256: digests that those files must have, by the same names.
        root: of the storage layout.
        out: folder for the results; `evaluations` of the run, else of the root, when None.
        device: `cpu`, `cuda`; whichever there is when None.
    """

    subject: str
    data: str | None = None
    protocols: tuple[str, ...] = ("inp-v1",)
    best: str | None = None
    finished: FinishedImages | None = None
    masks: MaskFiles | None = None
    progressive: bool = False
    limit: Positive | None = None
    size: Positive | None = None
    seed: int = Field(0, ge=0)
    batch: Positive = 8
    lpips: dict[str, str] = {}
    features: dict[str, str] = {}
    faces: dict[str, str] = {}
    sha256: dict[str, str] = {}
    root: str = Field(default_factory=lambda: os.environ.get("INPAINT_ROOT") or "inpaint-root")
    out: str | None = None
    device: str | None = None

    @model_validator(mode="after")
    def _has_effect(self) -> EvaluationRequest:
        if self.finished:
            given = {"data": self.data, "masks": self.masks, "progressive": self.progressive, "best": self.best}
            idle = next((name for name, value in given.items() if value), None)
            if idle or self.size or self.batch != 8:
                name = idle or ("size" if self.size else "batch")
                raise ValueError(f"{name} has no effect on finished images; leave it out")
        networks = {*self.lpips, *self.features, *self.faces}
        if unused := sorted(self.sha256.keys() - networks):
            raise ValueError(f"sha256 of {unused[0]} has no effect; no network of that name is given")
        if self.subject.startswith("baseline:"):
            if self.best:
                raise ValueError("best has no effect on a baseline; leave it out")
            if not self.data and not self.finished:
                raise ValueError("data: a baseline needs images; give a folder or shard set")
        return self


class EvaluationFile(Strict):
    """What the evaluation's driver on a cluster reads: the request, and how many workers of which size share it."""

    request: EvaluationRequest
    resources: ResourcesConfig = ResourcesConfig()
