"""The gated two-stage network's numbers, each beside its source; `assumed` marks what the paper does not give."""

from __future__ import annotations

from collections.abc import Collection
from math import gcd
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from inpaint.config.base import Strict
from inpaint.config.dilations import largest_gap, leaves_gaps
from inpaint.config.methods.base import LossWeights, MethodConfig, Weight
from inpaint.config.optim import Adam, OptimizerConfig


class GatedTwoStageWeights(LossWeights):
    """λ of each term of the generator's loss, HDC paper Eq. (11)."""

    l1_coarse: Weight = 100.0  # HDC Eq. (11)
    l1_refined: Weight = 100.0  # HDC Eq. (11)
    perceptual: Weight = 10.0  # HDC Eq. (11)
    adversarial: Weight = 1.0  # HDC Eq. (11)


class ContextualAttentionConfig(Strict):
    """Attention mechanism I. The paper gives none of these; rate 1 with patch 1 is the literal reading of Eq. (4)."""

    rate: Literal[1, 2] = 2  # assumed: as in contextual attention, which Eq. (4) extends
    patch: Literal[1, 3, 5] = 3  # assumed: as in contextual attention
    scale: float = Field(10.0, gt=0)  # assumed: as in contextual attention
    reduction: int = Field(16, ge=1)  # assumed: of squeeze-and-excitation, that network's own choice


class SelfAttentionConfig(Strict):
    """Attention mechanism II."""

    reduction: int = Field(8, ge=1)  # assumed: as in self-attention GANs, which Eq. (9) repeats


class GatedTwoStageConfig(MethodConfig):
    """Gated two-stage network with hybrid dilated convolution, attentions I and II, SN-PatchGAN.

    Source: the HDC paper (two-stage completion with gated and hybrid dilated convolution).
    """

    stage_names: ClassVar[tuple[str, ...]] = ("joint",)
    size_multiple: ClassVar[int] = 8

    name: Literal["gated_two_stage"] = "gated_two_stage"
    width: int = Field(32, ge=4, multiple_of=2)  # channels after the first layer, HDC Table I
    discriminator_width: int = Field(64, ge=4)  # assumed: Fig. 8 has no sizes; as in free-form gated convolution
    gated: bool = True  # False = plain convolutions, half of HDC experiment 2
    activation: Literal["leaky_relu", "elu"] = "leaky_relu"  # assumed: not given; elu in free-form gated convolution
    coarse_dilations: list[Annotated[int, Field(ge=1)]] = Field([2, 4, 8, 16], min_length=1)  # HDC Table I
    refine_dilations: list[Annotated[int, Field(ge=1)]] = Field([1, 2, 3, 1, 2, 3], min_length=1)  # HDC Table III
    allow_gaps: bool = False  # accept refine_dilations that miss pixels by HDC Eq. (3), for an ablation
    attentions: Literal["both", "coarse", "refinement", "none"] = "both"  # none = HDC experiment 1
    contextual: ContextualAttentionConfig = ContextualAttentionConfig()
    self_attention: SelfAttentionConfig = SelfAttentionConfig()
    vgg_input: Literal["raw", "imagenet"] = "imagenet"  # assumed: what VGG-16 was trained with
    weights: GatedTwoStageWeights = GatedTwoStageWeights()
    generator_optimizer: OptimizerConfig = Adam(learning_rate=1e-4, betas=(0.5, 0.999))  # assumed: none is given
    discriminator_optimizer: OptimizerConfig = Adam(learning_rate=1e-4, betas=(0.5, 0.999))  # assumed: none is given

    @model_validator(mode="after")
    def _settings_act(self) -> GatedTwoStageConfig:
        if self.contextual != ContextualAttentionConfig() and not self.uses_contextual():
            raise ValueError(f"contextual is set, but attentions is {self.attentions}; make it both or coarse")
        if self.self_attention != SelfAttentionConfig() and not self.uses_self_attention():
            raise ValueError(f"self_attention is set, but attentions is {self.attentions}; make it both or refinement")
        return self

    @model_validator(mode="after")
    def _widths_divide(self) -> GatedTwoStageConfig:
        for path, channels, reduction in (
            ("contextual.reduction", 8 * self.width, self.contextual.reduction),
            ("self_attention.reduction", 4 * self.width, self.self_attention.reduction),
        ):
            if channels % reduction:
                raise ValueError(f"{path} {reduction} does not divide the {channels} channels of width {self.width}")
        return self

    @model_validator(mode="after")
    def _no_gaps(self) -> GatedTwoStageConfig:
        if leaves_gaps(self.refine_dilations) and not self.allow_gaps:
            rates = self.refine_dilations
            raise ValueError(
                f"refine_dilations {rates} miss pixels (HDC Eq. 3: gap {largest_gap(rates)}, at most 3; common divisor "
                f"{gcd(*rates)}, must be 1); choose rates such as [1, 2, 3, 1, 2, 3], or set allow_gaps: true"
            )
        return self

    def uses_contextual(self) -> bool:
        """Whether the coarse network has attention I."""
        return self.attentions in ("both", "coarse")

    def uses_self_attention(self) -> bool:
        """Whether the refinement has attention II."""
        return self.attentions in ("both", "refinement")

    def feature_networks(self, stages: Collection[str]) -> tuple[str, ...]:
        return ("vgg16",) if self.weights.perceptual else ()
