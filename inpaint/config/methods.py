"""The numbers of the five papers, each beside its source. `assumed` marks what a paper does not give."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from inpaint.config.base import Strict
from inpaint.config.dilations import largest_gap, leaves_gaps
from inpaint.config.optim import Adam, OptimizerConfig, Ranger21

if TYPE_CHECKING:
    from inpaint.config.run import RunConfig

Weight = Annotated[float, Field(ge=0)]


class MethodConfig(Strict):
    """What every method's settings share.

    Attributes:
        stage_names: the stages of its training, in order.
        size_multiple: both sides of an image must be a multiple of this.
        hole_shapes: `free` accepts any mask, `centre` only the centred square the method was built for.
    """

    stage_names: ClassVar[tuple[str, ...]]
    size_multiple: ClassVar[int]
    hole_shapes: ClassVar[Literal["free", "centre"]] = "free"

    def feature_networks(self) -> tuple[str, ...]:
        """Names of the frozen feature networks its losses need with the present weights (`vgg19`, `vgg16`)."""
        return ()

    @property
    def smallest_side(self) -> int:
        """Pixels of the smallest square it can take."""
        return self.size_multiple

    def weight_files(self) -> dict[str, tuple[str, str | None]]:
        """Files of published weights that it cannot be built without: setting → (path or URL, SHA-256 or None)."""
        return {}

    def check_run(self, run: RunConfig) -> None:
        """Refuse what this method cannot train with beyond its grid and hole shape; ValueError names the setting."""


class ISNetWeights(Strict):
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

    def feature_networks(self) -> tuple[str, ...]:
        if not (self.weights.perceptual or self.weights.style):
            return ()
        return ("vgg19",) if self.vgg_layers == "edgeconnect" else ("vgg16",)


class GatedTwoStageWeights(Strict):
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

    def feature_networks(self) -> tuple[str, ...]:
        return ("vgg16",) if self.weights.perceptual else ()


class ContextEncoderWeights(Strict):
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


class EdgeWeights(Strict):
    """λ of each term of the edge generator's loss, DiNA Eq. (8)."""

    adversarial: Weight = 1.0  # DiNA gives none; EdgeConnect
    feature_matching: Weight = 10.0  # DiNA gives none; EdgeConnect


class TextureWeights(Strict):
    """λ of each term of the texture generator's loss, DiNA Eq. (11); DiNA gives none: EdgeConnect's configuration."""

    l1: Weight = 1.0  # EdgeConnect
    adversarial: Weight = 0.1  # EdgeConnect
    perceptual: Weight = 0.1  # EdgeConnect
    style: Weight = 250.0  # EdgeConnect


class EdgeTextureConfig(MethodConfig):
    """Edges, then texture, by generators with dilated neighbourhood attention ("DiNA paper").

    Source: Zhang and Huo, "Image Inpainting based on Dilated Neighborhood Attention"; where it is silent, EdgeConnect.
    """

    stage_names: ClassVar[tuple[str, ...]] = ("edge", "texture", "joint")
    size_multiple: ClassVar[int] = 4

    name: Literal["edge_texture"] = "edge_texture"
    width: int = Field(64, ge=4)  # channels after the first layer, EdgeConnect
    discriminator_width: int = Field(64, ge=4)  # channels after the first layer, EdgeConnect
    attention: bool = True  # False = exactly EdgeConnect's generators, the baseline of the ablation
    attention_place: Literal["post", "branch"] = "post"  # assumed: after the sum; DiNA's Fig. 2 is not in the text
    attention_dilations: list[Annotated[int, Field(ge=1)]] = Field(
        [2, 8, 2, 8, 2, 8, 2, 8], min_length=1
    )  # one per residual block (DiNA: eight blocks); assumed: near and far alternate as in DiNAT, 8 · 7 fits 64
    heads: int = Field(8, ge=1)  # assumed: 32 channels each, as in every published DiNAT
    kernel: int = Field(7, ge=3)  # assumed: DiNAT's
    position_bias: bool = True  # DiNA Eq. (5)
    hole_fill: Literal[0, 1] = 0  # DiNA Eq. (1) multiplies only; EdgeConnect paints holes white
    texture_sees_mask: bool = False  # DiNA Eq. (4) gives the texture generator no mask
    edge_condition: Literal["full", "masked"] = "full"  # grey image beside the edges; EdgeConnect, DiNA says masked
    texture_condition: Literal["edges", "none"] = "edges"  # DiNA Eq. (12); EdgeConnect's code judges RGB alone
    texture_edges: Literal["predicted", "canny"] = "predicted"  # DiNA Eq. (4); canny is EdgeConnect's first phase
    known_edges: Literal["masked", "whole"] = "masked"  # when filling; assumed: hidden pixels have no say (EdgeConnect)
    canny_sigma: float = Field(2.0, gt=0)  # pixels, DiNA section 4.1
    l1_norm: Literal["hole", "none"] = "hole"  # EdgeConnect divides by the hole share; DiNA prints plain L1
    generator_adversarial: Literal["non_saturating", "minimax"] = "non_saturating"  # EdgeConnect; DiNA Eq. (9) minimax
    style_region: Literal["hole", "valid", "full"] = "hole"  # EdgeConnect; DiNA Eq. (14)'s tilde would mean valid
    edge_weights: EdgeWeights = EdgeWeights()
    texture_weights: TextureWeights = TextureWeights()
    generator_optimizer: OptimizerConfig = Ranger21(learning_rate=1e-4)  # DiNA section 4.1
    discriminator_optimizer: OptimizerConfig = Ranger21(learning_rate=1e-5)  # assumed: 0.1 of it, EdgeConnect
    joint_generator_optimizer: OptimizerConfig = Ranger21(learning_rate=1e-6)  # EdgeConnect's last phase; not in DiNA
    joint_discriminator_optimizer: OptimizerConfig = Ranger21(learning_rate=1e-7)  # assumed: 0.1 of it

    @model_validator(mode="after")
    def _attention_fits(self) -> EdgeTextureConfig:
        if not self.attention:
            usual = type(self).model_fields
            for setting in ("attention_place", "heads", "kernel", "position_bias"):
                if getattr(self, setting) != usual[setting].default:
                    raise ValueError(f"{setting} is set, but attention is false; drop one of them")
            return self
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} is even; dilated neighbourhood attention needs an odd one")
        if 4 * self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide the {4 * self.width} channels of width {self.width}")
        return self

    @property
    def smallest_side(self) -> int:
        """A window of the attention must fit the map, which has a quarter of the image's sides."""
        return 4 * self.kernel * max(self.attention_dilations) if self.attention else 12

    def check_run(self, run: RunConfig) -> None:
        side, span = run.data.image_size // 4, self.kernel * max(self.attention_dilations)
        if self.attention and span > side:
            raise ValueError(
                f"data.image_size {run.data.image_size} gives {self.name} a {side}×{side} map, smaller than kernel "
                f"{self.kernel} × dilation {max(self.attention_dilations)} = {span}; use {4 * span} or more, or "
                "smaller method.attention_dilations"
            )
        stages = run.stages
        if (
            stages["texture"].steps
            and not stages["edge"].steps
            and self.texture_edges == "predicted"
            and not (stages["edge"].start_from or stages["texture"].start_from)
        ):
            raise ValueError(
                "stages.edge.steps is 0 and stages.edge.from names no run: texture would learn from edges that were "
                "never trained; give one of them, or set method.texture_edges: canny"
            )

    def feature_networks(self) -> tuple[str, ...]:
        return ("vgg19",) if self.texture_weights.perceptual or self.texture_weights.style else ()


class PSPConfig(Strict):
    """The prior: a published pSp checkpoint, or networks of these sizes that the stage `prior` trains.

    Attributes:
        checkpoint: path or URL of a pSp file; its own tensors tell all sizes.
        sha256: digest that file must have; give it, so that a resumed run cannot meet another prior.
        truncate: pixels at which a larger decoder is cut off instead of pooling its image.
        hole_fill: what the prior's input shows in the hole, in [-1, 1]; as the checkpoint was trained.
        random_noise: draw StyleGAN's noise anew; then the coarse face is no function of the image.
        allow_random: go on with a prior that nothing has trained (tests).
        train: what the stage `prior` moves; pSp's authors train the encoder alone, on a decoder that is there.
    """

    checkpoint: str | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{64}$")
    truncate: int | None = Field(None, ge=8)
    hole_fill: float = Field(1.0, ge=-1, le=1)  # assumed: white, as in the paper's structural model
    random_noise: bool = False  # assumed: the published demonstration draws it; we want a function of the input
    allow_random: bool = False
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
        return self


class PriorWeights(Strict):
    """λ of each term of the prior's own stage, which is not in the paper; pSp's numbers."""

    reconstruction: Weight = 1.0  # pSp, squared error
    perceptual: Weight = 0.8  # pSp, there with LPIPS
    latent: Weight = 0.005  # pSp, length of the codes' offsets
    adversarial: Weight = 0.1  # assumed: as λ2 of IFR; keeps a trained decoder from blurring


class IFRWeights(Strict):
    """λ1 and λ2, ISFRNet Eq. (5)."""

    reconstruction: Weight = 1.0  # ISFRNet Eq. (5)
    adversarial: Weight = 0.1  # ISFRNet Eq. (5)


class SFRWeights(Strict):
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
        if self.psp.checkpoint and prior.start_from:
            raise ValueError("psp.checkpoint and stages.prior.from both name a prior; drop one of them")
        if self.psp.train == "encoder" and not (prior.steps and (self.psp.checkpoint or prior.start_from)):
            raise ValueError(
                "psp.train is encoder, which needs stages.prior.steps, and a decoder from psp.checkpoint or "
                "stages.prior.from"
            )
        if (
            self.variant == "full"
            and stages["sfr"].steps
            and not stages["ifr"].steps
            and not (stages["ifr"].start_from or stages["sfr"].start_from)
        ):
            raise ValueError(
                "stages.ifr.steps is 0 and stages.ifr.from names no run: sfr would refine what was never trained; give "
                "one of them, or set method.variant: psp_sfr"
            )

    def weight_files(self) -> dict[str, tuple[str, str | None]]:
        return {"method.psp.checkpoint": (self.psp.checkpoint, self.psp.sha256)} if self.psp.checkpoint else {}

    def feature_networks(self) -> tuple[str, ...]:
        seen = (self.prior_weights.perceptual, self.sfr_weights.perceptual, self.sfr_weights.style)
        return ("vgg16",) if any(seen) else ()


AnyMethod = Annotated[
    ISNetConfig | GatedTwoStageConfig | ContextEncoderConfig | EdgeTextureConfig | ISFRNetConfig,
    Field(discriminator="name"),
]
