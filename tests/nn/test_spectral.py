"""Our spectral norm beside torch's own: values, gradients, vectors and states."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from inpaint.nn.spectral import _as_operator, spectral_norm

LAYERS = [nn.Conv2d, nn.ConvTranspose2d]  # torch flattens the latter along its output channels too


def pair(kind=nn.Conv2d, layout=torch.contiguous_format):
    """The same convolution under our norm and under torch's hooks, with the same vectors."""
    torch.manual_seed(0)
    plain = kind(5, 7, 3)
    ours, theirs = spectral_norm(copy.deepcopy(plain)), nn.utils.spectral_norm(copy.deepcopy(plain))
    with torch.no_grad():
        theirs.weight_u.copy_(ours.parametrizations.weight[0]._u)
        theirs.weight_v.copy_(ours.parametrizations.weight[0]._v)
    return ours.to(memory_format=layout), theirs


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_gradients_and_vectors_are_torchs(kind, layout):
    ours, theirs = pair(kind, layout)
    image = torch.rand(2, 5, 9, 9)
    for _ in range(3):
        one, two = ours(image), theirs(image)
        one.sin().sum().backward()
        two.sin().sum().backward()
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    norm = ours.parametrizations.weight
    torch.testing.assert_close(norm.original.grad, theirs.weight_orig.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm[0]._u, theirs.weight_u, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm[0]._v, theirs.weight_v, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_states_have_the_names_and_shapes_of_torchs_parametrisation(kind):
    theirs = nn.utils.parametrizations.spectral_norm(kind(2, 3, 3))
    ours = spectral_norm(kind(2, 3, 3))
    one, other = ({name: value.shape for name, value in layer.state_dict().items()} for layer in (ours, theirs))
    assert one == other


def test_the_gradient_agrees_with_differences_in_float64():
    torch.manual_seed(0)
    layer = spectral_norm(nn.Conv2d(2, 3, 3, dtype=torch.float64)).eval()
    norm = layer.parametrizations.weight[0]
    weight = layer.parametrizations.weight.original
    assert torch.autograd.gradcheck(lambda w: norm(w), (weight,))


def test_one_power_iteration_per_training_forward_and_none_in_inference():
    layer = spectral_norm(nn.Conv2d(4, 6, 3))
    norm = layer.parametrizations.weight[0]
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    before, rows = norm._u.clone(), layer.parametrizations.weight.original.detach().flatten(1)
    layer(torch.rand(1, 4, 5, 5))
    v = nn.functional.normalize(rows.T @ before, dim=0)
    u = nn.functional.normalize(rows @ v, dim=0)
    torch.testing.assert_close(norm._v, v)
    torch.testing.assert_close(norm._u, u)
    layer.eval()(torch.rand(1, 4, 5, 5))
    torch.testing.assert_close(norm._u, u)


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_gives_a_narrow_weight_from_a_norm_in_float32(kind):
    layer = spectral_norm(kind(16, 16, 3))
    exact = layer.eval().weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = layer.weight
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, exact.to(torch.bfloat16))
    narrow.float().square().sum().backward()
    assert layer.parametrizations.weight.original.grad.dtype == torch.float32


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("iterate", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_for_a_compiler_gives_the_norm_its_gradient_and_its_vectors(layout, iterate, dtype):
    layer = pair(layout=layout)[0].train(iterate)
    norm, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    inputs = (weight, norm._u.clone(), norm._v.clone(), norm.eps, iterate, dtype)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_as_operator, inputs, test_utils=checks)

    divided, _, u, v = _as_operator(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = norm(weight)
    assert torch.equal(divided, expected)
    assert torch.equal(u, norm._u)
    assert torch.equal(v, norm._v)
    (gradient,), (wanted,) = (torch.autograd.grad(one.float().sin().sum(), weight) for one in (divided, expected))
    assert torch.equal(gradient, wanted)
