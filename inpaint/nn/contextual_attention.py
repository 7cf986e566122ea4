"""Attention mechanism I: what is missing is pasted together from the known patches that look most like it.

Source: HDC paper, Eq. (4) to (8), with the score and the patch pasting of contextual attention. The paper takes white
pixels for the hole; here the mask says where it is, since photographs contain white.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint.nn.precision import without_autocast

SMALLEST_NORM = 1e-4
HALF_OPEN = 2.0  # fresh channel weights are about 1/2; twice as large weights behind them keep the signal's size
QUERIES_AT_ONCE = 1024  # all of a 256×256 image; larger ones go in pieces, so memory grows with the keys alone


class ContextualAttention(nn.Module):
    """Paste known patches into the hole, weigh channels of both versions, mix them back to C channels.

    [B, C, H, W] → cat(features, pasted) 2C → squeeze-and-excitation → [B, C, H, W]. 41,088 parameters at C = 128.
    At 64×64 and batch 8 its largest tensors take 64 MiB each (1024 patches of 4·4·128 numbers).

    Args:
        channels: C.
        rate: patches are compared on a grid `rate` times coarser; 1 or 2.
        patch: side of the compared patches, odd.
        scale: multiplies the cosine before the softmax.
        reduction: of the squeeze-and-excitation's inner layer.
    """

    def __init__(
        self, channels: int, *, rate: int = 2, patch: int = 3, scale: float = 10.0, reduction: int = 16
    ) -> None:
        super().__init__()
        self.rate, self.patch, self.scale = rate, patch, scale
        self.squeeze = nn.Linear(2 * channels, 2 * channels // reduction, bias=False)
        self.excite = nn.Linear(2 * channels // reduction, 2 * channels, bias=False)
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        nn.init.normal_(self.mix.weight, 0.0, HALF_OPEN * (2 * channels) ** -0.5)
        nn.init.zeros_(self.mix.bias)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """`features` with the hole of `mask` [B, 1, ≥H, ≥W] redrawn; a cell touched by the hole is hole."""
        mask = F.adaptive_max_pool2d(mask.float(), features.shape[-2:])
        pasted = paste_known(features, mask, rate=self.rate, patch=self.patch, scale=self.scale)
        both = torch.cat((features, pasted), dim=1)
        channel_weights = torch.sigmoid(self.excite(F.relu(self.squeeze(both.mean(dim=(2, 3))))))
        return self.mix(both * channel_weights[:, :, None, None])


def paste_known(features: Tensor, mask: Tensor, *, rate: int, patch: int, scale: float) -> Tensor:
    """`features` with its hole filled from attended known patches; bit for bit unchanged elsewhere.

    Computed in float32 under autocast too: cosines that differ by 1e-3 are told apart by a scale of 10.

    Args:
        features: [B, C, H, W], sides a multiple of `rate`.
        mask: 1 in the hole, [B, 1, H, W].
    """
    with without_autocast(features):
        known = features.float()
        keys = descriptors(known, rate=rate, patch=patch)
        open_keys = admissible_keys(mask, rate=rate, patch=patch)
        values, size, margin = value_patches(known, rate=rate)
        parts = [attend(part, keys, open_keys, scale=scale) @ values for part in keys.split(QUERIES_AT_ONCE, dim=2)]
        pasted = overlap_mean(torch.cat(parts, dim=1), known.shape[-2:], size=size, stride=rate, padding=margin)
    return torch.where(mask > 0.5, pasted.to(features.dtype), features)


def descriptors(features: Tensor, *, rate: int, patch: int) -> Tensor:
    """Unit-length patches of the `rate` times coarser features, [B, C·patch², positions], row by row."""
    return F.normalize(
        _patches(features[:, :, ::rate, ::rate], size=patch, padding=patch // 2), dim=1, eps=SMALLEST_NORM
    )


def attend(queries: Tensor, keys: Tensor, open_keys: Tensor, *, scale: float) -> Tensor:
    """Share of each key in each query, [B, queries, keys]: the softmax of the scaled cosine over the open keys.

    Args:
        queries: descriptors, [B, D, queries].
        keys: descriptors, [B, D, keys].
        open_keys: False for keys that get nothing, [B, keys].
    """
    scores = scale * queries.transpose(1, 2) @ keys
    return scores.masked_fill(~open_keys[:, None, :], -torch.inf).softmax(dim=-1)


def admissible_keys(mask: Tensor, *, rate: int, patch: int) -> Tensor:
    """Which patches may be copied from, [B, keys], bool: those clear of the hole, or all when there is none such."""
    touched = F.max_pool2d(F.max_pool2d(mask.float(), rate), patch, stride=1, padding=patch // 2)
    clear = touched.flatten(1) < 0.5
    return clear | ~clear.any(dim=1, keepdim=True)


def value_patches(features: Tensor, *, rate: int) -> tuple[Tensor, int, int]:
    """What is copied: [B, keys, C·size²] beside the patch size and its margin.

    Patches of twice the grid's step overlap by half; at rate 1 they are single pixels, the literal reading of Eq. (4).
    The margin repeats the border, because zeros there would be copied into holes as darkness.
    """
    size, margin = (1, 0) if rate == 1 else (2 * rate, rate // 2)
    return _patches(features, size=size, stride=rate, padding=margin).transpose(1, 2), size, margin


def overlap_mean(patches: Tensor, size_of_image: tuple[int, int], *, size: int, stride: int, padding: int) -> Tensor:
    """Patches [B, positions, C·size²] laid back in place and averaged where they overlap, [B, C, H, W]."""
    sums = F.fold(patches.transpose(1, 2), size_of_image, size, stride=stride, padding=padding)
    return sums / overlap_counts(sums, size=size, stride=stride, padding=padding)


def overlap_counts(image: Tensor, *, size: int, stride: int, padding: int) -> Tensor:
    """How many patches cover each place of `image`, [1, 1, H, W]."""
    ones = image.new_ones(1, 1, *image.shape[-2:])
    patches = F.unfold(ones, size, stride=stride, padding=padding)
    return F.fold(torch.ones_like(patches), image.shape[-2:], size, stride=stride, padding=padding)


def _patches(features: Tensor, *, size: int, padding: int, stride: int = 1) -> Tensor:
    """[B, C·size², positions], the border repeated outwards."""
    if padding:
        features = F.pad(features, (padding,) * 4, mode="replicate")
    return F.unfold(features, size, stride=stride)
