"""Convolution, residual sum and tanh in one pass over memory, where oneDNN has it (float32 and bf16 on a CPU).

A tanh of its own costs a third of a 32-channel convolution there; applied to the result while that still lies in the
core's cache it costs nearly nothing. Values are the same to the last bit or two. Elsewhere, and under torch.compile,
which fuses by itself, the three are what they look like.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Callable[[Tensor], Tensor]
_KERNELS: Any = torch.ops.mkldnn


def activated(layer: nn.Conv2d, features: Tensor, activation: Activation, *, residual: Tensor | None = None) -> Tensor:
    """activation(residual + layer(features)).

    Args:
        layer: its output has the shape of `residual`.
        features: [B, C, H, W].
        activation: may work in place.
        residual: added before the activation.
    """
    if activation is torch.tanh_ and _has_kernel(layer, features):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else features.dtype
        weight, *others = (None if t is None else t.to(dtype) for t in (layer.weight, layer.bias, residual))
        if weight.dtype in (torch.float32, torch.bfloat16):
            return _ConvTanh.apply(features.to(dtype), weight, *others, layer.stride, layer.padding, layer.dilation)
    drawn = layer(features)
    return activation(drawn if residual is None else residual + drawn)


class _ConvTanh(torch.autograd.Function):
    """tanh(residual + conv(features)); keeps its output, from which the gradient of tanh follows."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None,
        stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        places = (padding, stride, dilation, 1)
        if residual is None:
            result = _KERNELS._convolution_pointwise(features, weight, bias, *places, "tanh", [], "")
        else:
            result = _KERNELS._convolution_pointwise.binary(
                features, residual, weight, bias, *places, "add", 1.0, None, [], ""
            ).tanh_()
        ctx.save_for_backward(features, weight, result)
        ctx.places, ctx.biases = (stride, padding, dilation, False, (0, 0), 1), None if bias is None else bias.shape
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        features, weight, result = ctx.saved_tensors
        inside = torch.ops.aten.tanh_backward(gradient, result)
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
        found = torch.ops.aten.convolution_backward(inside, features, weight, ctx.biases, *ctx.places, wanted)
        return *found, inside if ctx.needs_input_grad[3] else None, None, None, None


def _has_kernel(layer: nn.Conv2d, features: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and features.device.type == "cpu"
        and features.is_contiguous(memory_format=torch.channels_last)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )
