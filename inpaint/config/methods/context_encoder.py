"""The context encoder's numbers, each beside its source; `assumed` marks what the paper does not give."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from inpaint.config.methods.base import LossWeights, MethodConfig, Weight
from inpaint.config.optim import Adam, OptimizerConfig

if TYPE_CHECKING:
    from inpaint.config.run import RunConfig


class ContextEncoderWeights(LossWeights):
    """λ of each term of the generator's loss. The paper's Table I, which held them, is lost."""

    reconstruction: Weight = 1.0  # λ1; assumed
    local: Weight = 1e-3  # λ2 after its ramp; assumed: the 0.999 : 0.001 balance of the first context encoder
    global_: Weight = Field(1e-3, alias="global")  # λ3 after its ramp; assumed: a term of the same scale as λ2's


class ContextEncoderConfig(MethodConfig):
    """Context encoder with a 1×1 convolution, local and global discriminators and a curriculum; centre holes only.

    Source: the paper on an improved context encoder with a multi-scale discriminator ("CE paper"). Tables and
    equations are lost in the available text, so layer sizes are those of its references that meet its prose.
    """

    stage_names: ClassVar[tuple[str, ...]] = ("reconstruct", "local", "global")
    size_multiple: ClassVar[int] = 32
    hole_shapes: ClassVar[Literal["free", "centre"]] = "centre"

    name: Literal["context_encoder"] = "context_encoder"
    image_size: int = Field(128, ge=32, multiple_of=32)  # CE text; the hole is the centred square of half the side
    width: int = Field(64, ge=4)  # channels after the first layer of every network; assumed, as in DCGAN
    code: int = Field(4000, ge=1)  # channels of the 1×1 bottleneck, CE text
    hole_value: float = Field(0.0, ge=-1, le=1)  # what the hole is painted with, in [-1, 1]; CE "zero-centered"
    ramp_steps: int = Field(10000, ge=0)  # steps in which λ2 and λ3 grow from 0; assumed, 0 = at once
    generator_adversarial: Literal["non_saturating", "minimax"] = "non_saturating"  # assumed; minimax is CE Eq. (1)
    weights: ContextEncoderWeights = ContextEncoderWeights()
    generator_optimizer: OptimizerConfig = Adam(learning_rate=3e-4, betas=(0.5, 0.999))  # CE text
    local_optimizer: OptimizerConfig = Adam(learning_rate=3e-4, betas=(0.5, 0.999))  # CE text, one rate for all
    global_optimizer: OptimizerConfig = Adam(learning_rate=3e-4, betas=(0.5, 0.999))  # CE text, one rate for all

    def check_run(self, run: RunConfig) -> None:
        if run.data.image_size != self.image_size:
            raise ValueError(
                f"data.image_size {run.data.image_size} is not method.image_size {self.image_size}; make them equal, "
                "because the 1×1 bottleneck fits one size"
            )
        if run.holes.kind == "centre" and run.holes.share != 0.5:
            raise ValueError(f"holes.share {run.holes.share:g} cannot train {self.name}; its decoder draws 0.5")
        if run.training.global_batch < 2:
            raise ValueError("training.global_batch 1 has no batch statistics; context_encoder needs 2 or more")
        if run.training.accumulate > 1:
            raise ValueError(
                f"training.accumulate {run.training.accumulate} would change the batch statistics of {self.name}; "
                "set 1 and add workers, whose statistics are joined"
            )
