"""Convolutions under spectral normalisation, with a norm that passes over the weights as seldom as it can.

The norm is the one of torch's hooks and of the paper in mathematics, with the names of torch's parametrisation
(`parametrizations.weight.0._u` and `_v`), so states of either can be taken over. It differs in cost: σ falls out of the
power iteration, the gradient takes few passes, weights that lie channels last are not copied to be flattened, and under
autocast the convolution gets weights that are narrow already.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from inpaint.nn.precision import without_autocast

Convolution = TypeVar("Convolution", nn.Conv2d, nn.ConvTranspose2d)


class SpectralNorm(nn.Module):
    """weight ↦ weight / σ, where σ = uᵀ W v estimates the largest singular value of W, the weight as [out, rest].

    One power iteration per forward in training mode, none in inference mode. Computed in float32 also under autocast.

    Args:
        weight: [out, in, height, width].
        eps: smallest length by which a vector is divided.
        transposed: the weight is a transposed convolution's, [in, out, height, width].

    Source: Miyato et al., "Spectral normalization for generative adversarial networks", Algorithm 1.
    """

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, *, eps: float = 1e-12, transposed: bool = False) -> None:
        super().__init__()
        self.eps, self.transposed = eps, transposed
        rows = (weight.transpose(0, 1) if transposed else weight).detach().flatten(1)
        u, v = (rows.new_empty(length).normal_() for length in rows.shape)
        self.register_buffer("_u", F.normalize(u, dim=0, eps=eps))
        self.register_buffer("_v", F.normalize(v, dim=0, eps=eps))
        for _ in range(15):
            self._v.copy_(F.normalize(rows.T @ self._u, dim=0, eps=eps))
            self._u.copy_(F.normalize(rows @ self._v, dim=0, eps=eps))

    def forward(self, weight: Tensor) -> Tensor:
        if self.transposed:
            return self._over_sigma(weight.transpose(0, 1).contiguous()).transpose(0, 1)
        return self._over_sigma(weight)

    def _over_sigma(self, weight: Tensor) -> Tensor:
        device = weight.device.type
        narrow = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if narrow else weight.dtype
        with without_autocast(weight):
            if torch.compiler.is_compiling():
                divided, _, u, v = _as_operator(weight, self._u, self._v, self.eps, self.training, dtype)
            else:
                with torch.no_grad():
                    sigma, u, v = _measured(weight, self._u, self._v, self.eps, self.training)
                divided = _Divided.apply(weight, sigma, u, v, dtype)
                v = _laid_back(weight, v)
        if self.training:
            with torch.no_grad():
                self._u.copy_(u)
                self._v.copy_(v)
        return divided


def _measured(weight: Tensor, u: Tensor, v: Tensor, eps: float, iterate: bool) -> tuple[Tensor, Tensor, Tensor]:
    """σ and the vectors it comes from, after a power iteration or none; v in the order of `_rows(weight)`."""
    rows = _rows(weight)
    if not iterate:
        u, v = u.clone(), _laid_like(weight, v)
        return torch.dot(u, rows @ v), u, v
    v, _ = _normalised(rows.T @ u, eps)
    u, sigma = _normalised(rows @ v, eps)  # uᵀ W v is the length of W v, since u points along it
    return sigma, u, v


def _normalised(vector: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The vector, in place, with length 1, and the length it had."""
    length = torch.linalg.vector_norm(vector).clamp_min_(eps)
    return vector.div_(length), length


def _divided(weight: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight / sigma).to(dtype)  # one division into bf16 (`out=`) is 8 times slower than both on a CPU


def _gradient(gradient: Tensor, weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Of W, from that of W / σ with u and v constant: (G - <G, W> / σ · u vᵀ) / σ, in W's precision and layout."""
    own = gradient.dtype != weight.dtype or gradient.stride() != weight.stride()
    wide = torch.empty_like(weight).copy_(gradient) if own else gradient
    share = torch.dot(_rows(wide).reshape(-1), _rows(weight).reshape(-1)) / sigma
    result = wide.div_(sigma) if own else wide / sigma
    _rows(result).addr_(u * (-share / sigma), v)
    return result


class _Divided(torch.autograd.Function):
    """W / σ with σ = uᵀ W v."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight, sigma, u, v)
        return _divided(weight, sigma, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _gradient(gradient, *ctx.saved_tensors), None, None, None, None


@torch.library.custom_op("inpaint::spectral_norm", mutates_args=())
def _as_operator(
    weight: Tensor, u: Tensor, v: Tensor, eps: float, iterate: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All of a forward as one operator, for torch.compile: W / σ, σ, u and v.

    Traced line by line, the norms of ISNet's 96 convolutions would be two fifths of what is traced, and of the time of
    a warm start; and the compiler may keep the old u for backward, where the forward has moved on meanwhile.
    """
    with without_autocast(weight):
        sigma, u, v = _measured(weight, u, v, eps, iterate)
        return _divided(weight, sigma, dtype), sigma, u, _laid_back(weight, v)


@_as_operator.register_fake
def _(
    weight: Tensor, u: Tensor, v: Tensor, eps: float, iterate: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(weight, dtype=dtype), weight.new_empty(()), torch.empty_like(u), torch.empty_like(v)


@torch.library.custom_op("inpaint::spectral_norm_gradient", mutates_args=())
def _gradient_as_operator(gradient: Tensor, weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    with without_autocast(weight):
        return _gradient(gradient, weight, sigma, u, _laid_like(weight, v))


@_gradient_as_operator.register_fake
def _(gradient: Tensor, weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, sigma, u, v = output
    ctx.mark_non_differentiable(sigma, u, v)
    ctx.save_for_backward(inputs[0], sigma, u, v)


def _differentiated(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    return _gradient_as_operator(gradient, *ctx.saved_tensors), None, None, None, None, None


_as_operator.register_autograd(_differentiated, setup_context=_keep)


def spectral_norm(layer: Convolution, *, eps: float = 1e-12) -> Convolution:
    """The layer, a convolution or a transposed one, with its weight under spectral normalisation."""
    norm = SpectralNorm(layer.weight, eps=eps, transposed=isinstance(layer, nn.ConvTranspose2d))
    parametrize.register_parametrization(layer, "weight", norm)
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
