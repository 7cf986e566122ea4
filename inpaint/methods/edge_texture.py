"""Edges first, then texture: two GANs whose generators attend to dilated neighbourhoods.

Source: Zhang and Huo, "Image Inpainting based on Dilated Neighborhood Attention" ("DiNA paper"), on the skeleton of
EdgeConnect. Images are in [0, 1] and the mask is 1 in the hole, in the paper as here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint.config.methods import EdgeTextureConfig
from inpaint.config.optim import OptimizerConfig
from inpaint.imaging import Batch, composite
from inpaint.losses import adversarial, perceptual, reconstruction
from inpaint.methods.base import Method, Stage, Terms, Update, Weight
from inpaint.nn.canny import canny, grey, precision_recall
from inpaint.nn.features import LAYERS, FeatureNetwork, paired_features
from inpaint.nn.neighbourhood_attention import NeighbourhoodAttention
from inpaint.nn.patch_discriminator import PatchDiscriminator
from inpaint.nn.reflection import reflection_pad
from inpaint.nn.spectral import conv, spectral_norm

STD = 0.02  # of initial weights, EdgeConnect


class ResidualAttentionBlock(nn.Module):
    """Two reflected convolutions, the first dilated by 2, around the input; then attention around their sum.

    [B, C, H, W] → the same shape. No ReLU after the sums, as in EdgeConnect.

    Args:
        channels: C.
        dilation: of the attention, or None for no attention: exactly EdgeConnect's block.
        spectral: normalise both convolutions, which then have no bias.
        config: heads, kernel, position bias and place of the attention.
    """

    def __init__(self, channels: int, *, dilation: int | None, spectral: bool, config: EdgeTextureConfig) -> None:
        super().__init__()
        build = partial(conv, channels, channels, 3, bias=not spectral, spectral=spectral, std=STD)
        self.first, self.second = build(dilation=2), build()
        self.attends_to_branch = config.attention_place == "branch"
        self.attention: NeighbourhoodAttention | None = None
        if dilation is not None:
            self.attention = NeighbourhoodAttention(
                channels,
                heads=config.heads,
                kernel=config.kernel,
                dilation=dilation,
                position_bias=config.position_bias,
                std=STD,
            )

    def forward(self, features: Tensor) -> Tensor:
        branch = F.relu(F.instance_norm(self.first(reflection_pad(features, 2))))
        branch = F.instance_norm(self.second(reflection_pad(branch, 1)))
        if self.attention is None:
            return features + branch
        if self.attends_to_branch:
            return features + self.attention(branch)
        total = features + branch
        return total + self.attention(total)


class Generator(nn.Module):
    """[B, inputs, 256, 256] → w (256²) → 2w → 4w (64²) → residual attention blocks → 2w → w → [B, outputs, 256, 256].

    The result is not yet activated. Learnable parameters at width 64: edges (3 → 1, spectral norm) 12,881,345, without
    attention 10,761,089; texture (4 → 3) 12,894,851, without 10,774,595.

    Args:
        inputs: channels that are seen.
        outputs: channels that are drawn.
        spectral: normalise all convolutions but the last.
        config: width and attention.
    """

    def __init__(self, inputs: int, outputs: int, *, spectral: bool, config: EdgeTextureConfig) -> None:
        super().__init__()
        w = config.width
        build = partial(conv, bias=True, spectral=spectral, std=STD)
        self.encoder = nn.ModuleList(
            [build(inputs, w, 7), build(w, 2 * w, 4, stride=2, padding=1), build(2 * w, 4 * w, 4, stride=2, padding=1)]
        )
        dilations = config.attention_dilations if config.attention else [None] * len(config.attention_dilations)
        self.middle = nn.Sequential(
            *(ResidualAttentionBlock(4 * w, dilation=d, spectral=spectral, config=config) for d in dilations)
        )
        self.decoder = nn.ModuleList([_up(4 * w, 2 * w, spectral=spectral), _up(2 * w, w, spectral=spectral)])
        self.last = conv(w, outputs, 7, bias=True, spectral=False, std=STD)

    def forward(self, seen: Tensor) -> Tensor:
        features = reflection_pad(seen, 3)
        for layer in self.encoder:
            features = F.relu(F.instance_norm(layer(features)))
        features = self.middle(features)
        for layer in self.decoder:
            features = F.relu(F.instance_norm(layer(features)))
        return self.last(reflection_pad(features, 3))


@dataclass(frozen=True)
class Drawn:
    """What a stage's forward gives to its losses.

    Attributes:
        grey: luma of the true image, [B, 1, H, W].
        edges: its true edges, 0 or 1, [B, 1, H, W].
        predicted_edges: probabilities over the whole image, [B, 1, H, W].
        completed_edges: predicted in the hole, true elsewhere, [B, 1, H, W].
        predicted: the image drawn, [B, 3, H, W]; None in the edge stage.
    """

    grey: Tensor
    edges: Tensor
    predicted_edges: Tensor
    completed_edges: Tensor
    predicted: Tensor | None = None


class EdgeTexture(Method):
    """The DiNA paper's training: edges (Eq. 8 to 10), then texture on frozen edges (Eq. 11 to 15), then, if asked for,
    both generators together at a low rate without the edge discriminator.
    """

    config: EdgeTextureConfig
    frozen = ("vgg",)
    own_scores = ("edge_precision", "edge_recall", "known_edge_precision", "known_edge_recall")

    def __init__(
        self, config: EdgeTextureConfig, steps: Mapping[str, int], features: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(config, steps)
        discriminator = partial(PatchDiscriminator, width=config.discriminator_width, std=STD)
        self.edge_generator = Generator(3, 1, spectral=True, config=config)
        self.edge_discriminator = discriminator(2)
        self.texture_generator = Generator(4 + config.texture_sees_mask, 3, spectral=False, config=config)
        self.texture_discriminator = discriminator(4 if config.texture_condition == "edges" else 3)
        self.vgg: FeatureNetwork | None = next(iter(features.values()), None)

    def stages(self) -> tuple[Stage, ...]:
        config, steps = self.config, self.steps
        edge_weights, texture_weights = config.edge_weights.model_dump(), config.texture_weights.model_dump()
        texture = self._texture_updates(
            texture_weights, ("texture_generator",), config.generator_optimizer, config.discriminator_optimizer
        )
        joint = self._texture_updates(
            texture_weights,
            ("edge_generator", "texture_generator"),
            config.joint_generator_optimizer,
            config.joint_discriminator_optimizer,
        )
        edge = (
            Update(
                "discriminator",
                ("edge_discriminator",),
                self.edge_discriminator_loss,
                adversarial.HALVES,
                config.discriminator_optimizer,
            ),
            Update("generator", ("edge_generator",), self.edge_loss, edge_weights, config.generator_optimizer),
        )
        return (
            Stage("edge", steps["edge"], self.draw_edges, edge),
            Stage("texture", steps["texture"], self.draw_on_frozen_edges, texture),
            Stage("joint", steps["joint"], self.draw_both, joint),
        )

    def _texture_updates(
        self,
        weights: Mapping[str, Weight],
        trains: tuple[str, ...],
        generator_optimizer: OptimizerConfig,
        discriminator_optimizer: OptimizerConfig,
    ) -> tuple[Update, ...]:
        generator = Update("generator", trains, self.texture_loss, weights, generator_optimizer)
        if not self.config.texture_weights.adversarial:
            return (generator,)
        return (
            Update(
                "discriminator",
                ("texture_discriminator",),
                self.texture_discriminator_loss,
                adversarial.HALVES,
                discriminator_optimizer,
            ),
            generator,
        )

    def draw_edges(self, batch: Batch) -> Drawn:
        """Edges of the whole image from its valid part (Eq. 1 to 3); Eq. (3)'s sum is the composite here.

        The printed sum can exceed 1, because the generator draws the valid part too.
        """
        luma = grey(batch.image)
        edges = canny(luma, sigma=self.config.canny_sigma)
        return self._with_edges(luma, edges, batch.mask)

    def draw_on_frozen_edges(self, batch: Batch) -> Drawn:
        """The texture stage's forward: no gradient reaches the edge generator."""
        with torch.no_grad():
            if self.config.texture_edges == "canny":
                luma = grey(batch.image)
                edges = canny(luma, sigma=self.config.canny_sigma)
                drawn = Drawn(luma, edges, edges, edges)
            else:
                drawn = self.draw_edges(batch)
        return self._with_texture(drawn, batch)

    def draw_both(self, batch: Batch) -> Drawn:
        """The joint stage's forward: the texture's loss reaches the edge generator through the edges in the hole."""
        return self._with_texture(self.draw_edges(batch), batch)

    def _with_edges(self, luma: Tensor, edges: Tensor, mask: Tensor) -> Drawn:
        seen = torch.cat((self._holed(luma, mask), edges * (1 - mask), mask), dim=1)
        predicted = torch.sigmoid(self.edge_generator(seen).float())
        return Drawn(luma, edges, predicted, composite(edges, predicted, mask))

    def _with_texture(self, drawn: Drawn, batch: Batch) -> Drawn:
        predicted = self._texture(batch.image, batch.mask, drawn.completed_edges)
        return Drawn(drawn.grey, drawn.edges, drawn.predicted_edges, drawn.completed_edges, predicted)

    def _texture(self, image: Tensor, mask: Tensor, edges: Tensor) -> Tensor:
        seen = [self._holed(image, mask), edges] + [mask] * self.config.texture_sees_mask
        return (torch.tanh(self.texture_generator(torch.cat(seen, dim=1))) + 1) / 2

    def _holed(self, image: Tensor, mask: Tensor) -> Tensor:
        return image * (1 - mask) + self.config.hole_fill * mask

    def edge_discriminator_loss(self, batch: Batch, drawn: Drawn, active: frozenset[str]) -> Terms:
        edges = torch.cat((drawn.edges, drawn.predicted_edges.detach()))
        logits, _ = self.edge_discriminator(torch.cat((self._judged_with(batch, drawn).repeat(2, 1, 1, 1), edges), 1))
        return adversarial.bce_discriminator(*logits.chunk(2))

    def edge_loss(self, batch: Batch, drawn: Drawn, active: frozenset[str]) -> Terms:
        """λ_adv · adversarial + λ_FM · feature matching (Eq. 8)."""
        terms: Terms = {}
        beside = self._judged_with(batch, drawn)
        logits, features = self.edge_discriminator(torch.cat((beside, drawn.predicted_edges), dim=1))
        if "adversarial" in active:
            terms["adversarial"] = adversarial.CROSS_ENTROPY_GENERATOR[self.config.generator_adversarial](logits)
        if "feature_matching" in active:
            with torch.no_grad():
                _, true_features = self.edge_discriminator(torch.cat((beside, drawn.edges), dim=1))
            terms["feature_matching"] = perceptual.feature_matching(features, true_features)
        return terms

    def _judged_with(self, batch: Batch, drawn: Drawn) -> Tensor:
        return drawn.grey if self.config.edge_condition == "full" else self._holed(drawn.grey, batch.mask)

    def texture_discriminator_loss(self, batch: Batch, drawn: Drawn, active: frozenset[str]) -> Terms:
        """One binary cross-entropy: Eq. (15)'s two terms are the same quantity."""
        images = torch.cat((batch.image, drawn.predicted.detach().to(batch.image.dtype)))
        logits, _ = self.texture_discriminator(self._conditioned(images, drawn.completed_edges.detach()))
        return adversarial.bce_discriminator(*logits.chunk(2))

    def texture_loss(self, batch: Batch, drawn: Drawn, active: frozenset[str]) -> Terms:
        """L1, adversarial, perceptual and style terms (Eq. 11)."""
        terms: Terms = {}
        if "l1" in active:
            share = batch.mean_hole() if self.config.l1_norm == "hole" else None
            if share is None:
                terms["l1"] = reconstruction.l1(drawn.predicted, batch.image)
            else:
                terms["l1"] = reconstruction.l1_by_hole(drawn.predicted, batch.image, share)
        if "adversarial" in active:
            logits, _ = self.texture_discriminator(self._conditioned(drawn.predicted, drawn.completed_edges))
            terms["adversarial"] = adversarial.CROSS_ENTROPY_GENERATOR[self.config.generator_adversarial](logits)
        if active & {"perceptual", "style"}:
            terms |= self._seen(batch, drawn.predicted, active)
        return terms

    def _conditioned(self, images: Tensor, edges: Tensor) -> Tensor:
        if self.config.texture_condition == "none":
            return images
        return torch.cat((images, edges.repeat(len(images) // len(edges), 1, 1, 1).to(images.dtype)), dim=1)

    def _seen(self, batch: Batch, predicted: Tensor, active: frozenset[str]) -> Terms:
        """Perceptual term of the whole image, style term of the region that `style_region` names."""
        assert self.vgg is not None, "build_method was given no features, which training with these weights needs"
        layers, terms = LAYERS["edgeconnect"], {}
        region = {"hole": batch.mask, "valid": 1 - batch.mask, "full": None}[self.config.style_region]
        shared = region is None and "style" in active
        if "perceptual" in active or shared:
            names = {*(layers["perceptual"] if "perceptual" in active else ()), *(layers["style"] if shared else ())}
            drawn, true = paired_features(self.vgg, predicted, batch.image, names)
            if "perceptual" in active:
                terms["perceptual"] = perceptual.perceptual(drawn, true, layers["perceptual"])
        if "style" in active:
            if region is not None:
                drawn, true = paired_features(self.vgg, predicted * region, batch.image * region, layers["style"])
            terms["style"] = perceptual.style(drawn, true, layers["style"])
        return terms

    def inpaint(self, image: Tensor, mask: Tensor) -> Tensor:
        self.check_sides(image)
        return self._texture(image, mask, self.complete_edges(image, mask).completed_edges)

    def complete_edges(self, image: Tensor, mask: Tensor) -> Drawn:
        """Edges as they are known when the hole's content is not, and as the edge generator completes them.

        No pixel of the hole is looked at, as in EdgeConnect: in a true image its content would leak into the edges
        beside it, in an emptied one its outline would become an edge.
        """
        luma = grey(image)
        return self._with_edges(luma, canny(luma, 1 - mask, sigma=self.config.canny_sigma), mask)

    def scores(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Precision and recall of the drawn edges against Canny's edges of the true image, each [B].

        In the hole they say what is invented well. Outside it the edges need only be copied: a stage whose `known_`
        curves stay at the share of edge pixels does not learn at all, and its discriminator is too fast.
        """
        true = canny(grey(image), sigma=self.config.canny_sigma)
        drawn = self.complete_edges(image, mask).predicted_edges
        found = {}
        for place, region in (("", mask), ("known_", 1 - mask)):
            precision, recall = precision_recall(drawn, true, region)
            found |= {f"{place}edge_precision": precision, f"{place}edge_recall": recall}
        return found

    def previews(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"edges": self.complete_edges(image, mask).completed_edges}

    def inference_networks(self) -> tuple[str, ...]:
        return ("edge_generator", "texture_generator")


def _up(inputs: int, outputs: int, *, spectral: bool) -> nn.Module:
    """A transposed convolution that doubles the sides."""
    layer = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    nn.init.normal_(layer.weight, 0.0, STD)
    nn.init.zeros_(layer.bias)
    return spectral_norm(layer, eps=1e-12) if spectral else layer
