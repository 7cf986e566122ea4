"""Optimizers and rates from settings, against torch's own schedulers."""

from __future__ import annotations

import pytest
import torch

from inpaint.config.optim import Adam, ConstantSchedule, CosineSchedule, Ranger21, StepSchedule
from inpaint.optim import build_optimizer, rate_factor, set_learning_rate


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(3))


def torch_rates(scheduler, steps, **settings):
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    schedule = scheduler(optimizer, **settings)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_the_step_schedule_is_torchs_step_lr():
    ours = [rate_factor(StepSchedule(every=3, factor=0.1), step=step, steps=8) for step in range(8)]
    assert ours == pytest.approx(torch_rates(torch.optim.lr_scheduler.StepLR, 8, step_size=3, gamma=0.1))


def test_the_cosine_schedule_is_torchs_after_the_warm_up():
    schedule = CosineSchedule(warmup=4, floor=0.1)
    ours = [rate_factor(schedule, step=step, steps=14) for step in range(14)]
    cosine = torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR, 10, T_max=10, eta_min=0.1)
    assert ours == pytest.approx([0.25, 0.5, 0.75, 1.0, *cosine])


def test_a_constant_rate_stays():
    assert [rate_factor(ConstantSchedule(), step=step, steps=5) for step in range(5)] == [1.0] * 5


def test_the_rate_of_a_step_is_set():
    config = Adam(learning_rate=0.2, schedule=StepSchedule(every=2, factor=0.5))
    optimizer = build_optimizer(config, [parameter()], steps=10)
    assert set_learning_rate(optimizer, config, step=5, steps=10) == pytest.approx(0.05)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(("decay", "reference"), [(0.0, torch.optim.Adam), (0.1, torch.optim.AdamW)])
def test_adam_moves_as_torchs_and_decays_decoupled(decay, reference):
    one, two = parameter(), parameter()
    ours = build_optimizer(Adam(learning_rate=0.1, betas=(0.0, 0.9), weight_decay=decay), [one], steps=3)
    theirs = reference([two], lr=0.1, betas=(0.0, 0.9), weight_decay=decay)
    for value in (0.3, -2.0, 0.7):
        one.grad, two.grad = torch.full((3,), value), torch.full((3,), value)
        ours.step()
        theirs.step()
    torch.testing.assert_close(one, two)
    assert ours.defaults["fused"]


def test_ranger21_knows_the_length_of_its_stage():
    optimizer = build_optimizer(Ranger21(learning_rate=1e-3, flavour="paper"), [parameter()], steps=77)
    assert optimizer.param_groups[0]["total_steps"] == 77
    assert optimizer.param_groups[0]["flavour"] == "paper"


def test_ranger21_cannot_live_in_a_cuda_graph():
    with pytest.raises(ValueError, match="set training.cuda_graphs: false"):
        build_optimizer(Ranger21(learning_rate=1e-3), [parameter()], steps=77, capturable=True)
