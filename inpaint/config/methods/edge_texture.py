"""Edge → texture's numbers, each beside its source; `assumed` marks what the paper does not give."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from inpaint.config.methods.base import SMALLEST_PATCH, LossWeights, MethodConfig, Weight
from inpaint.config.optim import OptimizerConfig, Ranger21

if TYPE_CHECKING:
    from inpaint.config.run import RunConfig


class EdgeWeights(LossWeights):
    """λ of each term of the edge generator's loss, DiNA Eq. (8)."""

    adversarial: Weight = 1.0  # DiNA gives none; EdgeConnect
    feature_matching: Weight = 10.0  # DiNA gives none; EdgeConnect


class TextureWeights(LossWeights):
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
    smallest_trained: ClassVar[int] = SMALLEST_PATCH

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
    known_edges: Literal["masked"] = "masked"  # when filling; assumed: hidden pixels have no say (EdgeConnect)
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
        edge, texture, joint = (run.stages[name] for name in self.stage_names)
        edges_known = edge.steps or edge.start_from or joint.start_from
        if texture.steps and not edges_known and self.texture_edges == "predicted":
            raise ValueError(
                "stages.edge.steps is 0 and stages.edge.from names no run: texture would learn from edges that were "
                "never trained; give one of them, or set method.texture_edges: canny"
            )
        for name, known in (("edge", edges_known), ("texture", texture.steps or texture.start_from)):
            if joint.steps and not (known or joint.start_from):
                raise ValueError(
                    f"stages.{name}.steps is 0 and neither stages.{name}.from nor stages.joint.from names a run: joint "
                    "goes on from trained generators; give one of them"
                )

    def feature_networks(self, stages: Collection[str]) -> tuple[str, ...]:
        weighted = self.texture_weights.perceptual or self.texture_weights.style
        return ("vgg19",) if weighted and {"texture", "joint"} & set(stages) else ()
