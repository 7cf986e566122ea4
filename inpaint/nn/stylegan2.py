"""StyleGAN2's generator in plain tensor operations, with the state-dict keys of the published pSp decoders.

Images are in [-1, 1]. A modulated convolution scales its input and its output per channel around one shared
convolution, which equals convolving every sample with its own weights. Blurs are depthwise convolutions, so that
nothing needs compiling.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE, GAIN = 0.2, math.sqrt(2)
BLUR = (1.0, 3.0, 3.0, 1.0)


def num_styles(size: int) -> int:
    """Styles of a generator of `size` pixels: two per doubling from 4, and the two of the start."""
    return 2 * int(math.log2(size)) - 2


def decoder_widths(size: int, *, most: int = 512, product: int = 32768) -> tuple[int, ...]:
    """Channels at 4, 8, ... `size` pixels: min(most, product / resolution)."""
    return tuple(min(most, product // 2**power) for power in range(2, int(math.log2(size)) + 1))


class EqualLinear(nn.Module):
    """A linear layer whose weights are stored at unit scale and divided by √inputs when used.

    Args:
        rate_factor: learning-rate multiplier; weights and bias are stored larger by it.
        bias: initial bias.
        activated: follow by the scaled LeakyReLU.
    """

    def __init__(
        self, inputs: int, outputs: int, *, rate_factor: float = 1.0, bias: float = 0.0, activated: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate_factor)
        self.bias = nn.Parameter(torch.full((outputs,), float(bias)))
        self.scale, self.rate_factor, self.activated = rate_factor / math.sqrt(inputs), rate_factor, activated

    def forward(self, values: Tensor) -> Tensor:
        values = F.linear(values, self.weight * self.scale, self.bias * self.rate_factor)
        return GAIN * F.leaky_relu(values, SLOPE) if self.activated else values


class PixelNorm(nn.Module):
    """Each vector divided by its root mean square."""

    def forward(self, values: Tensor) -> Tensor:
        return values * torch.rsqrt(values.square().mean(dim=1, keepdim=True) + 1e-8)


class Blur(nn.Module):
    """Depthwise blur with the outer product of 1, 3, 3, 1, normalised and times `gain`.

    Args:
        before: zeros put above and to the left.
        after: zeros put below and to the right.
    """

    def __init__(self, *, before: int, after: int, gain: float) -> None:
        super().__init__()
        kernel = torch.outer(torch.tensor(BLUR), torch.tensor(BLUR))
        self.register_buffer("kernel", kernel / kernel.sum() * gain)
        self.padding = (before, after, before, after)

    def forward(self, features: Tensor) -> Tensor:
        channels = features.shape[1]
        weight = self.kernel.flip(0, 1).to(features.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(F.pad(features, self.padding), weight, groups=channels)


class Doubled(Blur):
    """An RGB image at twice the size: zeros between pixels, then blurred."""

    def __init__(self) -> None:
        super().__init__(before=2, after=1, gain=4.0)

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        spread = F.pad(features.reshape(batch, channels, height, 1, width, 1), (0, 1, 0, 0, 0, 1))
        return super().forward(spread.reshape(batch, channels, 2 * height, 2 * width))


class ModulatedConv(nn.Module):
    """A convolution whose inputs are scaled by a style: [B, inputs, H, W] → [B, outputs, H, W] or twice the size.

    Args:
        code: length of the style vector.
        demodulate: divide each output channel by the length of its scaled weights.
        doubles: transposed with stride 2, then blurred.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, code: int, *, demodulate: bool = True, doubles: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(code, inputs, bias=1.0)
        self.scale, self.padding = 1 / math.sqrt(inputs * kernel**2), kernel // 2
        self.demodulate, self.doubles = demodulate, doubles
        if doubles:
            self.blur = Blur(before=1, after=1, gain=4.0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """As any module, with the published rank 5 of the weight hidden, which channels-last memory refuses."""
        return super()._apply(lambda tensor: fn(tensor[0])[None] if tensor.dim() == 5 else fn(tensor), recurse)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        style = self.modulation(style)
        weight = self.weight[0] * self.scale
        features = features * style[:, :, None, None]
        if self.doubles:
            features = self.blur(F.conv_transpose2d(features, weight.transpose(0, 1), stride=2))
        else:
            features = F.conv2d(features, weight, padding=self.padding)
        if self.demodulate:
            lengths = torch.rsqrt(F.linear(style.square(), weight.square().sum(dim=(2, 3))) + 1e-8)
            features = features * lengths[:, :, None, None]
        return features


class Noise(nn.Module):
    """A learned share of a noise plane added to every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        return features + self.weight * noise


class BiasedLeaky(nn.Module):
    """√2 · LeakyReLU(features + bias)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        return GAIN * F.leaky_relu(features + self.bias[:, None, None], SLOPE)


class StyledConv(nn.Module):
    """Modulated convolution, noise, activation."""

    def __init__(self, inputs: int, outputs: int, code: int, *, doubles: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, code, doubles=doubles)
        self.noise = Noise()
        self.activate = BiasedLeaky(outputs)

    def forward(self, features: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        return self.activate(self.noise(self.conv(features, style), noise))


class ToRGB(nn.Module):
    """Features as an image, added to the image so far at twice its size."""

    def __init__(self, inputs: int, code: int, *, doubles: bool = True) -> None:
        super().__init__()
        if doubles:
            self.upsample = Doubled()
        self.conv = ModulatedConv(inputs, 3, 1, code, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, features: Tensor, style: Tensor, skip: Tensor | None) -> Tensor:
        image = self.conv(features, style) + self.bias
        return image if skip is None else image + self.upsample(skip)


class Constant(nn.Module):
    """The learned 4×4 start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class StyleGAN2(nn.Module):
    """W+ codes [B, n, code] → 4² → 8² → ... → [B, 3, size, size], unbounded but trained for [-1, 1].

    30,370,060 parameters at 1024 pixels and 30,034,338 at 256, of which 2,101,248 are the mapping `style`, which codes
    in W+ do not pass through; it exists because published files hold it.

    Args:
        widths: channels at 4, 8, ... pixels, as `decoder_widths` gives them.
        code: length of a style vector.
        mapping_layers: of `style`.
        random_noise: draw noise anew each time; the stored planes make the image a function of its code.
    """

    def __init__(
        self, widths: Sequence[int], *, code: int = 512, mapping_layers: int = 8, random_noise: bool = False
    ) -> None:
        super().__init__()
        self.random_noise = random_noise
        mapping = [EqualLinear(code, code, rate_factor=0.01, activated=True) for _ in range(mapping_layers)]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        self.input = Constant(widths[0])
        self.conv1 = StyledConv(widths[0], widths[0], code)
        self.to_rgb1 = ToRGB(widths[0], code, doubles=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for inputs, outputs in pairwise(widths):
            self.convs.append(StyledConv(inputs, outputs, code, doubles=True))
            self.convs.append(StyledConv(outputs, outputs, code))
            self.to_rgbs.append(ToRGB(outputs, code))
        for number in range(2 * len(widths) - 1):
            side = 2 ** ((number + 5) // 2)
            self.noises.register_buffer(f"noise_{number}", torch.randn(1, 1, side, side))

    def forward(self, codes: Tensor) -> Tensor:
        features = self.input.input.expand(len(codes), -1, -1, -1)
        features = self.conv1(features, codes[:, 0], self._noise(0, codes))
        image = self.to_rgb1(features, codes[:, 1], None)
        for block, to_rgb in enumerate(self.to_rgbs):
            place = 1 + 2 * block
            for half in (0, 1):
                noise = self._noise(place + half, codes)
                features = self.convs[2 * block + half](features, codes[:, place + half], noise)
            image = to_rgb(features, codes[:, place + 2], image)
        return image

    def _noise(self, number: int, codes: Tensor) -> Tensor:
        stored = getattr(self.noises, f"noise_{number}")
        return torch.randn_like(stored.expand(len(codes), -1, -1, -1)) if self.random_noise else stored
