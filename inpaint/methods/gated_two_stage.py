"""Gated two-stage network: a coarse fill with attention I, refined by an attention branch and a hybrid dilated one.

Source: the paper on two-stage completion with gated convolution, hybrid dilated convolution (HDC), attention mechanisms
I and II and SN-PatchGAN ("HDC paper"). White is the paper's hole, 1 in the mask; the hole of every input is painted
white and the mask rides along as a fourth channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint.config.methods import GatedTwoStageConfig
from inpaint.imaging import Batch, composite
from inpaint.losses import adversarial, perceptual, reconstruction
from inpaint.methods.base import Method, Stage, Terms, Update
from inpaint.nn.contextual_attention import ContextualAttention
from inpaint.nn.features import LAYERS, FeatureNetwork, paired_features
from inpaint.nn.gated import GatedConv, UpGatedConv
from inpaint.nn.self_attention import SelfAttention
from inpaint.nn.spectral import spectral_norm

SLOPE = 0.2
Conv = Callable[..., GatedConv]


def gated_conv(config: GatedTwoStageConfig) -> tuple[Conv, Conv]:
    """`GatedConv` and `UpGatedConv` of the activation and gating that the settings ask for."""
    style = {"activation": config.activation, "gated": config.gated}
    return partial(GatedConv, **style), partial(UpGatedConv, **style)


def rgb_layer(inputs: int, config: GatedTwoStageConfig) -> GatedConv:
    """The last layer of a decoder: no activation before the gate; `(tanh + 1) / 2` follows."""
    return GatedConv(inputs, 3, activation="none", gated=config.gated)


class Coarse(nn.Module):
    """Table I: [B, 4, 256, 256] → c → 2c (128²) → 4c (64²), dilated, attention I → 2c (128²) → c, c/2 (256²) → RGB.

    2,935,942 parameters at c = 32. The rates 2, 4, 8, 16 break the HDC rule; Table I prints them, and the text claims
    HDC for the refinement only.
    """

    def __init__(self, config: GatedTwoStageConfig) -> None:
        super().__init__()
        conv, up = gated_conv(config)
        c = config.width
        self.encoder = nn.Sequential(
            conv(4, c, 5),
            conv(c, 2 * c, stride=2),
            conv(2 * c, 2 * c),
            conv(2 * c, 4 * c, stride=2),
            conv(4 * c, 4 * c),
            conv(4 * c, 4 * c),
            *(conv(4 * c, 4 * c, dilation=rate) for rate in config.coarse_dilations),
            conv(4 * c, 4 * c),
            conv(4 * c, 4 * c),
        )
        self.attention: ContextualAttention | None = None
        if config.uses_contextual():
            self.attention = ContextualAttention(4 * c, **config.contextual.model_dump())
        self.decoder = nn.Sequential(
            up(4 * c, 2 * c), conv(2 * c, 2 * c), up(2 * c, c), conv(c, c // 2), rgb_layer(c // 2, config)
        )

    def forward(self, holed: Tensor, mask: Tensor) -> Tensor:
        """The first fill, [B, 3, H, W] in [0, 1]."""
        features = self.encoder(torch.cat((holed, mask), dim=1))
        if self.attention is not None:
            features = self.attention(features, mask)
        return (torch.tanh(self.decoder(features)) + 1) / 2


def branch_head(config: GatedTwoStageConfig) -> list[nn.Module]:
    """The first four layers of both branches, Tables II and III: [B, 4, 256, 256] → c → c, 2c (128²) → 2c (64²)."""
    conv, _ = gated_conv(config)
    c = config.width
    return [conv(4, c, 5), conv(c, c, stride=2), conv(c, 2 * c), conv(2 * c, 2 * c, stride=2)]


class Refinement(nn.Module):
    """Tables II to IV: two branches, [B, 4, 256, 256] → 4c (64²) each, joined → 4c → 2c (128²) → c, c/2 (256²) → RGB.

    4,102,759 parameters at c = 32.
    """

    def __init__(self, config: GatedTwoStageConfig) -> None:
        super().__init__()
        conv, up = gated_conv(config)
        c = config.width
        self.before_attention = nn.Sequential(*branch_head(config), conv(2 * c, 4 * c), conv(4 * c, 4 * c))
        self.attention: SelfAttention | None = None
        if config.uses_self_attention():
            self.attention = SelfAttention(4 * c, reduction=config.self_attention.reduction)
        self.after_attention = nn.Sequential(conv(4 * c, 4 * c), conv(4 * c, 4 * c))
        channels = [2 * c, *[4 * c] * len(config.refine_dilations)]
        dilated = zip(pairwise(channels), config.refine_dilations, strict=True)
        self.dilated = nn.Sequential(*branch_head(config), *(conv(i, o, dilation=rate) for (i, o), rate in dilated))
        # Table IV prints stride 2 for the first layer, which keeps 64×64: it is 1.
        self.decoder = nn.Sequential(
            conv(8 * c, 4 * c),
            conv(4 * c, 4 * c),
            up(4 * c, 2 * c),
            conv(2 * c, 2 * c),
            up(2 * c, c),
            conv(c, c // 2),
            rgb_layer(c // 2, config),
        )

    def forward(self, completed: Tensor, mask: Tensor) -> Tensor:
        """The second fill from the first one's composite, [B, 3, H, W] in [0, 1]."""
        seen = torch.cat((completed, mask), dim=1)
        attended = self.before_attention(seen)
        if self.attention is not None:
            attended = self.attention(attended)
        both = torch.cat((self.dilated(seen), self.after_attention(attended)), dim=1)
        return (torch.tanh(self.decoder(both)) + 1) / 2


class PatchCritic(nn.Module):
    """SN-PatchGAN: [B, 4, 256, 256] → w (128²) → 2w (64²) → 4w (32², 16², 8², 4²), one score per element.

    5,946,816 parameters at w = 64. The last layer is linear, because the hinge needs scores on both sides.

    Source: HDC paper, Fig. 8, which gives no sizes; those of free-form gated convolution are taken.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [4, width, 2 * width, *[4 * width] * 4]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(i, o, 5, stride=2, padding=2)) for i, o in pairwise(sizes)
        )

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        features = torch.cat((image, mask), dim=1)
        for layer in self.layers[:-1]:
            features = F.leaky_relu(layer(features), SLOPE)
        return self.layers[-1](features)


@dataclass(frozen=True)
class Drawn:
    """Both fills over the whole image, [B, 3, H, W], and the refined one composited with the known pixels."""

    coarse: Tensor
    refined: Tensor
    completed: Tensor


class GatedTwoStage(Method):
    """Its training: one stage, both networks under one generator update, SN-PatchGAN hinge (Eq. 11 to 16).

    L1 and the perceptual loss see the raw fills, the critic the completed image. The refinement's gradient flows into
    the coarse network through the composite.
    """

    config: GatedTwoStageConfig
    frozen = ("vgg",)

    def __init__(
        self, config: GatedTwoStageConfig, steps: Mapping[str, int], features: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(config, steps)
        self.coarse = Coarse(config)
        self.refinement = Refinement(config)
        self.discriminator = PatchCritic(config.discriminator_width)
        self.vgg: FeatureNetwork | None = next(iter(features.values()), None)

    def stages(self) -> tuple[Stage, ...]:
        discriminator = Update(
            name="discriminator",
            trains=("discriminator",),
            loss=self.discriminator_loss,
            weights=adversarial.HALVES,
            optimizer=self.config.discriminator_optimizer,
        )
        generator = Update(
            name="generator",
            trains=("coarse", "refinement"),
            loss=self.generator_loss,
            weights=self.config.weights.model_dump(),
            optimizer=self.config.generator_optimizer,
        )
        updates = (discriminator, generator) if self.config.weights.adversarial else (generator,)
        return (Stage("joint", self.steps["joint"], self.draw, updates),)

    def draw(self, batch: Batch) -> Drawn:
        """Both fills of a batch; what the image holds inside the hole is painted white first."""
        image, mask = batch.image, batch.mask
        self.check_sides(image)
        coarse = self.coarse(composite(image, torch.ones_like(image), mask), mask)
        refined = self.refinement(composite(image, coarse.to(image.dtype), mask), mask)
        return Drawn(coarse, refined, composite(image, refined.to(image.dtype), mask))

    def discriminator_loss(self, batch: Batch, drawn: Drawn, active: frozenset[str]) -> Terms:
        images = torch.cat((batch.image, drawn.completed.detach()))
        real, filled = self.discriminator(images, torch.cat((batch.mask, batch.mask))).chunk(2)
        return adversarial.hinge_discriminator(real, filled)

    def generator_loss(self, batch: Batch, drawn: Drawn, active: frozenset[str]) -> Terms:
        terms: Terms = {}
        if "l1_coarse" in active:
            terms["l1_coarse"] = reconstruction.l1(drawn.coarse, batch.image)
        if "l1_refined" in active:
            terms["l1_refined"] = reconstruction.l1(drawn.refined, batch.image)
        if "perceptual" in active:
            terms["perceptual"] = self._perceptual(batch, drawn)
        if "adversarial" in active:
            terms["adversarial"] = adversarial.hinge_generator(self.discriminator(drawn.completed, batch.mask))
        return terms

    def _perceptual(self, batch: Batch, drawn: Drawn) -> Tensor:
        assert self.vgg is not None, "build_method was given no features, which training with these weights needs"
        layers = LAYERS["pconv"]["perceptual"]
        refined, true = paired_features(self.vgg, drawn.refined, batch.image, layers)
        return perceptual.perceptual(refined, true, layers)

    def inpaint(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.draw(Batch(image, mask)).refined

    def inference_networks(self) -> tuple[str, ...]:
        return ("coarse", "refinement")

    def previews(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"coarse": composite(image, self.draw(Batch(image, mask)).coarse.to(image.dtype), mask)}
