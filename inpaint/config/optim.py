"""Optimizers and learning-rate schedules, as settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inpaint.config.base import Strict

Beta = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]


class ConstantSchedule(Strict):
    """The learning rate as it is."""

    kind: Literal["constant"] = "constant"


class StepSchedule(Strict):
    """The rate times `factor` after every `every` steps of the stage."""

    kind: Literal["step"] = "step"
    every: int = Field(gt=0)
    factor: float = Field(0.5, gt=0, le=1)


class CosineSchedule(Strict):
    """A linear warm-up over `warmup` steps, then half a cosine down to `floor` times the rate at the stage's end."""

    kind: Literal["cosine"] = "cosine"
    warmup: int = Field(0, ge=0)
    floor: float = Field(0.0, ge=0, le=1)


Schedule = Annotated[ConstantSchedule | StepSchedule | CosineSchedule, Field(discriminator="kind")]


class Adam(Strict):
    """Adam; `weight_decay` above 0 is decoupled (AdamW)."""

    kind: Literal["adam"] = "adam"
    learning_rate: Rate
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Schedule = ConstantSchedule()


class Ranger21(Strict):
    """Ranger21; brings its own warm-up and warm-down.

    Source: DiNA paper, Algorithm 1; `reference` follows the published library, `paper` the printed algorithm.
    """

    kind: Literal["ranger21"] = "ranger21"
    learning_rate: Rate
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    flavour: Literal["reference", "paper"] = "reference"


OptimizerConfig = Annotated[Adam | Ranger21, Field(discriminator="kind")]
