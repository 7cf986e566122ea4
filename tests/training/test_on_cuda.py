"""What a GPU refuses or waits for, found without one: tensors on the host, kernels that cannot be repeated exactly."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inpaint.config.run import TrainingConfig
from inpaint.imaging import Batch
from inpaint.methods import METHODS
from inpaint.methods.base import Method
from inpaint.training import Trainer
from tests.methods.test_contract import batches, build, holes, settings

# That `torch.use_deterministic_algorithms` refuses on CUDA, by its documentation. Bilinear and bicubic enlarging are
# missing here: F.interpolate replaces them on CUDA when the mode is on.
UNREPEATABLE = {
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward",
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward",
    "avg_pool3d_backward", "fractional_max_pool2d_backward", "max_unpool2d", "grid_sampler_2d_backward",
    "nll_loss_forward", "nll_loss2d_forward", "put", "put_", "histc", "bincount", "median", "scatter_reduce",
}  # fmt: skip
STAGES = [(name, stage) for name in METHODS for stage in settings(name).method.stage_names]


class Kernels(TorchDispatchMode):
    """The names of the kernels that run inside."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.seen.add(function.overloadpacket.__name__)
        return function(*arguments, **(named or {}))


def only(name, stage):
    """A tiny run of one stage of a method."""
    run = settings(name, steps=8)
    lengths = {known: one.model_copy(update={"steps": 8 * (known == stage)}) for known, one in run.stages.items()}
    return run.model_copy(update={"stages": lengths})


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_a_deterministic_step_runs_no_kernel_that_cuda_cannot_repeat(name, stage):
    run = only(name, stage)
    trainer = Trainer(build(run), TrainingConfig(deterministic=True), seed=0)

    with Kernels() as kernels:
        next(trainer.steps(batches(run, 1)))

    assert "convolution_backward" in kernels.seen
    assert not kernels.seen & UNREPEATABLE


@pytest.fixture(scope="module")
def gpu():
    """Tensors without content on a CUDA device that is not there; operations on two devices at once raise."""
    return FakeTensorMode(allow_non_fake_inputs=False)


class HostCopies(TorchDispatchMode):
    """Operations that bring something from the host to the device, which waits for a copy out of ordinary memory."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        given = [value for value in tree_leaves((arguments, named)) if isinstance(value, torch.Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        if any(value.is_cpu for value in given) and any(value.is_cuda for value in made):
            self.seen.append(function.overloadpacket.__name__)
        return result


def on_gpu(method: Method) -> None:
    for module in method.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(emptied(value), requires_grad=value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = emptied(value)


def emptied(value):
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")


def backward(loss, inputs, retain_graph):
    """In place of autograd's engine, which wants a driver."""
    assert loss.is_cuda
    for parameter in inputs:
        parameter.grad = torch.empty_like(parameter)


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_a_step_on_cuda_leaves_nothing_on_the_host_and_reads_nothing_back(gpu, name, stage):
    run = only(name, stage)
    method = copy.deepcopy(build(run))  # the others' feature networks stay on the host
    config = TrainingConfig(check_every=10**9, precision="bfloat16", ema=0.99, clip_gradient_norm=1.0, accumulate=2)
    trainer = Trainer(method, config, seed=0)
    mask, side = holes(run, 4), run.data.image_size

    with gpu, ExitStack() as stack:
        for question, answer in {
            "is_available": True, "is_bf16_supported": True, "current_device": 0, "is_current_stream_capturing": False
        }.items():  # fmt: skip
            stack.enter_context(mock.patch(f"torch.cuda.{question}", return_value=answer))
        stack.enter_context(mock.patch("torch.autograd.backward", backward))
        on_gpu(method)
        trainer.device = torch.device("cuda")
        batch = Batch(torch.empty(4, 3, side, side, device="cuda"), torch.empty(mask.shape, device="cuda"))
        steps = trainer.steps([batch] * 3)
        next(steps)
        with HostCopies() as copies, mock.patch.object(torch.Tensor, "new_tensor", side_effect=AssertionError):
            assert next(steps).values.is_cuda
        assert copies.seen == []
