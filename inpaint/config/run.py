"""One run: what is trained, on what, how long, where it is kept; the same here, on a cluster and in a sweep."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from math import lcm
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from inpaint.config.base import (
    Positive,
    Strict,
    apply_overrides,
    is_file_name,
    lay_over,
    names_in,
    parse_overrides,
    read_yaml,
    suggest,
    validate,
)
from inpaint.config.holes import HolesConfig, Share
from inpaint.config.methods import AnyMethod
from inpaint.errors import ConfigError

Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what every generator takes
Digest = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]  # SHA-256
S3_ROOT = re.compile(r"s3://[^/\s]")
RUN_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")  # becomes a RayJob name, at most 47 with our suffixes


class StageConfig(Strict):
    """Length of a stage, and where its networks start from.

    Attributes:
        steps: optimiser steps.
        start_from: a run (name or URL) whose newest checkpoint gives this stage's networks their first weights.
    """

    steps: int = Field(ge=0)
    start_from: str | None = Field(None, alias="from")


class DataConfig(Strict):
    """Which shards, and how they become batches."""

    dataset: str = Field(pattern=r"^[a-z0-9][-a-z0-9_.]*$")
    train: str | None = None  # URL of a shard set; <root>/shards/<dataset>/train when None
    held_out: str | None = None  # URL of a shard set; <root>/shards/<dataset>/test when None
    image_size: int = Field(gt=0, le=8192)  # pixels, square
    crop: Literal["centre", "random"] = "centre"
    crop_share: float = Field(1.0, gt=0, le=1)  # side of a random crop, of the shorter side; evaluation takes all of it
    flip: bool = True  # mirror image and mask together, p = 0.5
    looks: Positive | None = None  # epochs after which a sample's flips, crops and holes recur; None = never
    shuffle: Literal["global", "window"] = "global"
    window_shards: Positive = 64  # K, for shuffle: window
    last_batch: Literal["drop", "wrap"] = "drop"  # wrap fills the last batch of an epoch from the epoch's beginning
    decode: Literal["fast", "exact"] = "fast"  # exact: PIL's pixels; fast: 41 dB from them, 6 % cheaper
    dct_scaling: bool = True  # decode JPEGs at least twice as large as wanted at 1/2, 1/4 or 1/8
    decode_threads: int = Field(2, ge=0, le=256)  # 0 decodes in the training process's own thread
    fetch_threads: int = Field(4, gt=0, le=256)
    prefetch_batches: int = Field(4, gt=0, le=256)
    cache_dir: str | None = None  # node-local; a folder under the system's temporary one when None
    cache_gib: float = Field(50.0, gt=0)
    decoded_cache_gib: float = Field(0.0, ge=0)  # 0 = off; decoded YUV 4:2:0 planes for epochs after the first
    max_bad_share: Share = 0.001

    @model_validator(mode="after")
    def _settings_act(self) -> DataConfig:
        if self.shuffle == "global" and self.window_shards != type(self).model_fields["window_shards"].default:
            raise ValueError("window_shards is set, but only shuffle: window reads it; drop one of them")
        if self.crop_share < 1 and self.crop != "random":
            raise ValueError(f"crop_share {self.crop_share:g} is set, which only crop: random reads; set crop_share: 1")
        if self.crop_share < 1 and self.decoded_cache_gib:
            raise ValueError("decoded_cache_gib keeps whole images, and crop_share shows none; set crop_share: 1")
        return self


class TrainingConfig(Strict):
    """How a step is computed. Only `global_batch`, `ema` and clipping change the result beyond rounding."""

    global_batch: Positive = 8  # samples per optimiser step, over all workers
    accumulate: Positive = 1  # parts in which a worker's share of the batch is computed
    precision: Literal["float32", "bfloat16"] = "float32"
    tf32: bool = True  # tensor cores for float32 convolutions and products on CUDA
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = False
    activation_checkpointing: bool = False
    deterministic: bool = False
    ema: float | None = Field(None, gt=0, lt=1)  # decay of the averaged weights, which rest after a stage; None = none
    clip_gradient_norm: float | None = Field(None, gt=0)
    not_finite: Literal["stop", "rollback"] = "stop"
    max_rollbacks: int = Field(3, ge=0)
    check_every: Positive = 50  # steps between looks at the not-finite flag (each one waits for the device)
    log_every: Positive = 50

    @model_validator(mode="after")
    def _settings_act(self) -> TrainingConfig:
        if self.not_finite == "stop" and self.max_rollbacks != type(self).model_fields["max_rollbacks"].default:
            raise ValueError("max_rollbacks is set, but only not_finite: rollback goes back; drop one of them")
        if self.compile and self.activation_checkpointing:
            raise ValueError("compile and activation_checkpointing exclude each other; choose one")
        if self.cuda_graphs and self.activation_checkpointing:
            raise ValueError(
                "cuda_graphs and activation_checkpointing exclude each other: what is recomputed asks the device for "
                "its random state; choose one"
            )
        return self


class CheckpointsConfig(Strict):
    """When a checkpoint is written and which are kept; the newest always is."""

    every: Positive = 5000  # steps
    keep_last: Positive = 1
    keep_best: int = Field(3, ge=0)
    metric: str = "psnr"  # of the evaluation during training
    mode: Literal["max", "min"] = "max"


class EvaluationConfig(Strict):
    """Scoring during training on fixed held-out pairs.

    Attributes:
        images: of the held-out set, at most.
        lpips: network → where its weights are: `torchvision`, a path, an `s3://` URL, `random`, or `present`, which
            takes the file an earlier download left on the machine and leaves the score out where there is none.
    """

    every: Positive = 5000  # steps; a checkpoint is scored when both fall together
    images: Positive = 500
    batch: Positive = 8
    seed: Seed = 0
    protocol: str = "inp-v1"
    lpips: dict[Literal["alex", "vgg", "squeeze"], str] = {}

    @field_validator("protocol")
    @classmethod
    def _one_protocol(cls, protocol: str) -> str:
        if protocol == "all":
            raise ValueError("all scores by every protocol, and training by one; name it, for instance inp-v1")
        return protocol


class Bound(Strict):
    """When a logged value ends the run: above or below a limit at so many looks in a row."""

    above: float | None = None
    below: float | None = None
    times: Positive = 3

    @model_validator(mode="after")
    def _one_side(self) -> Bound:
        if self.above is None and self.below is None:
            raise ValueError("give above, below or both; without a limit the rule never acts")
        return self


class HealthConfig(Strict):
    """Looks at how the GAN fares, each at about the cost of a step.

    Attributes:
        every: steps between looks; 0 = none.
        stop_when: logged name → bound, for instance `health/seam_error: {above: 0.3, times: 5}`.
    """

    every: int = Field(0, ge=0)
    stop_when: dict[str, Bound] = {}

    @model_validator(mode="after")
    def _looked_at(self) -> HealthConfig:
        for name in self.stop_when:
            if name.startswith("health/") and not self.every:
                raise ValueError(f"stop_when {name} needs a look now and then; set health.every")
        return self


class TrackingConfig(Strict):
    """Weights & Biases. The key comes from the environment, never from here."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online with a key, offline without
    project: str = "inpaint"
    entity: str | None = None
    group: str | None = None
    images_every: Positive = 5000  # steps between sample grids


class ResourcesConfig(Strict):
    """What the run asks of the cluster."""

    num_workers: Positive = 1
    gpus_per_worker: float = Field(0, ge=0)  # below 1, workers share a GPU
    cpus_per_worker: float = Field(1, gt=0)
    max_failures: int = Field(3, ge=-1)  # restarts of the workers without a new checkpoint between; -1 = no limit

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus % 1:
            raise ValueError(f"{gpus:g} GPUs cannot be given; use a share of one (0.5), or whole ones")
        return gpus


class FeatureWeightsConfig(Strict):
    """Where frozen feature networks get their weights: `torchvision`, a path, an `s3://` URL, or `random`.

    `random` is for tests and demos without a network: it must be asked for and marks every result it touches.
    """

    vgg19: str = "torchvision"
    vgg16: str = "torchvision"
    sha256: dict[Literal["vgg19", "vgg16"], Digest] = {}  # network → digest the file must have


class RunConfig(Strict):
    """A whole run. `preset` is where the values came from; everything needed is here in full."""

    name: str
    root: str
    preset: str | None = None
    seed: Seed = 0
    method: AnyMethod
    stages: dict[str, StageConfig]
    data: DataConfig
    holes: HolesConfig
    training: TrainingConfig = TrainingConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    health: HealthConfig = HealthConfig()
    tracking: TrackingConfig = TrackingConfig()
    resources: ResourcesConfig = ResourcesConfig()
    feature_weights: FeatureWeightsConfig = FeatureWeightsConfig()

    @field_validator("name")
    @classmethod
    def _name_is_a_label(cls, name: str) -> str:
        if not RUN_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a run; use up to 40 of a-z, 0-9 and -, starting with a letter")
        return name

    @field_validator("root")
    @classmethod
    def _root_is_a_place(cls, root: str) -> str:
        if not root.strip() or (root.startswith("s3:") and not S3_ROOT.match(root)):
            raise ValueError(f"{root!r} is no place to keep a run; give s3://bucket/prefix or a folder")
        return root

    @model_validator(mode="after")
    def _parts_fit(self) -> RunConfig:
        self._check_stages()
        self._check_sizes()
        self.method.check_run(self)
        self._check_graphs()
        self._check_scored()
        return self

    def _check_scored(self) -> None:
        """Only a checkpoint whose step was scored can be the best; the last step is both."""
        scored, saved = self.evaluation.every, self.checkpoints.every
        if self.checkpoints.keep_best and max(scored, saved) < self.total_steps and scored % saved and saved % scored:
            raise ValueError(
                f"evaluation.every {scored} and checkpoints.every {saved} fall together only each {lcm(scored, saved)} "
                "steps, and no other checkpoint has a score; make one a multiple of the other, or set "
                "checkpoints.keep_best: 0"
            )

    def _check_stages(self) -> None:
        known = self.method.stage_names
        for stage in self.stages:
            if stage not in known:
                raise ValueError(
                    f"stages.{stage} is not a stage of {self.method.name} ({', '.join(known)}){suggest(stage, known)}"
                )
        missing = [stage for stage in known if stage not in self.stages]
        if missing:
            raise ValueError(f"stages.{missing[0]} is missing; give its steps (0 skips it)")
        if not self.total_steps:
            raise ValueError("stages: every stage has 0 steps; nothing would be trained")

    def _check_sizes(self) -> None:
        multiple, size = self.method.size_multiple, self.data.image_size
        if size % multiple:
            raise ValueError(f"data.image_size {size} is not a multiple of {multiple}, which {self.method.name} needs")
        if size < self.method.smallest_trained:
            least = -(-self.method.smallest_trained // multiple) * multiple
            raise ValueError(
                f"data.image_size {size} leaves the discriminators of {self.method.name} no patch; use {least} or more"
            )
        parts = self.resources.num_workers * self.training.accumulate
        if self.training.global_batch % parts:
            raise ValueError(
                f"training.global_batch {self.training.global_batch} does not divide into {self.resources.num_workers} "
                f"workers × {self.training.accumulate} parts; choose a multiple of {parts}"
            )
        if self.method.hole_shapes == "centre" and self.holes.kind != "centre":
            raise ValueError(f"holes.kind {self.holes.kind} cannot train {self.method.name}; it fills centre holes")

    def _check_graphs(self) -> None:
        counting = [name for name, one in self.method.optimizers().items() if one.kind == "ranger21"]
        if self.training.cuda_graphs and counting:
            raise ValueError(
                f"method.{counting[0]}: ranger21 counts its steps on the host, which training.cuda_graphs forbids; "
                "choose adam, or set training.cuda_graphs: false"
            )
        workers, gpus = self.resources.num_workers, self.resources.gpus_per_worker
        if self.training.cuda_graphs and (workers > 1 or not gpus):
            raise ValueError(
                f"training.cuda_graphs works with one worker on a GPU, and resources asks for {workers} with {gpus:g} "
                "GPUs each; set num_workers: 1 and gpus_per_worker: 1, or training.cuda_graphs: false"
            )

    @property
    def total_steps(self) -> int:
        """Optimiser steps over all stages."""
        return sum(stage.steps for stage in self.stages.values())

    def stage_at(self, step: int) -> str:
        """Name of the stage in which the run's step `step` is made, from 1; 0 is before the first, in its stage."""
        trained = [name for name in self.method.stage_names if self.stages[name].steps]
        for name in trained:
            step -= self.stages[name].steps
            if step <= 0:
                return name
        return trained[-1]

    @property
    def url(self) -> str:
        """The run's folder, `<root>/runs/<name>`."""
        return f"{self.root.rstrip('/')}/runs/{self.name}"

    @property
    def train_url(self) -> str:
        """The shard set that is trained on."""
        return self.data.train or f"{self.root.rstrip('/')}/shards/{self.data.dataset}/train"

    @property
    def held_out_url(self) -> str:
        """The shard set that is scored during training."""
        return self.data.held_out or f"{self.root.rstrip('/')}/shards/{self.data.dataset}/test"

    @property
    def feature_networks(self) -> tuple[str, ...]:
        """Names of the frozen feature networks that its losses need."""
        return self.method.feature_networks([name for name, stage in self.stages.items() if stage.steps])

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `RunConfig.model_validate` turns back into this run."""
        return self.model_dump(mode="json", by_alias=True)


def list_presets() -> list[str]:
    """Names of the presets in the package, sorted."""
    return names_in(_presets())


def load_run(
    source: str,
    *,
    assignments: Iterable[str] = (),
    name: str | None = None,
    root: str | None = None,
    default_root: str | None = None,
    num_workers: int | None = None,
) -> RunConfig:
    """The run that a preset or a run file describes, with `path=value` assignments laid over it.

    Args:
        source: a preset's name, or the path of a YAML file.
        assignments: `["method.weights.style=3", ...]`.
        name: of the run; the preset's name when neither this nor the file gives one.
        root: of the storage layout; when None the one that the assignments or the file give, else `INPAINT_ROOT` from
            the environment, else `default_root`.
        default_root: such as the store of a cluster; `./inpaint-root` when None.
        num_workers: overrides `resources.num_workers`.

    Raises:
        ConfigError: no such preset or file, or a wrong setting; names the place and the nearest right word.
    """
    values = read_yaml(source, kind="preset", folder=_presets())
    if not is_file_name(source):
        values["preset"] = source
    overrides = parse_overrides(assignments)
    given = {"name": name, "root": root, "resources.num_workers": num_workers}
    overrides |= {path: value for path, value in given.items() if value is not None}
    values = {
        "name": values.get("preset") or Path(source).stem,
        "root": os.environ.get("INPAINT_ROOT") or default_root or "inpaint-root",
    } | values
    values = lay_over(RunConfig, _spell_out(values, overrides), overrides)
    return validate(RunConfig, values, place=source)


def _spell_out(values: dict[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """`values` with the groups that `paths` reach into written out where only their defaults stood.

    A method's default optimizer has betas of its own; setting its learning rate alone must keep them.
    """
    try:
        full = validate(RunConfig, values, place="").to_dict()
    except ConfigError:
        return values  # what is wrong is told once the overrides, which may mend it, are laid over
    defaults: dict[str, Any] = {}
    for path in paths:
        given: Any = values
        known: Any = full
        for place, part in enumerate(parents := path.split(".")[:-1], start=1):
            given, known = given.get(part), known.get(part)
            if given is None and isinstance(known, dict):
                defaults[".".join(parents[:place])] = known
            if not (isinstance(given, dict) and isinstance(known, dict)):
                break
    return apply_overrides(values, defaults)


def _presets() -> Traversable:
    return resources.files("inpaint") / "presets"
