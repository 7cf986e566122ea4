"""The host waits for the device only when a value is shown: checked on every method, by what it reads back."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inpaint.config.run import TrainingConfig
from inpaint.methods import METHODS
from inpaint.training import Trainer
from tests.methods.test_contract import batches, build, settings

QUIET = 10**9  # steps between looks at the not-finite flag
ON_HOST = {  # looks that a method takes where the tensors are the host's anyway, and nowhere else
    "context_encoder": ["_local_scalar_dense"],  # at the shape of the hole
    "edge_texture": ["equal", "equal"],  # whether Canny's hysteresis has come to rest
}


class HostReads(TorchDispatchMode):
    """Operations whose result the host has to know before it can go on."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function.overloadpacket.__name__
        if name in self.WAITING and arguments[0].numel():
            self.seen.append(name)
        return function(*arguments, **(named or {}))


def last_stage(name):
    """A run of the method's last stage alone."""
    run = settings(name, steps=8)
    *others, _ = [stage for stage, one in run.stages.items() if one.steps]
    update = {stage: run.stages[stage].model_copy(update={"steps": 0}) for stage in others}
    return run.model_copy(update={"stages": {**run.stages, **update}})


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_that_shows_nothing_reads_nothing_back(name, precision):
    run = last_stage(name)
    config = TrainingConfig(check_every=QUIET, precision=precision, ema=0.99, clip_gradient_norm=1.0)
    trainer = Trainer(build(run), config, seed=0)
    steps = trainer.steps(batches(run, 3))
    next(steps)  # which makes optimizers
    with HostReads() as reads:
        step = next(steps)
    assert reads.seen == ON_HOST.get(name, [])
    with HostReads() as reads:
        step.values.sum().item()
    assert reads.seen == ["_local_scalar_dense"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("graphs", [False, True])
def test_on_a_gpu_a_step_that_shows_nothing_never_synchronises(name, graphs):
    run = last_stage(name)
    if graphs and run.method.name == "edge_texture":
        pytest.skip("Ranger21 counts its steps on the host and is refused with CUDA graphs")
    config = TrainingConfig(check_every=QUIET, precision="bfloat16", ema=0.99, cuda_graphs=graphs)
    trainer = Trainer(copy.deepcopy(build(run)), config, seed=0, device="cuda")
    pinned = [replace(b, image=b.image.pin_memory(), mask=b.mask.pin_memory()) for b in batches(run, 8)]
    steps = trainer.steps(pinned)
    for _ in range(5):
        next(steps)  # optimizers, cuDNN's choice of kernels, the captured graph
    try:
        torch.cuda.set_sync_debug_mode("error")
        next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_is_the_ordinary_one():
    run = last_stage("isnet")
    found = []
    for graphs in (False, True):
        trainer = Trainer(build(run), TrainingConfig(check_every=QUIET, cuda_graphs=graphs), seed=0, device="cuda")
        found.append([step.scalars() for step in trainer.steps(batches(run, 6))])
    for plain, captured in zip(*found, strict=True):
        assert captured == pytest.approx(plain, rel=1e-2, abs=1e-4)
