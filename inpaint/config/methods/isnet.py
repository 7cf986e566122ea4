"""ISNet's numbers, each beside its source."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from inpaint.config.methods.base import SMALLEST_PATCH, LossWeights, MethodConfig, Weight
from inpaint.config.optim import Adam, OptimizerConfig


class ISNetWeights(LossWeights):
    """λ of each term of the generator's loss; the defaults are row 7 of Table 2, `Eq. (5)`."""

    l1: Weight = 1.0  # ISNet Eq. (5)
    adversarial: Weight = 3.0  # ISNet Eq. (5)
    perceptual: Weight = 1.0  # ISNet Eq. (5)
    style: Weight = 3.0  # ISNet Eq. (5)
    feature_matching: Weight = 0.0  # ISNet Eq. (5) has none; 10 in Eq. (4)


class ISNetConfig(MethodConfig):
    """ISNet: two interacting branches of high and low resolution, spectral norm, hinge GAN.

    Source: Gong et al., IEEE Access 2022.
    """

    stage_names: ClassVar[tuple[str, ...]] = ("gan",)
    size_multiple: ClassVar[int] = 16
    smallest_trained: ClassVar[int] = SMALLEST_PATCH

    name: Literal["isnet"] = "isnet"
    design: Literal["isnet", "base", "base_ff", "unet"] = "isnet"  # ISNet Table 7
    blocks: int = Field(4, ge=1, le=8)  # residual blocks per branch and phase, ISNet Table 8
    width: int = Field(32, ge=4, multiple_of=4)  # channels of the high-resolution branch, ISNet Fig. 3
    discriminator_width: int = Field(64, ge=4)  # channels after the first layer, authors' code
    initialisation: Literal["normal", "orthogonal"] = "normal"  # authors' code; `orthogonal` assumed, for short runs
    gan_loss: Literal["hinge", "nsgan", "lsgan"] = "hinge"  # ISNet Eq. (3); nsgan is the authors' released setting
    generator_adversarial: Literal["mean", "neg_hinge"] = "mean"  # ISNet Eq. (4) read as -E[D]; `neg_hinge` literally
    l1_norm: Literal["hole", "none"] = "hole"  # authors' code divides by the hole share; the paper prints plain L1
    vgg_layers: Literal["edgeconnect", "pconv"] = "edgeconnect"  # authors' code; `pconv` is the paper's text
    vgg_input: Literal["raw", "imagenet"] = "raw"  # authors' code
    weights: ISNetWeights = ISNetWeights()
    generator_optimizer: OptimizerConfig = Adam(learning_rate=1e-4, betas=(0.0, 0.9))  # betas: authors' code
    discriminator_optimizer: OptimizerConfig = Adam(learning_rate=1e-5, betas=(0.0, 0.9))  # 0.1 of the generator's

    @model_validator(mode="after")
    def _settings_act(self) -> ISNetConfig:
        if self.generator_adversarial == "neg_hinge" and self.gan_loss != "hinge":
            raise ValueError(f"generator_adversarial is neg_hinge, but gan_loss is {self.gan_loss}; drop one of them")
        return self

    def feature_networks(self, stages: Collection[str]) -> tuple[str, ...]:
        if not (self.weights.perceptual or self.weights.style):
            return ()
        return ("vgg19",) if self.vgg_layers == "edgeconnect" else ("vgg16",)
