"""Convolutions under spectral normalisation, with a norm that passes over the weights as seldom as it can.

The norm is the one of torch's hooks and of the paper in mathematics, with the names of torch's parametrisation
(`parametrizations.weight.0._u` and `_v`), so states of either can be taken over. It differs in cost: σ falls out of the
power iteration, the gradient takes few passes, weights that lie channels last are not copied to be flattened, and under
autocast the convolution gets weights that are narrow already.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from inpaint.nn.precision import without_autocast


@torch.library.custom_op("inpaint::kept_product", mutates_args=())
def _kept_product(rows: Tensor, u: Tensor) -> Tensor:
    """Wᵀ u, [rest], of W, [out, rest], and u, [out], as an operator whose result torch.compile keeps for backward.

    Of its own operators it may keep u instead and multiply again (it does where W has three rows), by a u that the
    forward pass has moved on meanwhile: the gradient would then belong to another v.
    """
    return rows.T @ u


@_kept_product.register_fake
def _(rows: Tensor, u: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[1])


class SpectralNorm(nn.Module):
    """weight ↦ weight / σ, where σ = uᵀ W v estimates the largest singular value of W, the weight as [out, rest].

    One power iteration per forward in training mode, none in inference mode. Computed in float32 also under autocast.

    Args:
        weight: [out, in, height, width].
        eps: smallest length by which a vector is divided.

    Source: Miyato et al., "Spectral normalization for generative adversarial networks", Algorithm 1.
    """

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, *, eps: float = 1e-12) -> None:
        super().__init__()
        self.eps = eps
        rows = weight.detach().flatten(1)
        u, v = (rows.new_empty(length).normal_() for length in rows.shape)
        self.register_buffer("_u", F.normalize(u, dim=0, eps=eps))
        self.register_buffer("_v", F.normalize(v, dim=0, eps=eps))
        for _ in range(15):
            self._v.copy_(F.normalize(rows.T @ self._u, dim=0, eps=eps))
            self._u.copy_(F.normalize(rows @ self._v, dim=0, eps=eps))

    def forward(self, weight: Tensor) -> Tensor:
        device = weight.device.type
        narrow = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if narrow else weight.dtype
        with without_autocast(weight):
            with torch.no_grad():
                sigma, u, v = self._measure(weight)
            return _Divided.apply(weight, sigma, u, v, dtype)

    def _measure(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """σ and the vectors it comes from; v in the order in which the weight lies in memory."""
        rows = _rows(weight)
        if not self.training:
            u, v = self._u.clone(), _laid_like(weight, self._v)
            return torch.dot(u, rows @ v), u, v
        product = _kept_product(rows, self._u) if torch.compiler.is_compiling() else rows.T @ self._u
        v, _ = self._normalised(product)
        u, sigma = self._normalised(rows @ v)  # uᵀ W v is the length of W v, since u points along it
        self._u.copy_(u)
        self._v.copy_(_laid_back(weight, v))
        return sigma, u, v

    def _normalised(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The vector, in place, with length 1, and the length it had."""
        length = torch.linalg.vector_norm(vector).clamp_min_(self.eps)
        return vector.div_(length), length


class _Divided(torch.autograd.Function):
    """W / σ with σ = uᵀ W v, u and v constant: the gradient of W is (G - <G, W> / σ · u vᵀ) / σ."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight, sigma, u, v)
        return (weight / sigma).to(dtype)  # one division into bf16 (`out=`) is 8 times slower than both on a CPU

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, sigma, u, v = ctx.saved_tensors
        own = gradient.dtype != weight.dtype or gradient.stride() != weight.stride()
        wide = torch.empty_like(weight).copy_(gradient) if own else gradient
        share = torch.dot(_rows(wide).reshape(-1), _rows(weight).reshape(-1)) / sigma
        result = wide.div_(sigma) if own else wide / sigma
        _rows(result).addr_(u * (-share / sigma), v)
        return result, None, None, None, None


def spectral_norm(layer: nn.Conv2d, *, eps: float = 1e-12) -> nn.Conv2d:
    """The layer with its weight under spectral normalisation."""
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, eps=eps))
    return layer


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    bias: bool = False,
    std: float = 0.001,
    spectral: bool = True,
) -> nn.Conv2d:
    """A convolution with weights from N(0, std²) and zero bias, spectrally normalised unless told otherwise.

    The weights are drawn before the norm is put on: drawing them afterwards would leave the power iteration's vectors
    pointing at weights that are gone.

    Source: ISNet, section 2.4 of the authors' setting (std 0.001 in generator and discriminator).
    """
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=bias)
    nn.init.normal_(layer.weight, 0.0, std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer, eps=1e-12) if spectral else layer


def make_orthogonal(network: nn.Module, *, noise: float = 0.02) -> None:
    """Redraw the spectrally normalised convolutions of `network` so that signals pass them unattenuated from the start.

    The centre tap of each kernel becomes a random orthogonal map of the channels, and N(0, noise²) is added to all
    taps. Under N(0, 0.001²) most singular values are far below the largest one, which the norm makes 1, so what passes
    a dozen layers is gone; training recovers it, but only after thousands of steps.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
            with torch.no_grad():
                height, width = layer.kernel_size
                layer.weight.normal_(0.0, noise)
                layer.weight[:, :, height // 2, width // 2] += nn.init.orthogonal_(
                    torch.empty(layer.out_channels, layer.in_channels)
                )
            spectral_norm(layer, eps=1e-12)


def _rows(weight: Tensor) -> Tensor:
    """The weight as [out, rest], a view, in the order in which it lies in memory."""
    return weight.permute(0, 2, 3, 1).flatten(1) if _lies_channels_last(weight) else weight.flatten(1)


def _laid_like(weight: Tensor, v: Tensor) -> Tensor:
    """A vector over [in, height, width] in the order of `_rows(weight)`."""
    return v.view(weight.shape[1:]).permute(1, 2, 0).reshape(-1) if _lies_channels_last(weight) else v.clone()


def _laid_back(weight: Tensor, v: Tensor) -> Tensor:
    """The opposite of `_laid_like`."""
    if not _lies_channels_last(weight):
        return v
    inputs, height, width = weight.shape[1:]
    return v.view(height * width, inputs).T.reshape(-1)


def _lies_channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
