"""pSp: an encoder that reads StyleGAN codes off an image, its decoder, and both from published checkpoints by key.

Keys and shapes are those of the published architecture, so that its files load strictly. Everything about a network is
read from the tensors of a file, never from its recorded options.

Source: Richardson et al., "Encoding in Style: a StyleGAN Encoder for Image-to-Image Translation", 2021; the squeeze and
excitation ResNet is ArcFace's IR-SE-50.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint.errors import WeightsError
from inpaint.nn.stylegan2 import EqualLinear, StyleGAN2, decoder_widths, num_styles

COARSE, MIDDLE = 3, 7  # first style of the middle and of the fine group
REDUCTION = 16  # of squeeze and excitation
SLOPE = 0.01


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole map holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        summary = features.mean(dim=(2, 3), keepdim=True)
        return features * torch.sigmoid(self.fc2(F.relu(self.fc1(summary))))


class Unit(nn.Module):
    """An IR-SE unit: [B, inputs, H, W] → [B, outputs, H/stride, W/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        if inputs == outputs:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            SqueezeExcite(outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.shortcut_layer(features) + self.res_layer(features)


class StyleBlock(nn.Module):
    """A feature map of side 2^halvings as one style: [B, C, S, S] → [B, code]."""

    def __init__(self, channels: int, code: int, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(halvings):
            layers += [nn.Conv2d(channels if number == 0 else code, code, 3, 2, 1), nn.LeakyReLU(SLOPE)]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(code, code)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.convs(features).flatten(1))


class Encoder(nn.Module):
    """GradualStyleEncoder: [B, 3 or 4, 256, 256] in [-1, 1] → 64 128² → 128 64² → 256 32² → 512 16² → [B, n, 512].

    The first three styles are read off 16², the next four off 32², all others off 64². Codes are offsets from
    `latent_avg`, the mean code, which lives here as a buffer and is zero where a file has none.

    Batch statistics never move, in training either: a step then means the same on any number of ranks and parts, as
    when the published encoder is fine-tuned from its recorded statistics.

    Args:
        styles: n.
        inputs: channels of the input.
        width: channels of the first layer; the deepest has eight times as many.
        units: IR-SE units in each of the four groups.
        code: length of a style.
        image_size: side the encoder is made for; what it is given is resized to it.
    """

    def __init__(
        self,
        *,
        styles: int = 18,
        inputs: int = 3,
        width: int = 64,
        units: Sequence[int] = (3, 4, 14, 3),
        code: int = 512,
        image_size: int = 256,
    ) -> None:
        super().__init__()
        self.image_size, self.inputs = image_size, inputs
        self.input_layer = nn.Sequential(
            nn.Conv2d(inputs, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)
        )
        plan, channels = [], width
        for group, count in enumerate(units):
            for number in range(count):
                plan.append(Unit(channels, width * 2**group, 2 if number == 0 else 1))
                channels = width * 2**group
        self.body = nn.Sequential(*plan)
        self.taps = [sum(units[: group + 1]) - 1 for group in (1, 2, 3)]  # last units of groups 2, 3 and 4
        halvings = int(math.log2(image_size)) - 4
        depths = [halvings] * COARSE + [halvings + 1] * (MIDDLE - COARSE) + [halvings + 2] * (styles - MIDDLE)
        self.styles = nn.ModuleList(StyleBlock(channels, code, depth) for depth in depths[:styles])
        self.latlayer1 = nn.Conv2d(4 * width, channels, 1)
        self.latlayer2 = nn.Conv2d(2 * width, channels, 1)
        self.register_buffer("latent_avg", torch.zeros(styles, code))
        self.train(False)

    def train(self, mode: bool = True) -> Encoder:
        return super().train(False)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != (self.image_size, self.image_size):
            image = F.interpolate(image, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
        features, found = self.input_layer(image), []
        for place, unit in enumerate(self.body):
            features = unit(features)
            if place in self.taps:
                found.append(features)
        c1, c2, c3 = found
        p2 = _enlarged(c3, c2) + self.latlayer1(c2)
        p1 = _enlarged(p2, c1) + self.latlayer2(c1)
        sources = [c3] * COARSE + [p2] * (MIDDLE - COARSE) + [p1] * len(self.styles)
        offsets = [style(source) for style, source in zip(self.styles, sources, strict=False)]
        return torch.stack(offsets, dim=1) + self.latent_avg


def _enlarged(features: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(features, like.shape[-2:], mode="bilinear", align_corners=True)


def face_pool(image: Tensor, side: tuple[int, int]) -> Tensor:
    """The decoder's image at the working size: averaged down, or enlarged where the decoder is the smaller."""
    if image.shape[-2] < side[0] or image.shape[-1] < side[1]:
        return F.interpolate(image, side, mode="bilinear", align_corners=False)
    factors = image.shape[-2] // side[0], image.shape[-1] // side[1]
    if (factors[0] * side[0], factors[1] * side[1]) == tuple(image.shape[-2:]):
        return F.avg_pool2d(image, factors)  # the same mean; its gradient is deterministic on a GPU
    return F.adaptive_avg_pool2d(image, side)


@dataclass(frozen=True)
class Design:
    """What a pair of networks is built from; the defaults are those of the published checkpoints."""

    image_size: int = 256
    inputs: int = 3
    width: int = 64
    units: tuple[int, ...] = (3, 4, 14, 3)
    code: int = 512
    widths: tuple[int, ...] = decoder_widths(1024)
    mapping_layers: int = 8

    @property
    def styles(self) -> int:
        """Number of styles that the decoder takes."""
        return 2 * len(self.widths)

    def build(self, *, random_noise: bool = False) -> tuple[Encoder, StyleGAN2]:
        """Both networks, freshly drawn."""
        encoder = Encoder(
            styles=self.styles,
            inputs=self.inputs,
            width=self.width,
            units=self.units,
            code=self.code,
            image_size=self.image_size,
        )
        decoder = StyleGAN2(
            self.widths, code=self.code, mapping_layers=self.mapping_layers, random_noise=random_noise
        )
        return encoder, decoder


def published_state(encoder: Encoder, decoder: StyleGAN2) -> dict[str, Any]:
    """Both networks in the published format: `state_dict` with prefixed keys, `latent_avg`, `opts`."""
    own = {key: value for key, value in encoder.state_dict().items() if key != "latent_avg"}
    state = {f"encoder.{key}": value for key, value in own.items()}
    state |= {f"decoder.{key}": value for key, value in decoder.state_dict().items()}
    size = 4 * 2 ** len(decoder.to_rgbs)
    opts = {"encoder_type": "GradualStyleEncoder", "output_size": size, "start_from_latent_avg": True}
    return {"state_dict": state, "latent_avg": encoder.latent_avg.clone(), "opts": opts}


def load_published(
    checkpoint: Mapping[str, Any], *, truncate: int | None = None, random_noise: bool = False
) -> tuple[Encoder, StyleGAN2]:
    """Encoder and decoder of a published-format checkpoint, loaded strictly.

    Args:
        checkpoint: the file's content: a dict with `state_dict`, or a bare state dict.
        truncate: side in pixels at which a larger decoder is cut off; its image is then the generator's own of that
            size, close to but not equal to the pooled one.
        random_noise: as in `StyleGAN2`.

    Raises:
        WeightsError: keys are missing, unknown or misprefixed, sizes disagree, or the file is of another kind of
            encoder.
    """
    whole = "state_dict" in checkpoint
    state = dict(checkpoint["state_dict"] if whole else checkpoint)
    opts = dict(checkpoint.get("opts") or {}) if whole else {}
    mean = checkpoint.get("latent_avg") if whole else state.pop("latent_avg", None)
    _check_options(opts, mean)
    parts = _split(state)
    if opts.get("start_from_latent_avg") is False:
        mean = None
    design = design_of(parts["encoder"], parts["decoder"])
    if (said := opts.get("output_size")) not in (None, 4 * 2 ** (len(design.widths) - 1)):
        raise WeightsError(
            f"pSp checkpoint: opts say output_size {said}, its decoder draws {4 * 2 ** (len(design.widths) - 1)} pixels"
        )
    if mean is not None:
        mean = mean.expand(design.styles, -1) if mean.dim() == 1 else mean
    if truncate is not None:
        design, mean = _cut(parts, design, mean, truncate)
    encoder, decoder = design.build(random_noise=random_noise)
    parts["encoder"]["latent_avg"] = torch.zeros_like(encoder.latent_avg) if mean is None else mean
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        try:
            network.load_state_dict(parts[name])
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:3]]
            raise WeightsError(
                f"pSp checkpoint: {name} does not fit the published architecture: {' '.join(lines)[:300]} Give a whole "
                "checkpoint of pSp's GradualStyleEncoder and StyleGAN2"
            ) from None
    return encoder, decoder


def _check_options(opts: Mapping[str, Any], mean: Tensor | None) -> None:
    kind = opts.get("encoder_type", "GradualStyleEncoder")
    if kind != "GradualStyleEncoder" or opts.get("learn_in_w"):
        raise WeightsError(
            f"pSp checkpoint: encoder_type {kind}, learn_in_w {opts.get('learn_in_w', False)}; expected a "
            "GradualStyleEncoder of W+ codes"
        )
    if opts.get("start_from_latent_avg") and mean is None:
        raise WeightsError("pSp checkpoint: opts say start_from_latent_avg, but there is no latent_avg; save it whole")


def _split(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for key, value in state.items():
        prefix, _, rest = key.partition(".")
        if prefix not in parts or not rest:
            raise WeightsError(f"pSp checkpoint: key {key} has no prefix encoder. or decoder.; is it a pSp file?")
        parts[prefix][rest] = value
    return parts


def design_of(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> Design:
    """Sizes of both networks, read from their tensors.

    Raises:
        WeightsError: a tensor that tells a size is missing, or they disagree.
    """
    try:
        first = encoder["input_layer.0.weight"]
        units = _numbers(encoder, r"body\.(\d+)\.res_layer\.4\.weight")
        depths = [len(encoder[f"body.{number}.res_layer.4.weight"]) for number in units]
        styles = len(_numbers(encoder, r"styles\.(\d+)\.linear\.weight"))
        halvings = len(_numbers(encoder, r"styles\.0\.convs\.(\d+)\.weight"))
        code = len(encoder["styles.0.linear.weight"])
        widths = [decoder["input.input"].shape[1]]
        rgbs = _numbers(decoder, r"to_rgbs\.(\d+)\.conv\.weight")
        widths += [decoder[f"to_rgbs.{number}.conv.weight"].shape[2] for number in rgbs]
        mapping = len(_numbers(decoder, r"style\.(\d+)\.weight"))
    except KeyError as missing:
        raise WeightsError(f"pSp checkpoint: key {missing.args[0]} is missing; it is not whole") from None
    size = 4 * 2 ** len(rgbs)
    if styles != num_styles(size):
        raise WeightsError(
            f"pSp checkpoint: {styles} styles do not fit a decoder of {size} pixels, which takes {num_styles(size)}"
        )
    if first.shape[1] not in (3, 4):
        raise WeightsError(
            f"pSp checkpoint: the encoder takes {first.shape[1]} channels; expected 3 (RGB) or 4 (RGB and mask)"
        )
    groups = tuple(depths.count(len(first) * 2**group) for group in range(4))
    return Design(2 ** (halvings + 4), first.shape[1], len(first), groups, code, tuple(widths), mapping)


def _numbers(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    found = (re.fullmatch(pattern, key) for key in state)
    return sorted(int(match[1]) for match in found if match)


def _cut(
    parts: dict[str, dict[str, Tensor]], design: Design, mean: Tensor | None, size: int
) -> tuple[Design, Tensor | None]:
    """Drop from `parts` what only the resolutions above `size` use."""
    whole, blocks = 4 * 2 ** (len(design.widths) - 1), int(math.log2(max(size, 1))) - 2
    if size not in (4 * 2**n for n in range(1, len(design.widths) - 1)):
        raise WeightsError(f"psp.truncate {size}: expected a power of two from 8, below the decoder's {whole}")
    styles = num_styles(size)
    limits = {"styles": styles, "convs": 2 * blocks, "to_rgbs": blocks, "noises": 2 * blocks + 1}
    for state in parts.values():
        for key in list(state):
            match = re.match(r"(styles|convs|to_rgbs|noises)\.(?:noise_)?(\d+)", key)
            if match and int(match[2]) >= limits[match[1]]:
                del state[key]
    kept = Design(
        design.image_size, design.inputs, design.width, design.units, design.code, design.widths[: blocks + 1],
        design.mapping_layers,
    )  # fmt: skip
    return kept, None if mean is None else mean[:styles]
