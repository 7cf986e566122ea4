"""Context encoder: one code vector for the whole image, two discriminators, and losses that join one after another.

Source: the paper on an improved context encoder with a multi-scale discriminator ("CE paper"). Its networks work in
[-1, 1] and never see a mask; `to_signed` and `from_signed` are where that range meets the product's [0, 1]. The hole is
always the centred square of half the image's side: the decoder draws that square and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint.config.methods import ContextEncoderConfig
from inpaint.errors import ShapeError
from inpaint.imaging import Batch, composite, from_signed, to_signed
from inpaint.losses import adversarial, reconstruction
from inpaint.methods.base import Method, Stage, Terms, Update, Weight
from inpaint.nn.batch_norm import GlobalBatchNorm

SLOPE = 0.2
REDUCTION = 32  # of the sides before the bottleneck: five halvings
STD = 0.02  # of initial weights, DCGAN


class Encoder(nn.Module):
    """[B, 3, 128, 128] → w 64², pool 32² → 2w 16², pool 8² → 4w (1×1) → 8w 4² → code 1².

    Five convolutions with batch norm and LeakyReLU, max-pooling after the first two (CE text). 35,041,984 parameters.
    """

    def __init__(self, config: ContextEncoderConfig) -> None:
        super().__init__()
        w, side = config.width, config.image_size // REDUCTION
        self.layers = nn.Sequential(
            *_down(3, w, nn.LeakyReLU(SLOPE)),
            nn.MaxPool2d(2),
            *_down(w, 2 * w, nn.LeakyReLU(SLOPE)),
            nn.MaxPool2d(2),
            *_down(2 * w, 4 * w, nn.LeakyReLU(SLOPE), kernel=1, stride=1, padding=0),
            *_down(4 * w, 8 * w, nn.LeakyReLU(SLOPE)),
            *_down(8 * w, config.code, nn.LeakyReLU(SLOPE), kernel=side, stride=1, padding=0),
        )

    def forward(self, holed: Tensor) -> Tensor:
        return self.layers(holed)


class Decoder(nn.Module):
    """[B, code, 1, 1] → 8w 4² → 4w 8² → 2w 16² → w 32² → [B, 3, 64, 64] in [-1, 1]. 35,525,507 parameters.

    Batch norm before each ReLU as in DCGAN, which the paper names as its decoder without listing the norm.
    """

    def __init__(self, config: ContextEncoderConfig) -> None:
        super().__init__()
        w, side = config.width, config.image_size // REDUCTION
        first = nn.ConvTranspose2d(config.code, 8 * w, side, bias=False)
        layers: list[nn.Module] = [first, GlobalBatchNorm(8 * w), nn.ReLU()]
        for inputs, outputs in pairwise((8 * w, 4 * w, 2 * w, w)):
            enlarge = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
            layers += [enlarge, GlobalBatchNorm(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(w, 3, 4, stride=2, padding=1))

    def forward(self, code: Tensor) -> Tensor:
        return torch.tanh(self.layers(code))


class Generator(nn.Module):
    """Encoder and decoder: the image with its hole painted over → what belongs into the hole. 70,567,491 parameters."""

    def __init__(self, config: ContextEncoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        _draw_weights(self)

    def forward(self, holed: Tensor) -> Tensor:
        return self.decoder(self.encoder(holed))


class Discriminator(nn.Module):
    """Convolutions that halve, batch norm, ReLU, then one fully connected layer: [B, 3, S, S] → logit [B, 1].

    The local one judges the hole with four convolutions (2,765,697 parameters), the global one the whole image with
    five (6,961,025). Batch statistics always: real and filled images pass apart, so each has its own, and no running
    average of the two is ever used.

    Args:
        channels: after each convolution.
        side: of the last features.
    """

    def __init__(self, channels: tuple[int, ...], side: int) -> None:
        super().__init__()
        sizes = pairwise((3, *channels))
        self.layers = nn.Sequential(*(layer for i, o in sizes for layer in _down(i, o, nn.ReLU(), running=False)))
        self.verdict = nn.Linear(channels[-1] * side**2, 1)
        _draw_weights(self)

    def forward(self, image: Tensor) -> Tensor:
        return self.verdict(self.layers(image).flatten(1))


@dataclass(frozen=True)
class Drawn:
    """True and drawn hole [B, 3, S/2, S/2], true and completed image [B, 3, S, S], all in [-1, 1]."""

    true_hole: Tensor
    hole: Tensor
    image: Tensor
    completed: Tensor


class ContextEncoder(Method):
    """Its curriculum: the generator alone, then with the local discriminator, then with the global one as well."""

    config: ContextEncoderConfig

    def __init__(
        self, config: ContextEncoderConfig, steps: Mapping[str, int], features: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(config, steps)
        w, side = config.width, config.image_size // REDUCTION
        self.generator = Generator(config)
        self.local_discriminator = Discriminator((w, 2 * w, 4 * w, 8 * w), side)
        self.global_discriminator = Discriminator((w, 2 * w, 4 * w, 8 * w, 8 * w), side)

    def stages(self) -> tuple[Stage, ...]:
        """`reconstruct`, `local`, `global`: a discriminator learns from its stage's first step, its λ grows from 0.

        λ1 = `reconstruction` throughout. With t the steps since the stage `local` (`global`) began, λ2 (λ3) is its full
        weight times min(1, t / ramp_steps), also across the next stage.
        """
        full, steps = self.config.weights, self.steps
        local = self._ramp(full.local, before=0, steps=steps["local"])
        local_goes_on = self._ramp(full.local, before=steps["local"], steps=steps["global"])
        whole = self._ramp(full.global_, before=0, steps=steps["global"])
        return (
            Stage("reconstruct", steps["reconstruct"], self.draw, self._updates({})),
            Stage("local", steps["local"], self.draw, self._updates({"local": local})),
            Stage("global", steps["global"], self.draw, self._updates({"local": local_goes_on, "global": whole})),
        )

    def _updates(self, adversarial_weights: Mapping[str, Weight]) -> tuple[Update, ...]:
        """One update per discriminator that the generator's loss listens to, then the generator's own."""
        config = self.config
        losses = {"local": self.local_loss, "global": self.global_loss}
        optimizers = {"local": config.local_optimizer, "global": config.global_optimizer}
        weights = {"reconstruction": config.weights.reconstruction, **adversarial_weights}
        return (
            *(
                Update(name := f"{term}_discriminator", (name,), losses[term], adversarial.HALVES, optimizers[term])
                for term, weight in adversarial_weights.items()
                if weight != 0.0
            ),
            Update("generator", ("generator",), self.generator_loss, weights, config.generator_optimizer),
        )

    def _ramp(self, largest: float, *, before: int, steps: int) -> Weight:
        """`largest` · min(1, t / ramp_steps) in a stage of `steps` that begins `before` steps after the ramp did."""
        length = self.config.ramp_steps
        if not largest or before >= length:
            return largest
        return lambda progress: largest * min(1.0, (before + progress * steps) / length)

    def draw(self, batch: Batch) -> Drawn:
        """One pass of the generator, shared by all updates."""
        if batch.mask.device.type == "cpu":  # elsewhere a look waits for the device; the settings were checked
            self.check_hole(batch.mask)
        image = to_signed(batch.image)
        inside = _centre(image.shape[-1])
        hole = self._draw_hole(image, batch.mask)
        return Drawn(image[inside], hole, image, _paste(image, hole, batch.mask))

    def _draw_hole(self, image: Tensor, mask: Tensor) -> Tensor:
        holed = image.masked_fill(mask > 0.5, self.config.hole_value)
        return self.generator(holed).to(image.dtype)

    def local_loss(self, batch: Batch, drawn: Drawn, active: frozenset[str]) -> Terms:
        judge = self.local_discriminator
        return adversarial.cross_entropy_discriminator(judge(drawn.true_hole), judge(drawn.hole.detach()))

    def global_loss(self, batch: Batch, drawn: Drawn, active: frozenset[str]) -> Terms:
        judge = self.global_discriminator
        return adversarial.cross_entropy_discriminator(judge(drawn.image), judge(drawn.completed.detach()))

    def generator_loss(self, batch: Batch, drawn: Drawn, active: frozenset[str]) -> Terms:
        fool = adversarial.CROSS_ENTROPY_GENERATOR[self.config.generator_adversarial]
        terms: Terms = {}
        if "reconstruction" in active:
            terms["reconstruction"] = reconstruction.squared(drawn.hole, drawn.true_hole)
        if "local" in active:
            terms["local"] = fool(self.local_discriminator(drawn.hole))
        if "global" in active:
            terms["global"] = fool(self.global_discriminator(drawn.completed))
        return terms

    def inpaint(self, image: Tensor, mask: Tensor) -> Tensor:
        """The image with its centre square drawn anew.

        Raises:
            ShapeError: any other hole, or an image of another size.
        """
        self.check_hole(mask)
        centred = to_signed(image)
        return _paste(image, from_signed(self._draw_hole(centred, mask)), mask)

    def check_hole(self, mask: Tensor) -> None:
        """Raises ShapeError unless every mask is the centred square of half the side this network was built for."""
        size = self.config.image_size
        if tuple(mask.shape[-2:]) != (size, size):
            raise ShapeError(
                f"image is {mask.shape[-1]}×{mask.shape[-2]}; this context encoder takes {size}×{size} only, "
                "because its bottleneck is a fixed grid. Resize, or train with another method.image_size"
            )
        expected = torch.zeros_like(mask[:1])
        expected[_centre(size)] = 1
        if not bool((mask == expected).all()):
            raise ShapeError(
                f"mask is not the centred {size // 2}×{size // 2} square (rows and columns {size // 4} to "
                f"{3 * size // 4 - 1}) that a context encoder fills; take a method with free-form holes for others"
            )

    def inference_networks(self) -> tuple[str, ...]:
        return ("generator",)


def _down(
    inputs: int,
    outputs: int,
    activation: nn.Module,
    *,
    kernel: int = 4,
    stride: int = 2,
    padding: int = 1,
    running: bool = True,
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Convolution without bias (the norm has one), batch norm, activation; the kernel of 4 halves the sides."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return convolution, GlobalBatchNorm(outputs, running=running), activation


def _draw_weights(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _centre(size: int) -> tuple[slice | type(Ellipsis), ...]:
    """Index of the hole: rows and columns size/4 to 3·size/4 - 1."""
    middle = slice(size // 4, 3 * size // 4)
    return (..., middle, middle)


def _paste(image: Tensor, hole: Tensor, mask: Tensor) -> Tensor:
    """`hole` in the centre and `image`, bit for bit, around it."""
    return composite(image, F.pad(hole, (image.shape[-1] // 4,) * 4), mask)
