"""Convolution and tanh in one kernel: the same values and gradients as the two one after another."""

from __future__ import annotations

import pytest
import torch

from inpaint.nn.fused import activated
from inpaint.nn.spectral import conv

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def case(*, bias=False, residual=False, stride=1, dilation=1):
    torch.manual_seed(0)
    layer = conv(4, 6, 3, stride=stride, padding=dilation, dilation=dilation, bias=bias, std=0.3).eval()
    features = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    size = 8 // stride
    added = torch.randn(2, 6, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
    if bias:
        torch.nn.init.normal_(layer.bias)
    return layer, features, added if residual else None


def gradients(result, layer, features, added):
    torch.manual_seed(1)
    wanted = [features, *layer.parameters(), *([] if added is None else [added])]
    return torch.autograd.grad((result * torch.randn_like(result)).sum(), wanted)


@pytest.mark.parametrize(
    "setting",
    [{}, {"bias": True}, {"residual": True}, {"bias": True, "residual": True}, {"stride": 2}, {"dilation": 2}],
)
def test_values_and_gradients_are_those_of_convolution_sum_and_tanh(setting):
    layer, features, added = case(**setting)
    fused = activated(layer, features, torch.tanh_, residual=added)
    plain = layer(features)
    plain = torch.tanh(plain if added is None else added + plain)

    assert "ConvTanh" in type(fused.grad_fn).__name__
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-7)
    for one, other in zip(
        gradients(fused, layer, features, added), gradients(plain, layer, features, added), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_under_autocast_it_draws_in_bf16_and_gives_float32_weights_float32_gradients():
    layer, features, added = case(residual=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = activated(layer, features, torch.tanh_, residual=added)
    assert fused.dtype == torch.bfloat16
    found = gradients(fused.float(), layer, features, added)
    assert {g.dtype for g in found} == {torch.float32}
    expected = gradients(torch.tanh(added + layer(features)), layer, features, added)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def test_only_what_needs_a_gradient_gets_one():
    layer, features, added = case(residual=True)
    layer.requires_grad_(False)
    activated(layer, features.detach(), torch.tanh_, residual=added).sum().backward()
    assert added.grad is not None
    assert next(layer.parameters()).grad is None


@pytest.mark.parametrize(
    ("features", "activation"),
    [
        (torch.randn(1, 4, 8, 8), torch.tanh_),  # not channels last: as written, bit for bit
        (torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last), torch.relu_),
    ],
)
def test_elsewhere_it_is_what_it_looks_like(features, activation):
    layer, _, _ = case()
    assert torch.equal(activated(layer, features, activation), activation(layer(features)))
