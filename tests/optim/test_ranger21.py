"""Ranger21 against its component list, hand-worked cases and numbers from the published library."""

import io

import pytest
import torch

from inpaint.config.optim import Ranger21 as Ranger21Config
from inpaint.optim import build_optimizer, set_learning_rate
from inpaint.optim.ranger21 import Ranger21, noise_norm, prepared, rate_factor, warm_up_steps


def weights(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.1) for shape in shapes]


def set_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_forty_steps_end_where_the_published_library_ends():
    # pytorch_optimizer 3.9.0: Ranger21([w, b], num_iterations=40, lr=1e-2, warm_down_min_lr=3e-3), same gradients
    w = torch.nn.Parameter(torch.linspace(-1, 1, 24).view(2, 3, 2, 2))
    b = torch.nn.Parameter(torch.tensor([0.5, -0.25, 0.125, 2.0]))
    optimizer = Ranger21([w, b], lr=1e-2, total_steps=40)
    seen = {}
    for step in range(1, 41):
        w.grad = torch.sin(torch.arange(24.0) * step).view(2, 3, 2, 2)
        b.grad = torch.cos(torch.arange(4.0) * step) * 1e-3
        optimizer.step()
        seen[step] = [*w.flatten()[[0, 7, 23]].tolist(), *b.tolist()]

    assert seen[1] == pytest.approx(
        [-0.99795085, -0.39342976, 1.00212526, 0.49787432, -0.25212550, 0.12712553, 2.00212502], abs=1e-6
    )
    assert seen[12] == pytest.approx(
        [-1.00482559, -0.39932573, 1.00594747, 0.47705650, -0.25548694, 0.12166113, 1.99594522], abs=1e-6
    )
    assert seen[40] == pytest.approx(
        [-1.00530291, -0.39470297, 1.00857890, 0.44798964, -0.27210861, 0.10585648, 1.98107004], abs=1e-5
    )


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_steps_on_balanced_unit_gradients_are_the_known_multiples_of_the_rate(scale):
    # spec, acceptance fact 8; the first is 10 · 0.19 · 2 / 2.23473. AGC clips every unit at either scale.
    theta = torch.nn.Parameter(torch.full((4, 250), 0.01))
    signs = torch.ones(4, 250)
    signs[:, ::2] = -1
    optimizer = Ranger21([theta], lr=1e-4, total_steps=None, weight_decay=0.0, norm_loss=0.0)
    moved = []
    for _ in range(4):
        before = theta.detach().double().clone()
        theta.grad = scale * signs
        optimizer.step()
        moved.append((theta.detach().double() - before).abs().mean().item() / 1e-4)

    assert moved == pytest.approx([1.7004, 0.4475, 0.8220, 0.4475], abs=2e-3)


def test_noise_norms_of_the_two_flavours():
    assert noise_norm(0.999) == pytest.approx(2.23473, abs=1e-5)
    assert noise_norm(0.9) == pytest.approx(2.10238, abs=1e-5)


def test_rate_rises_stays_and_falls_as_published_with_a_floor_of_three_tenths():
    rates = {step: 1e-4 * rate_factor(step, 100_000, 0.999) for step in (1, 1000, 2000, 71_999, 86_000, 100_000)}

    assert rates == pytest.approx(
        {1: 5e-8, 1000: 5e-5, 2000: 1e-4, 71_999: 1e-4, 86_000: 6.5e-5, 100_000: 3e-5}, rel=1e-4
    )


@pytest.mark.parametrize(("total", "steps"), [(1000, 220), (4444, 977), (4445, 2000), (100_000, 2000), (1, 1)])
def test_warm_up_is_two_thousand_steps_or_a_share_of_a_short_training(total, steps):
    assert warm_up_steps(total, 0.999) == steps


@pytest.mark.parametrize("total", [1, 2, 7, 1000, 4445])
def test_rate_never_exceeds_its_base_and_stays_on_the_floor_after_the_end(total):
    factors = [rate_factor(step, total, 0.999) for step in range(1, total + 10)]

    assert max(factors) <= 1
    assert min(factors) > 0
    assert factors[-1] == pytest.approx(0.3)


def test_small_base_rate_is_not_raised_by_the_floor():
    (theta,) = weights((3, 3))
    optimizer = Ranger21([theta], lr=1e-5, total_steps=20)
    rates = []
    for step in range(20):
        set_gradients([theta], step)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["rate"])

    assert max(rates) <= 1e-5
    assert rates[-1] == pytest.approx(3e-6)  # the library's floor would make this 3e-5


def test_with_zero_gradients_every_tensor_decays_by_the_same_stable_share():
    parameters = weights((4, 3, 3, 3), (5,), (7, 2))
    before = [p.detach().clone() for p in parameters]
    count = sum(p.numel() for p in parameters)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    Ranger21(parameters, lr=1e-3, total_steps=None, weight_decay=0.1, norm_loss=0.0).step()

    for old, new in zip(before, parameters, strict=True):  # spec, acceptance fact 11: 1 - lr·wd·√N
        torch.testing.assert_close(new.detach(), old * (1 - 1e-3 * 0.1 * count**0.5))


def test_parameters_without_a_gradient_do_not_move():
    moving, resting = weights((3, 3), (3, 3))
    before = resting.detach().clone()
    set_gradients([moving], 0)
    Ranger21([moving, resting], lr=1e-2, total_steps=None).step()

    assert torch.equal(resting, before)


def test_norm_loss_pulls_every_unit_towards_length_one():
    theta = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))  # norms 5 and 0.5
    theta.grad = torch.zeros_like(theta)
    Ranger21([theta], lr=0.5, total_steps=None, weight_decay=0.0, norm_loss=0.1).step()

    # 1 - 2·0.5·0.1·(1 - 1/5) = 0.92 and 1 - 0.1·(1 - 2) = 1.1
    torch.testing.assert_close(theta.detach(), torch.tensor([[2.76, 3.68], [0.33, 0.44]]))


def test_gradient_is_clipped_per_unit_then_centred_then_standardised():
    theta = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    gradient = torch.tensor([[3.0, 4.0], [0.003, 0.001]])  # norms 5 and 0.0032; the bound is 0.01 · 1

    # first row 0.01 · (0.6, 0.8), second untouched; each row minus its mean
    expected = torch.tensor([[-0.001, 0.001], [0.001, -0.001]])
    torch.testing.assert_close(prepared(theta, gradient, standardise=False), expected)
    # sample standard deviation of ±0.001 four times is 0.001 · √(4/3)
    torch.testing.assert_close(
        prepared(theta, gradient, standardise=True), expected / 0.001 * 0.75**0.5, rtol=1e-4, atol=0
    )
    assert torch.equal(gradient, torch.tensor([[3.0, 4.0], [0.003, 0.001]]))  # the caller's gradient is left alone


def test_vector_is_clipped_as_a_whole_and_not_centred():
    gradient = prepared(torch.zeros(3), torch.tensor([3.0, 0.0, 4.0]), standardise=False)

    torch.testing.assert_close(gradient, torch.tensor([0.6e-5, 0.0, 0.8e-5]))  # 0.01 · 0.001


def test_every_fifth_step_returns_half_way_to_the_slow_weights():
    theta = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
    start = theta.detach().clone()
    optimizer = Ranger21([theta], lr=1e-2, total_steps=None)
    for step in range(5):
        set_gradients([theta], step)
        before = theta.detach().clone()
        optimizer.step()

    slow = optimizer.state[theta]["slow"]
    assert torch.equal(slow, theta)
    assert (theta - start).abs().max() < (before - start).abs().max()


def test_paper_flavour_first_step_is_algorithm_1_by_hand():
    theta = torch.nn.Parameter(torch.tensor([[1.0, -1.0]]))
    theta.grad = torch.tensor([[0.004, -0.004]])  # norm 0.00566 < 0.01·√2: neither clipped nor moved by centring
    Ranger21([theta], lr=1e-3, total_steps=None, weight_decay=0.0, norm_loss=0.0, flavour="paper").step()

    # m = 0.19 g; 1.9 m / (1 - 0.9) / 2.10238; v̂ = g², so the direction is 1.9·0.19·10/2.10238 = 1.71711 in units of lr
    torch.testing.assert_close(theta.detach(), torch.tensor([[1 - 1.71711e-3, -1 + 1.71711e-3]]), atol=1e-7, rtol=0)


def test_largest_variance_never_falls_in_the_paper_flavour_and_is_absent_in_the_reference():
    (theta,) = weights((4, 4))
    optimizer = Ranger21([theta], lr=1e-3, total_steps=None, betas=(0.9, 0.5), flavour="paper")
    last = torch.zeros(4, 4)
    for step in range(8):
        set_gradients([theta], step)
        theta.grad *= 0.001 / (1 + step)
        optimizer.step()
        largest = optimizer.state[theta]["largest_variance"]
        assert (largest >= last).all()
        last = largest.clone()
    assert (last > optimizer.state[theta]["variance"]).any()

    set_gradients([theta], 0)
    reference = Ranger21([theta], lr=1e-3, total_steps=None)
    reference.step()
    assert "largest_variance" not in reference.state[theta]


@pytest.mark.parametrize("flavour", ["reference", "paper"])
@pytest.mark.parametrize("stop", [3, 5, 8])
def test_resumed_training_is_bit_exact_through_a_weights_only_file(flavour, stop):
    def build():
        parameters = weights((4, 3, 3, 3), (5,), (1,))
        return parameters, Ranger21(parameters, lr=1e-2, total_steps=12, flavour=flavour)

    unbroken, optimizer = build()
    for step in range(12):
        if step == stop:
            file = io.BytesIO()
            torch.save({"weights": unbroken, "optimizer": optimizer.state_dict()}, file)
        set_gradients(unbroken, step)
        optimizer.step()

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, optimizer = build()
    for parameter, value in zip(resumed, saved["weights"], strict=True):
        parameter.data.copy_(value)
    optimizer.load_state_dict(saved["optimizer"])
    for step in range(stop, 12):
        set_gradients(resumed, step)
        optimizer.step()

    for a, b in zip(unbroken, resumed, strict=True):
        assert torch.equal(a, b)


def test_impossible_settings_are_refused():
    for wrong in ({"lr": 0.0}, {"betas": (1.0, 0.9)}, {"weight_decay": -1.0}, {"total_steps": 0}, {"flavour": "new"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Ranger21(weights((2, 2)), **({"lr": 1e-3, "total_steps": 10} | wrong))


def test_rate_that_is_reported_is_the_rate_that_is_applied():
    (theta,) = weights((3, 3))
    config = Ranger21Config(learning_rate=1e-3)
    optimizer = build_optimizer(config, [theta], steps=30)
    for step in range(30):
        set_gradients([theta], step)
        reported = set_learning_rate(optimizer, config, step=step, steps=30)
        optimizer.step()
        assert reported == pytest.approx(optimizer.param_groups[0]["rate"])
