"""Two gloo ranks make the same run as one process on the joined batch."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from inpaint.config.run import TrainingConfig
from inpaint.imaging import Batch
from inpaint.training import Trainer
from tests.training.tiny_method import TinyMethod, batches, build


class Spare(TinyMethod):
    """With parameters that no loss reaches, as in ISNet's Base variant."""

    def __init__(self, steps):
        super().__init__(steps)
        self.generator[1].spare = torch.nn.Linear(2, 2)


def spare():
    torch.manual_seed(0)
    return Spare({"first": 2, "gan": 2})


CASES = {
    "plain": (lambda: build({"first": 2, "gan": 2}), {}),
    "in parts, averaged, clipped": (
        lambda: build({"first": 2, "gan": 2}), {"accumulate": 2, "ema": 0.8, "clip_gradient_norm": 0.1},
    ),
    "recomputed": (lambda: build({"first": 2, "gan": 2}), {"activation_checkpointing": True, "accumulate": 2}),
    "contiguous": (lambda: build({"first": 2, "gan": 2}), {"channels_last": False}),
    "unreached parameters": (spare, {}),
}  # fmt: skip


def half(batch: Batch, rank: int) -> Batch:
    return replace(batch, image=batch.image.chunk(2)[rank], mask=batch.mask.chunk(2)[rank], keys=())


def worker(rank: int, rendezvous: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = {}
    for name, (make, setting) in CASES.items():
        method = make()
        with torch.no_grad():  # rank 0's weights count
            for parameter in method.parameters():
                parameter.add_(rank)
        trainer = Trainer(method, TrainingConfig(**setting), seed=2, rank=rank, world_size=2)
        scalars = [step.scalars() for step in trainer.steps(half(batch, rank) for batch in batches(4))]
        found[name] = {"scalars": scalars, "state": trainer.state_dict()["networks"]}
    torch.save(found, os.path.join(results, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder / "rendezvous"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process_on_the_joined_batch(ranks, case):
    make, setting = CASES[case]
    trainer = Trainer(make(), TrainingConfig(**setting | {"accumulate": 1}), seed=2)
    scalars = [step.scalars() for step in trainer.steps(batches(4))]

    for rank in ranks:
        for mine, theirs in zip(rank[case]["scalars"], scalars, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
        for network, tensors in trainer.state_dict()["networks"].items():
            for name, value in tensors.items():
                torch.testing.assert_close(rank[case]["state"][network][name], value, rtol=1e-5, atol=1e-5)


def test_ranks_hold_the_same_bits(ranks):
    one, two = ranks
    for case in CASES:
        for network, tensors in one[case]["state"].items():
            assert all(torch.equal(value, two[case]["state"][network][name]) for name, value in tensors.items())


def test_several_workers_without_a_process_group_are_refused():
    with pytest.raises(ValueError, match="world_size 2 needs a process group"):
        Trainer(build(), TrainingConfig(), seed=0, world_size=2)
