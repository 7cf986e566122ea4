"""ISNet: two branches of high and low resolution that fill, exchange what they know, and fuse at the end.

Source: Gong et al., "Image Inpainting Based on Interactive Separation Network and Progressive Reconstruction
Algorithm", IEEE Access 2022. The paper's M is 1 where pixels are valid; here, as everywhere, 1 is the hole, and
`ISNet.inpaint` is where the two meet: the generator sees image · (1 - mask) and never the mask itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint.config.methods import ISNetConfig
from inpaint.imaging import Batch
from inpaint.losses import adversarial, perceptual, reconstruction
from inpaint.methods.base import Method, Stage, Terms, Update
from inpaint.nn.features import LAYERS, FeatureNetwork, paired_features
from inpaint.nn.fused import Activation, activated
from inpaint.nn.patch_discriminator import PatchDiscriminator
from inpaint.nn.reflection import reflection_pad
from inpaint.nn.residual import ResidualBlock
from inpaint.nn.spectral import conv, make_orthogonal

PHASES = 4
leaky = partial(F.leaky_relu, negative_slope=0.2)


class Stem(nn.Module):
    """Act of two convolutions plus a 1×1 skip without norm: [B, 3, H, W] → 64 → [B, width, H, W]."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.first = conv(3, 2 * width, 3, padding=1)
        self.second = conv(2 * width, width, 3, padding=1)
        self.skip = conv(3, width, 1, spectral=False)

    def forward(self, image: Tensor) -> Tensor:
        act, skip = self.activation, self.skip(image)
        return activated(self.second, activated(self.first, image, act), act, residual=skip)


class SubPixels(nn.Module):
    """`times` sub-pixel convolutions: [B, C, H, W] → C/2 at 2H → C/4 at 4H → ..., tanh after each."""

    def __init__(self, channels: int, times: int) -> None:
        super().__init__()
        sizes = [channels // 2**i for i in range(times)]
        self.convs = nn.ModuleList(conv(size, 2 * size, 3, padding=1) for size in sizes)

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.convs:
            features = F.pixel_shuffle(activated(layer, features, torch.tanh_), 2)
        return features


class Enlarge(nn.Module):
    """Bilinear enlargement by `factor`, channels kept: the up-sampler of the Base variants."""

    def __init__(self, factor: int, before: Activation | None = None) -> None:
        super().__init__()
        self.factor, self.before = factor, before

    def forward(self, features: Tensor) -> Tensor:
        features = features if self.before is None else self.before(features)
        return F.interpolate(features, scale_factor=self.factor, mode="bilinear", align_corners=False)


class Phase(nn.Module):
    """Inpainting, interaction, aggregation: one phase of the two branches.

    high [B, w, H, W] → the same; low [B, w·2^(n-1), H/2^(n-1), W/2^(n-1)] (absent in phase 1) → [B, low_outputs,
    H/2^n, W/2^n].

    Args:
        number: n, from 1 to 4.
        width: w, channels of the high-resolution branch.
        low_outputs: channels of the low-resolution branch afterwards.
        blocks: residual blocks per branch.
        up: brings the low branch to full size, with the channels it then has; None in phase 1.
        activation: after every convolution.
    """

    def __init__(
        self,
        number: int,
        *,
        width: int,
        low_outputs: int,
        blocks: int,
        up: tuple[nn.Module, int] | None,
        activation: Activation,
    ) -> None:
        super().__init__()
        low, wide = width * 2 ** (number - 1), width * 2**number
        self.activation = activation
        self.high_blocks = nn.Sequential(*(ResidualBlock(width, activation=activation) for _ in range(blocks)))
        self.down = nn.ModuleList(
            conv(width * 2**i, width * 2 ** (i + 1), 3, stride=2, padding=1) for i in range(number)
        )
        if up is None:
            self.high_aggregation = conv(width, width, 3, padding=1)
            self.low_aggregation = conv(wide, low_outputs, 3, padding=1)
            return
        self.up, up_channels = up
        self.low_blocks = nn.Sequential(
            *(ResidualBlock(low, dilation=2, activation=activation) for _ in range(blocks))
        )
        self.low_down = conv(low, wide, 3, stride=2, padding=1)
        self.high_aggregation = conv(width + up_channels, width, 3, padding=1)
        self.low_aggregation = conv(2 * wide, low_outputs, 3, padding=1)

    def forward(self, high: Tensor, low: Tensor | None) -> tuple[Tensor, Tensor]:
        act = self.activation
        high = self.high_blocks(high)
        from_high = high
        for layer in self.down:
            from_high = activated(layer, from_high, act)
        if low is None:
            return activated(self.high_aggregation, high, act), activated(self.low_aggregation, from_high, act)
        low = self.low_blocks(low)
        to_high = torch.cat((high, self.up(low)), dim=1)
        to_low = torch.cat((from_high, activated(self.low_down, low, act)), dim=1)
        return activated(self.high_aggregation, to_high, act), activated(self.low_aggregation, to_low, act)


class Generator(nn.Module):
    """ISNet and its ablations Base and Base+FF (Table 7).

    Masked image [B, 3, 256, 256] → high 32 (256²) beside low 64 (128²) → 128 (64²) → 256 (32²) → 512 (16²) → fusion at
    256² → [B, 3, 256, 256] in [0, 1]. Learnable parameters at width 32: ISNet 19,908,259 / 21,530,275 / 23,152,291 /
    24,774,307 with 1 to 4 blocks, Base 16,516,995, Base+FF 14,610,083.

    Table 7 is no one-factor ablation: from Base+FF to ISNet the up-sampler, the activation, the last phase's width and
    the head all change. In Base, the low branch of the last phase reaches no output, so it never gets a gradient.
    """

    def __init__(self, *, design: str = "isnet", blocks: int = 4, width: int = 32) -> None:
        super().__init__()
        self.design = design
        activation = torch.tanh_ if design == "isnet" else leaky  # in place: it only ever sees a fresh result
        self.activation: Activation = activation
        self.stem = Stem(width, activation)
        self.phases = nn.ModuleList(
            Phase(
                n,
                width=width,
                low_outputs=width * 2 ** (n - 1 if design == "base_ff" and n == PHASES else n),
                blocks=blocks,
                up=self._up(n, width),
                activation=activation,
            )
            for n in range(1, PHASES + 1)
        )
        deepest = width * 2**PHASES
        if design == "isnet":
            self.fusion_up: nn.Module = SubPixels(deepest, PHASES)
            self.head = nn.ModuleList(
                [conv(2 * width, width, 7, padding=3, bias=True), conv(width, 3, 3, padding=1, bias=True)]
            )
        elif design == "base_ff":
            self.fusion_up = Enlarge(2**PHASES)
            self.head = nn.ModuleList(
                [
                    conv(width + deepest // 2, width, 7, padding=3, bias=True),
                    conv(width, 3, 3, padding=1, bias=True, spectral=False),
                ]
            )
        else:
            self.head = nn.ModuleList([conv(width, 3, 1, bias=True, spectral=False)])

    def _up(self, number: int, width: int) -> tuple[nn.Module, int] | None:
        if number == 1:
            return None
        low = width * 2 ** (number - 1)
        if self.design == "isnet":
            return SubPixels(low, number - 1), width
        return Enlarge(2 ** (number - 1), before=leaky if self.design == "base" else None), low

    def forward(self, masked: Tensor) -> Tensor:
        high, low = self.stem(masked), None
        for phase in self.phases:
            high, low = phase(high, low)
        drawn = high if self.design == "base" else torch.cat((high, self.fusion_up(low)), dim=1)
        for layer in self.head[:-1]:
            drawn = activated(layer, drawn, self.activation)
        return (torch.tanh(self.head[-1](drawn)) + 1) / 2


class UNetLike(nn.Module):
    """EdgeConnect's completion network, widened: the comparison of Table 7. 24,403,715 parameters at width 64.

    Masked image [B, 3, 256, 256] → 64 (256²) → 128 → 256 → 512 (32²) → residual blocks of dilation 2 → 256 → 128 → 64
    (256²) → [B, 3, 256, 256] in [0, 1]. Biased convolutions without spectral norm; instance norm without affine.
    """

    def __init__(self, *, blocks: int = 4, width: int = 64) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width, 8 * width]
        plain = partial(conv, bias=True, spectral=False)
        self.first = plain(3, width, 7)
        self.encoder = nn.ModuleList(
            plain(i, o, 4, stride=2, padding=1) for i, o in pairwise(sizes)
        )
        self.middle = nn.Sequential(
            *(ResidualBlock(sizes[-1], dilation=2, spectral=False, bias=True) for _ in range(blocks))
        )
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 4, stride=2, padding=1) for i, o in pairwise(reversed(sizes))
        )
        for layer in self.decoder:
            nn.init.normal_(layer.weight, 0.0, 0.001)
            nn.init.zeros_(layer.bias)
        self.last = plain(width, 3, 7)

    def forward(self, masked: Tensor) -> Tensor:
        features = F.relu(F.instance_norm(self.first(reflection_pad(masked, 3))))
        for layer in self.encoder:
            features = F.relu(F.instance_norm(layer(features)))
        features = self.middle(features)
        for layer in self.decoder:
            features = F.relu(F.instance_norm(layer(features)))
        return (torch.tanh(self.last(reflection_pad(features, 3))) + 1) / 2


class ISNet(Method):
    """ISNet's training: one stage, a hinge GAN with L1, perceptual, style and feature-matching terms (Eq. 3 to 5)."""

    config: ISNetConfig

    def __init__(self, config: ISNetConfig, steps: Mapping[str, int], features: Mapping[str, nn.Module]) -> None:
        super().__init__(config, steps)
        if config.design == "unet":
            self.generator: nn.Module = UNetLike(blocks=config.blocks, width=2 * config.width)
        else:
            self.generator = Generator(design=config.design, blocks=config.blocks, width=config.width)
        if config.initialisation == "orthogonal":
            make_orthogonal(self.generator)
        self.discriminator = PatchDiscriminator(width=config.discriminator_width)
        self.vgg: FeatureNetwork | None = next(iter(features.values()), None)
        self.layers = LAYERS[config.vgg_layers]

    frozen = ("vgg",)

    def stages(self) -> tuple[Stage, ...]:
        weights = self.config.weights
        discriminator = Update(
            name="discriminator",
            trains=("discriminator",),
            loss=self.discriminator_loss,
            weights=adversarial.HALVES,
            optimizer=self.config.discriminator_optimizer,
        )
        generator = Update(
            name="generator",
            trains=("generator",),
            loss=self.generator_loss,
            weights=weights.model_dump(),
            optimizer=self.config.generator_optimizer,
        )
        adversarial_training = weights.adversarial > 0 or weights.feature_matching > 0
        updates = (discriminator, generator) if adversarial_training else (generator,)
        return (Stage("gan", self.steps["gan"], self.draw, updates),)

    def draw(self, batch: Batch) -> Tensor:
        """The raw prediction for a batch; every loss uses it as it is, without compositing (section 1)."""
        return self.inpaint(batch.image, batch.mask)

    def discriminator_loss(self, batch: Batch, predicted: Tensor, active: frozenset[str]) -> Terms:
        logits, _ = self.discriminator(torch.cat((batch.image, predicted.detach().to(batch.image.dtype))))
        real, filled = logits.chunk(2)
        return adversarial.DISCRIMINATOR[self.config.gan_loss](real, filled)

    def generator_loss(self, batch: Batch, predicted: Tensor, active: frozenset[str]) -> Terms:
        terms: Terms = {}
        if "l1" in active:
            terms["l1"] = self._l1(batch, predicted)
        if active & {"adversarial", "feature_matching"}:
            terms |= self._judged(batch, predicted, active)
        if active & {"perceptual", "style"}:
            terms |= self._seen(batch, predicted, active)
        return terms

    def _l1(self, batch: Batch, predicted: Tensor) -> Tensor:
        if self.config.l1_norm == "none":
            return reconstruction.l1(predicted, batch.image)
        return reconstruction.l1_by_hole(predicted, batch.image, batch.mean_hole())

    def _judged(self, batch: Batch, predicted: Tensor, active: frozenset[str]) -> Terms:
        terms: Terms = {}
        logits, features = self.discriminator(predicted)
        if "adversarial" in active:
            literal = self.config.gan_loss == "hinge" and self.config.generator_adversarial == "neg_hinge"
            loss = adversarial.negative_hinge_generator if literal else adversarial.GENERATOR[self.config.gan_loss]
            terms["adversarial"] = loss(logits)
        if "feature_matching" in active:
            with torch.no_grad():
                _, true_features = self.discriminator(batch.image)
            terms["feature_matching"] = perceptual.feature_matching(features, true_features)
        return terms

    def _seen(self, batch: Batch, predicted: Tensor, active: frozenset[str]) -> Terms:
        assert self.vgg is not None, "build_method was given no features, which training with these weights needs"
        wanted = {term: self.layers[term] for term in ("perceptual", "style") if term in active}
        drawn, true = paired_features(self.vgg, predicted, batch.image, {n for names in wanted.values() for n in names})
        losses = {"perceptual": perceptual.perceptual, "style": perceptual.style}
        return {term: losses[term](drawn, true, names) for term, names in wanted.items()}

    def inpaint(self, image: Tensor, mask: Tensor) -> Tensor:
        self.check_sides(image)
        return self.generator(image * (1 - mask))

    def inference_networks(self) -> tuple[str, ...]:
        return ("generator",)
