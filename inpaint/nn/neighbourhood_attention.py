"""Dilated neighbourhood attention: every position attends to k × k positions of its own residue class.

On an axis of length L with dilation δ, query i has residue i mod δ and rank i div δ in its class of n positions. Its k
keys are the ranks s..s+k-1 of that class, where s is the query's rank minus k div 2, shifted inward at the borders:
always exactly k keys, never padding. In two dimensions the window is the product of both axes.

Two backends of one operator: `gather` copies every window (any size, the reference for tests), `dense` runs ordinary
attention inside each of the δ² residue grids under an additive mask (fast, sides must be multiples of δ).

Source: DiNA paper, Eq. (5) to (7); Hassani and Shi, "Dilated Neighborhood Attention Transformer", 2022. The position
bias stands outside the division by √c, as in the published models; a learned table absorbs the difference.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BIAS_STD = 0.02


def check_window(height: int, width: int, kernel: int, dilation: int) -> None:
    """Refuse an even kernel, and a window that is larger than the map.

    Raises:
        ValueError: naming kernel, dilation and map.
    """
    if kernel < 1 or kernel % 2 == 0 or dilation < 1:
        raise ValueError(f"kernel {kernel}, dilation {dilation}: expected an odd kernel and a dilation of at least 1")
    if kernel * dilation > min(height, width):
        raise ValueError(
            f"kernel {kernel} × dilation {dilation} = {kernel * dilation} does not fit a {height}×{width} map; "
            "use a larger image or a smaller dilation"
        )


def axis_windows(
    length: int, kernel: int, dilation: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The window of every position of one axis.

    Returns:
        Positions of its keys and their rows in the position-bias table (0..2·kernel-2), each int64 [length, kernel].
    """
    query = torch.arange(length, device=device)
    residue, rank = query % dilation, query // dilation
    class_size = (length - residue + dilation - 1) // dilation
    start = torch.minimum((rank - kernel // 2).clamp_min(0), class_size - kernel)
    ranks = start[:, None] + torch.arange(kernel, device=device)
    return residue[:, None] + dilation * ranks, ranks - rank[:, None] + kernel - 1


def gather_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, kernel: int, dilation: int
) -> Tensor:
    """The operator by copying each window's keys and values.

    Args:
        query: [B, heads, H, W, c], as `key` and `value`.
        bias: position table [heads, 2·kernel-1, 2·kernel-1], or None for none.
        kernel: keys per axis, odd.
        dilation: distance between neighbouring keys.

    Returns:
        [B, heads, H, W, c] in the dtype of `value`; the softmax is in float32 (float64 stays).

    Raises:
        ValueError: the window is larger than the map.
    """
    height, width, channels = query.shape[2:]
    check_window(height, width, kernel, dilation)
    positions, rows, columns = _window_maps(height, width, kernel, dilation, query.device)
    keys = key.flatten(2, 3)[:, :, positions]  # [B, heads, H·W, k², c]
    values = value.flatten(2, 3)[:, :, positions]
    scores = torch.einsum("bhnc,bhnkc->bhnk", query.flatten(2, 3), keys) * channels**-0.5
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if bias is not None:
        scores = scores + bias[:, rows, columns]
    shares = scores.softmax(dim=-1).to(values.dtype)
    return torch.einsum("bhnk,bhnkc->bhnc", shares, values).unflatten(2, (height, width))


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, kernel: int, dilation: int
) -> Tensor:
    """The operator as masked attention inside each residue grid; arguments and result as `gather_attention`.

    Raises:
        ValueError: a side is no multiple of the dilation, or the window is larger than the map.
    """
    height, width = query.shape[2:4]
    check_window(height, width, kernel, dilation)
    if height % dilation or width % dilation:
        raise ValueError(f"a {height}×{width} map has unequal grids under dilation {dilation}; use gather_attention")
    rows, columns = height // dilation, width // dilation
    if (rows, columns) == (kernel, kernel) and bias is None:
        mask = None  # the window covers the grid
    else:
        mask = _grid_mask(rows, columns, kernel, bias, query)
    grids = [_to_grids(tensor, dilation) for tensor in (query, key, value)]
    return _from_grids(F.scaled_dot_product_attention(*grids, attn_mask=mask), query.shape[0], height, width, dilation)


def neighbourhood_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *, kernel: int, dilation: int
) -> Tensor:
    """The operator by the backend that suits the size: dense where the residue grids are equal, else gather."""
    dense = query.shape[2] % dilation == 0 and query.shape[3] % dilation == 0
    return (dense_attention if dense else gather_attention)(query, key, value, bias, kernel, dilation)


class NeighbourhoodAttention(nn.Module):
    """LayerNorm → queries, keys, values → attention → projection: [B, C, H, W] → the same shape.

    265,032 parameters for 256 channels, 8 heads and kernel 7 (norm 512, projections 197,376 and 65,792, table 1,352).

    Args:
        channels: C.
        heads: must divide C.
        kernel: keys per axis, odd.
        dilation: distance between neighbouring keys.
        position_bias: learn the table of position biases.

    Raises:
        ValueError: `heads` does not divide `channels`.
    """

    def __init__(
        self, channels: int, *, heads: int, kernel: int, dilation: int, position_bias: bool = True, std: float = 0.02
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split over {heads} heads")
        self.heads, self.kernel, self.dilation = heads, kernel, dilation
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)
        self.bias: nn.Parameter | None = None
        for layer in (self.qkv, self.projection):
            nn.init.normal_(layer.weight, 0.0, std)
            nn.init.zeros_(layer.bias)
        if position_bias:
            self.bias = nn.Parameter(torch.empty(heads, 2 * kernel - 1, 2 * kernel - 1))
            nn.init.trunc_normal_(self.bias, std=BIAS_STD)

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.norm(features.permute(0, 2, 3, 1))
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)
        mixed = neighbourhood_attention(query, key, value, self.bias, kernel=self.kernel, dilation=self.dilation)
        return self.projection(mixed.permute(0, 2, 3, 1, 4).flatten(3)).permute(0, 3, 1, 2)


Maps = tuple[Tensor, Tensor, Tensor]


def _window_maps(height: int, width: int, kernel: int, dilation: int, device: torch.device) -> Maps:
    """Flat key positions, bias rows and bias columns of every window, each [H·W, k²]; built once per size."""
    build = _build_maps if torch.compiler.is_compiling() else _kept_maps  # a compiled graph keeps its own
    return build(height, width, kernel, dilation, device)


def _build_maps(height: int, width: int, kernel: int, dilation: int, device: torch.device) -> Maps:
    (down, bias_down), (right, bias_right) = (axis_windows(size, kernel, dilation, device) for size in (height, width))
    shape = (height, width, kernel, kernel)
    positions = down[:, None, :, None] * width + right[None, :, None, :]
    rows = bias_down[:, None, :, None].expand(shape)
    columns = bias_right[None, :, None, :].expand(shape)
    flat = (height * width, kernel * kernel)
    return positions.reshape(flat), rows.reshape(flat), columns.reshape(flat)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # an evaluation may be the first to ask, and training goes on with what it kept
def _kept_maps(height: int, width: int, kernel: int, dilation: int, device: torch.device) -> Maps:
    return _build_maps(height, width, kernel, dilation, device)


def _grid_mask(rows: int, columns: int, kernel: int, bias: Tensor | None, like: Tensor) -> Tensor:
    """What is added to the scores of one residue grid: the bias inside the window, -inf outside.

    [1, heads or 1, n, n] with n = rows·columns; the same in every grid, because it depends on ranks alone. Only the
    n·k² entries inside windows are read from the table, so its gradient costs no n² gather.
    """
    positions, bias_rows, bias_columns = _window_maps(rows, columns, kernel, 1, like.device)
    count = rows * columns
    places = (torch.arange(count, device=like.device)[:, None] * count + positions).flatten()
    inside = bias[:, bias_rows, bias_columns].flatten(1) if bias is not None else like.new_zeros(1, places.numel())
    inside = inside.to(like.dtype)
    outside = inside.new_full((inside.shape[0], count * count), float("-inf"))
    return outside.scatter(1, places.expand(inside.shape[0], -1), inside).view(1, -1, count, count)


def _to_grids(tensor: Tensor, dilation: int) -> Tensor:
    """[B, heads, H, W, c] → [B·δ², heads, (H/δ)·(W/δ), c], one entry per residue class."""
    batch, heads, height, width, channels = tensor.shape
    split = tensor.reshape(batch, heads, height // dilation, dilation, width // dilation, dilation, channels)
    return split.permute(0, 3, 5, 1, 2, 4, 6).reshape(batch * dilation**2, heads, -1, channels)


def _from_grids(tensor: Tensor, batch: int, height: int, width: int, dilation: int) -> Tensor:
    """The way back from `_to_grids`."""
    heads, channels = tensor.shape[1], tensor.shape[-1]
    split = tensor.view(batch, dilation, dilation, heads, height // dilation, width // dilation, channels)
    return split.permute(0, 3, 4, 1, 5, 2, 6).reshape(batch, heads, height, width, channels)
