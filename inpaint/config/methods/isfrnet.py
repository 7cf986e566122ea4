"""ISFRNet's numbers and its prior's, each beside its source; `assumed` marks what the paper does not give."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from inpaint.config.base import Strict
from inpaint.config.methods.base import SMALLEST_PATCH, LossWeights, MethodConfig, Weight
from inpaint.config.optim import Adam, OptimizerConfig

if TYPE_CHECKING:
    from inpaint.config.run import RunConfig


class PSPConfig(Strict):
    """The prior: a published pSp checkpoint, or networks of these sizes that the stage `prior` trains.

    Attributes:
        checkpoint: path or URL of a pSp file; its own tensors tell all sizes.
        sha256: digest that file must have; give it, so that a resumed run cannot meet another prior.
        truncate: pixels at which a larger decoder is cut off instead of pooling its image.
        hole_fill: what the prior's input shows in the hole, in [-1, 1]; as the checkpoint was trained.
        random_noise: draw StyleGAN's noise anew; then the coarse face is no function of the image.
        allow_random: go on with a prior that nothing has trained (tests).
        cache: folder, local or s3://, that keeps the frozen prior's faces as shards. Training reads a face it has had
            before and computes the others; set `data.looks`, so that they come again.
        train: what the stage `prior` moves; pSp's authors train the encoder alone, on a decoder that is there.
    """

    checkpoint: str | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{64}$")
    truncate: int | None = Field(None, ge=8)
    hole_fill: float = Field(1.0, ge=-1, le=1)  # assumed: white, as in the paper's structural model
    random_noise: bool = False  # assumed: the published demonstration draws it; we want a function of the input
    allow_random: bool = False
    cache: str | None = None
    train: Literal["both", "encoder"] = "both"  # assumed; pSp trains the encoder on a published decoder
    image_size: Literal[64, 128, 256] = 256  # pixels the encoder sees, pSp
    width: int = Field(64, ge=1)  # channels of the encoder's first layer, IR-SE-50
    units: tuple[int, int, int, int] = (3, 4, 14, 3)  # IR-SE-50
    code: int = Field(512, ge=1)  # StyleGAN2
    decoder_size: Literal[32, 64, 128, 256, 512, 1024] = 1024  # pixels, the published decoder
    decoder_width: int = Field(512, ge=1)  # most channels of the decoder, StyleGAN2
    decoder_product: int = Field(32768, ge=1)  # most channels × pixels of a side, StyleGAN2
    mapping_layers: int = Field(8, ge=1)  # StyleGAN2

    @model_validator(mode="after")
    def _settings_act(self) -> PSPConfig:
        fields = type(self).model_fields
        of_file = ("sha256", "truncate")
        of_sizes = ("image_size", "width", "units", "code", "decoder_size", "decoder_width", "decoder_product",
                    "mapping_layers", "allow_random")  # fmt: skip
        idle = of_sizes if self.checkpoint else of_file
        for name in idle:
            if getattr(self, name) != fields[name].default:
                reason = "the checkpoint tells it" if self.checkpoint else "there is no psp.checkpoint"
                raise ValueError(f"psp.{name} is set, but {reason}; drop one of them")
        if self.cache and self.random_noise:
            raise ValueError("psp.cache keeps faces, which psp.random_noise draws anew each time; drop one of them")
        return self


class PriorWeights(LossWeights):
    """λ of each term of the prior's own stage, which is not in the paper; pSp's numbers."""

    reconstruction: Weight = 1.0  # pSp, squared error
    perceptual: Weight = 0.8  # pSp, there with LPIPS
    latent: Weight = 0.005  # pSp, length of the codes' offsets
    adversarial: Weight = 0.1  # assumed: as λ2 of IFR; keeps a trained decoder from blurring


class IFRWeights(LossWeights):
    """λ1 and λ2, ISFRNet Eq. (5)."""

    reconstruction: Weight = 1.0  # ISFRNet Eq. (5)
    adversarial: Weight = 0.1  # ISFRNet Eq. (5)


class SFRWeights(LossWeights):
    """λ3 to λ7, ISFRNet Eq. (10), as printed; its sources have perceptual and style the other way round."""

    reconstruction: Weight = 50.0  # ISFRNet Eq. (10)
    perceptual: Weight = 120.0  # ISFRNet Eq. (10); 0.05 in its references [4] and [18]
    style: Weight = 0.05  # ISFRNet Eq. (10); 120 in its references [4] and [18]
    total_variation: Weight = 0.1  # ISFRNet Eq. (10)
    adversarial: Weight = 1.0  # ISFRNet Eq. (10)


class ISFRNetConfig(MethodConfig):
    """ISFRNet: a frozen pSp-StyleGAN prior, identity recovery (IFR), structure refinement (SFR); faces.

    Source: Wang and Shin, "ISFRNet: A Deep Three-stage Identity and Structure Feature Refinement Network", 2023.
    """

    stage_names: ClassVar[tuple[str, ...]] = ("prior", "ifr", "sfr")
    smallest_trained: ClassVar[int] = SMALLEST_PATCH

    name: Literal["isfrnet"] = "isfrnet"
    variant: Literal["full", "psp_ifr", "psp_sfr"] = "full"  # ISFRNet Table 1
    psp: PSPConfig = PSPConfig()
    width: int = Field(64, ge=4)  # channels of IFR's first layer; assumed, Fig. 3 is not in the text
    sfr_width: int = Field(64, ge=4)  # channels of SFR's first level; assumed, Fig. 5 is not in the text
    levels: int = Field(8, ge=2)  # SFR's halvings; assumed: a 1×1 bottleneck at 256
    discriminator_width: int = Field(64, ge=4)  # assumed: the 70-pixel patch classifier
    hole_fill: float = Field(1.0, ge=-1, le=1)  # in [-1, 1]; assumed: white, as in the paper's structural model
    ifr_input: Literal["completed", "raw"] = "completed"  # assumed: a shallow net needs the valid pixels
    weighting: Literal["inverse_ratio", "literal", "none"] = "inverse_ratio"  # assumed scale of ISFRNet Eq. (1)
    reference_ratio: float = Field(0.1, gt=0, le=1)  # hole ratio up to which the skips keep weight 1; assumed
    generator_adversarial: Literal["non_saturating", "minimax"] = "non_saturating"  # assumed; minimax is Eq. (4)
    vgg_input: Literal["raw", "imagenet"] = "imagenet"  # assumed: what VGG-16 was trained with
    prior_weights: PriorWeights = PriorWeights()
    ifr_weights: IFRWeights = IFRWeights()
    sfr_weights: SFRWeights = SFRWeights()
    optimizer: OptimizerConfig = Adam(learning_rate=1e-4)  # ISFRNet section 4.1, every trained network
    prior_optimizer: OptimizerConfig = Adam(learning_rate=1e-4)  # pSp's rate

    @property
    def size_multiple(self) -> int:  # type: ignore[override]
        """SFR halves the sides `levels` times, IFR twice."""
        return 4 if self.variant == "psp_ifr" else 2**self.levels

    @property
    def smallest_side(self) -> int:
        """Instance norm needs more than one pixel of IFR's deepest level."""
        return max(self.size_multiple, 8)

    @model_validator(mode="after")
    def _settings_act(self) -> ISFRNetConfig:
        if self.reference_ratio != 0.1 and (self.weighting != "inverse_ratio" or self.variant == "psp_ifr"):
            raise ValueError("reference_ratio is set, but only weighting inverse_ratio reads it; drop one of them")
        return self

    def check_run(self, run: RunConfig) -> None:
        stages = run.stages
        absent = {"psp_ifr": "sfr", "psp_sfr": "ifr"}.get(self.variant)
        if absent and stages[absent].steps:
            raise ValueError(f"stages.{absent}.steps is not 0, but variant {self.variant} has no {absent}; set it to 0")
        prior = stages["prior"]
        sources = (self.psp.checkpoint, prior.steps, prior.start_from, self.psp.allow_random)
        if not any(sources):
            raise ValueError(
                "isfrnet has no prior; give method.psp.checkpoint, or train one with stages.prior.steps, or take one "
                "from a run with stages.prior.from (method.psp.allow_random: true goes on without, for tests)"
            )
        if self.psp.allow_random and any(sources[:3]):
            raise ValueError("psp.allow_random is set, but the run has a prior; drop it")
        if self.psp.cache and prior.steps:
            raise ValueError(
                "psp.cache keeps the faces of a frozen prior, and stages.prior.steps trains it; train it in a run of "
                "its own and name that in stages.prior.from"
            )
        if self.psp.cache and run.data.looks is None and run.holes.kind != "centre":
            raise ValueError(
                "psp.cache keeps faces, and holes that are drawn anew each epoch bring none again; set data.looks"
            )
        if self.psp.cache and run.training.cuda_graphs:
            raise ValueError("psp.cache looks at each batch on the host, which training.cuda_graphs forbids; drop one")
        if self.psp.checkpoint and prior.start_from:
            raise ValueError("psp.checkpoint and stages.prior.from both name a prior; drop one of them")
        if self.psp.train == "encoder" and not (prior.steps and (self.psp.checkpoint or prior.start_from)):
            raise ValueError(
                "psp.train is encoder, which needs stages.prior.steps, and a decoder from psp.checkpoint or "
                "stages.prior.from"
            )
        if self.variant == "full" and stages["sfr"].steps and not (stages["ifr"].steps or stages["ifr"].start_from):
            raise ValueError(
                "stages.ifr.steps is 0 and stages.ifr.from names no run: sfr would refine what was never trained; give "
                "one of them, or set method.variant: psp_sfr"
            )

    def weight_files(self) -> dict[str, tuple[str, str | None]]:
        return {"method.psp.checkpoint": (self.psp.checkpoint, self.psp.sha256)} if self.psp.checkpoint else {}

    def feature_networks(self, stages: Collection[str]) -> tuple[str, ...]:
        prior, sfr = self.prior_weights, self.sfr_weights
        wanted = {"prior": prior.perceptual, "sfr": sfr.perceptual or sfr.style}
        return ("vgg16",) if any(wanted.get(stage) for stage in stages) else ()
