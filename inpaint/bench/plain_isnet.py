"""ISNet's training step in the straightforward way: the yardstick of `inpaint bench step`.

Written from the paper's specification as one would at first: a padding module before each convolution, an activation
module after it, spectral norm by hooks, two feature networks run in full on both images, the discriminator run anew for
every score, default Adam, and losses and PSNR read back each step. The mathematics is that of `methods.isnet`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from inpaint.config.methods import ISNetConfig
from inpaint.methods.isnet import ISNet

with_hooks = nn.utils.spectral_norm
VGG19 = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512)
PERCEPTUAL = (1, 6, 11, 20, 29)  # torchvision indices of relu1_1, 2_1, 3_1, 4_1, 5_1
STYLE = (8, 17, 26, 31)  # of relu2_2, 3_4, 4_4, 5_2


def padded_conv(
    inputs: int, outputs: int, kernel: int, *, dilation: int = 1, stride: int = 1, bias: bool = False
) -> nn.Sequential:
    layer = with_hooks(nn.Conv2d(inputs, outputs, kernel, stride, 0, dilation, bias=bias))
    return nn.Sequential(nn.ZeroPad2d(dilation * (kernel // 2)), layer)


class Residual(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            padded_conv(channels, channels, 3, dilation=dilation), nn.Tanh(), padded_conv(channels, channels, 3)
        )
        self.act = nn.Tanh()

    def forward(self, features: Tensor) -> Tensor:
        return self.act(features + self.body(features))


def sub_pixels(channels: int, times: int) -> nn.Sequential:
    steps: list[nn.Module] = []
    for i in range(times):
        size = channels // 2**i
        steps += [padded_conv(size, 2 * size, 3), nn.PixelShuffle(2), nn.Tanh()]
    return nn.Sequential(*steps)


class Phase(nn.Module):
    def __init__(self, number: int, width: int, blocks: int) -> None:
        super().__init__()
        low, wide = width * 2 ** (number - 1), width * 2**number
        self.high = nn.Sequential(*(Residual(width, 1) for _ in range(blocks)))
        down: list[nn.Module] = []
        for i in range(number):
            down += [padded_conv(width * 2**i, width * 2 ** (i + 1), 3, stride=2), nn.Tanh()]
        self.down = nn.Sequential(*down)
        self.first = number == 1
        if not self.first:
            self.up = sub_pixels(low, number - 1)
            self.low = nn.Sequential(*(Residual(low, 2) for _ in range(blocks)))
            self.low_down = nn.Sequential(padded_conv(low, wide, 3, stride=2), nn.Tanh())
        both = 1 if self.first else 2
        self.join_high = nn.Sequential(padded_conv(both * width, width, 3), nn.Tanh())
        self.join_low = nn.Sequential(padded_conv(both * wide, wide, 3), nn.Tanh())

    def forward(self, high: Tensor, low: Tensor | None) -> tuple[Tensor, Tensor]:
        high = self.high(high)
        if low is None:
            return self.join_high(high), self.join_low(self.down(high))
        low = self.low(low)
        to_high = torch.cat((high, self.up(low)), dim=1)
        to_low = torch.cat((self.down(high), self.low_down(low)), dim=1)
        return self.join_high(to_high), self.join_low(to_low)


class PlainGenerator(nn.Module):
    """ISNet's generator; its convolutions are registered in the order of `methods.isnet.Generator`."""

    def __init__(self, *, blocks: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(padded_conv(3, 2 * width, 3), nn.Tanh(), padded_conv(2 * width, width, 3))
        self.skip, self.act = nn.Conv2d(3, width, 1, bias=False), nn.Tanh()
        self.phases = nn.ModuleList(Phase(number, width, blocks) for number in range(1, 5))
        self.up = sub_pixels(16 * width, 4)
        self.head = nn.Sequential(
            padded_conv(2 * width, width, 7, bias=True), nn.Tanh(), padded_conv(width, 3, 3, bias=True), nn.Tanh()
        )

    def forward(self, masked: Tensor) -> Tensor:
        high, low = self.act(self.stem(masked) + self.skip(masked)), None
        for phase in self.phases:
            high, low = phase(high, low)
        return (self.head(torch.cat((high, self.up(low)), dim=1)) + 1) / 2


class PlainDiscriminator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        sizes, strides = [3, width, 2 * width, 4 * width, 8 * width, 1], [2, 2, 2, 1, 1]
        self.layers = nn.ModuleList(
            with_hooks(nn.Conv2d(sizes[i], sizes[i + 1], 4, strides[i], 1, bias=False)) for i in range(5)
        )
        self.act = nn.LeakyReLU(0.2)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs = []
        for layer in self.layers[:-1]:
            image = self.act(layer(image))
            outputs.append(image)
        outputs.append(self.layers[-1](image))
        return outputs[-1], outputs


class PlainFeatures(nn.Module):
    """VGG-19 to relu5_4, every activation returned."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in VGG19:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(inputs, int(width), 3, padding=1), nn.ReLU()]
                inputs = int(width)
        self.layers = nn.ModuleList(layers)
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> list[Tensor]:
        found = []
        for layer in self.layers:
            image = layer(image)
            found.append(image)
        return found


class PlainStep:
    """The straightforward step over copies of a method's weights.

    Args:
        method: an ISNet in its published design with hinge loss and Eq. (5) weights, with its feature network.
        one_norm: judge real and filled images under one power iteration, as a joined pass does, instead of one each;
            for comparing values, since the estimates of the norm differ by what an iteration adds.
    """

    def __init__(self, method: ISNet, *, one_norm: bool = False) -> None:
        self.one_norm = one_norm
        config: ISNetConfig = method.config
        self.config = config
        self.generator = PlainGenerator(blocks=config.blocks, width=config.width)
        self.discriminator = PlainDiscriminator(config.discriminator_width)
        self.content_features, self.style_features = PlainFeatures(), PlainFeatures()
        copy_convolutions(method.generator, self.generator)
        copy_convolutions(method.discriminator, self.discriminator)
        for features in (self.content_features, self.style_features):
            copy_convolutions(method.vgg, features)
        device = next(method.parameters()).device
        for network in (self.generator, self.discriminator, self.content_features, self.style_features):
            network.to(device)
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=rate.learning_rate, betas=rate.betas)
            for name, network, rate in (
                ("generator", self.generator, config.generator_optimizer),
                ("discriminator", self.discriminator, config.discriminator_optimizer),
            )
        }

    def __call__(self, image: Tensor, mask: Tensor) -> dict[str, float]:
        """Make a step; its loss terms and PSNR."""
        weights = self.config.weights
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        predicted = self.generator(image * (1 - mask))

        vectors = [buffer.clone() for buffer in self.discriminator.buffers()] if self.one_norm else []
        real, _ = self.discriminator(image)
        for buffer, before in zip(self.discriminator.buffers(), vectors, strict=False):
            buffer.copy_(before)
        filled, _ = self.discriminator(predicted.detach())
        loss_real, loss_filled = torch.relu(1 - real).mean(), torch.relu(1 + filled).mean()
        (loss_real + loss_filled).backward()
        self.optimizers["discriminator"].step()

        logits, _ = self.discriminator(predicted)
        adversarial = -logits.mean()
        l1 = (predicted - image).abs().mean() / mask.mean()
        drawn, true = self.content_features(predicted), self.content_features(image)
        perceptual = sum((drawn[i] - true[i]).abs().mean() for i in PERCEPTUAL)
        drawn, true = self.style_features(predicted), self.style_features(image)
        style = sum((_gram(drawn[i]) - _gram(true[i])).abs().mean() for i in STYLE)
        loss = weights.l1 * l1 + weights.adversarial * adversarial
        loss = loss + weights.perceptual * perceptual + weights.style * style
        loss.backward()
        self.optimizers["generator"].step()
        return {
            "discriminator/real": loss_real.item(),
            "discriminator/filled": loss_filled.item(),
            "generator/l1": l1.item(),
            "generator/adversarial": adversarial.item(),
            "generator/perceptual": perceptual.item(),
            "generator/style": style.item(),
            "psnr": _psnr(image, predicted * mask + image * (1 - mask)),
        }


def copy_convolutions(ours: nn.Module, plain: nn.Module) -> None:
    """Copy weights and spectral norm's vectors, convolution by convolution in the order of registration."""
    pairs = zip(_convolutions(ours), _convolutions(plain), strict=True)
    with torch.no_grad():
        for mine, theirs in pairs:
            if parametrize.is_parametrized(mine, "weight"):
                norm = mine.parametrizations.weight
                theirs.weight_orig.copy_(norm.original)
                theirs.weight_u.copy_(norm[0]._u)
                theirs.weight_v.copy_(norm[0]._v)
            else:
                theirs.weight.copy_(mine.weight)
            if mine.bias is not None:
                theirs.bias.copy_(mine.bias)


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def _gram(features: Tensor) -> Tensor:
    batch, channels, height, width = features.shape
    flat = features.view(batch, channels, height * width)
    return flat.bmm(flat.transpose(1, 2)) / (channels * height * width)


def _psnr(image: Tensor, completed: Tensor) -> float:
    error = ((image * 255).int().float() - (completed * 255).int().float()).square().mean()
    return 0.0 if error == 0 else 20 * math.log10(255) - 10 * math.log10(error.item())
