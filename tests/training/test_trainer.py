"""The trainer on a tiny method: what moves, what is computed, and that settings change speed but not results."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inpaint.config.optim import Adam
from inpaint.config.run import TrainingConfig
from inpaint.errors import CheckpointError, ConfigError
from inpaint.training import NotFiniteError, Trainer
from tests.training.tiny_method import batches, build


def train(method, config=None, count=6, **options):
    trainer = Trainer(method, config or TrainingConfig(), seed=5, **options)
    return trainer, [(step, step.scalars()) for step in trainer.steps(batches(count))]


def weights(method):
    return {name: value.clone() for name, value in method.state_dict().items()}


def assert_close(one, other, tolerance):
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_walks_the_stages_in_order_and_ends_after_the_last_step():
    trainer, steps = train(build({"first": 2, "gan": 3}), count=9)

    assert [(s.number, s.stage, s.stage_step) for s, _ in steps] == [
        (1, "first", 1), (2, "first", 2), (3, "gan", 1), (4, "gan", 2), (5, "gan", 3),
    ]  # fmt: skip
    assert trainer.total_steps == trainer.step == 5


def test_leaves_out_stages_of_no_steps():
    _, steps = train(build({"first": 0, "gan": 2}))
    assert [s.stage for s, _ in steps] == ["gan", "gan"]


def test_a_stage_moves_exactly_the_networks_it_names():
    method = build({"first": 2, "gan": 2})
    trainer = Trainer(method, TrainingConfig(), seed=0)
    start, seen = weights(method), {}
    for step in trainer.steps(batches(4)):
        seen[step.number] = weights(method)

    def moved(before, after):
        return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}

    assert moved(start, seen[2]) == {"generator"}
    assert moved(seen[2], seen[4]) == {"generator", "discriminator"}


def test_shows_every_term_unweighted_and_the_weighted_sum():
    _, steps = train(build())
    scalars = steps[-1][1]

    assert scalars["generator/loss"] == pytest.approx(
        scalars["generator/l1"] + 0.1 * scalars["generator/adversarial"] + 0.5 * scalars["generator/perceptual"]
    )
    assert set(steps[0][1]) == {"generator/l1", "generator/loss", "generator/learning_rate"}


def test_a_term_of_weight_zero_is_never_asked_for():
    method = build({"first": 2, "gan": 2})
    method.perceptual = 0.0
    train(method)
    assert set(method.asked) == {frozenset({"l1"}), frozenset({"l1", "adversarial"})}


def test_a_weight_may_follow_the_progress_of_its_stage():
    _, steps = train(build({"first": 0, "gan": 4}, ramp=True))
    shares = [
        (s["generator/loss"] - s["generator/l1"] - 0.5 * s["generator/perceptual"]) / s["generator/adversarial"]
        for _, s in steps
    ]
    assert shares == pytest.approx([0.0, 0.25, 0.5, 0.75], abs=1e-5)


def test_the_first_step_is_the_one_adam_would_make_by_hand():
    method, twin = build({"first": 1, "gan": 0}), build({"first": 1, "gan": 0})
    first_rate = 1e-2 / 2  # the first of two steps of warm-up
    optimizer = torch.optim.Adam(twin.generator.parameters(), lr=first_rate, betas=(0.5, 0.9), eps=1e-3)
    batch = batches(1)[0]

    train(method, count=1)
    drawn = twin.train().inpaint(batch.image, batch.mask)
    ((drawn - batch.image).abs().mean() / batch.mask.mean()).backward()
    optimizer.step()

    assert_close(weights(twin), weights(method), 1e-6)


@pytest.mark.parametrize(
    "setting",
    [
        {"accumulate": 2},
        {"accumulate": 4},
        {"activation_checkpointing": True},
        {"channels_last": False},
        {"deterministic": True},
    ],
)
def test_how_a_step_is_computed_does_not_change_it(setting):
    plain, changed = build(), build()
    _, steps = train(plain)
    _, others = train(changed, TrainingConfig(**setting))

    assert_close(weights(plain), weights(changed), 1e-5)
    for (_, one), (_, other) in zip(steps, others, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_checkpointing_repeats_dropout_and_power_iteration_exactly():
    plain, changed = build(dropout=0.3), build(dropout=0.3)
    train(plain)
    train(changed, TrainingConfig(activation_checkpointing=True))
    for name, value in weights(plain).items():
        assert torch.equal(value, changed.state_dict()[name]), name


def test_bfloat16_stays_near_float32_and_keeps_float32_weights():
    plain, changed = build(), build()
    _, steps = train(plain)
    _, others = train(changed, TrainingConfig(precision="bfloat16"))

    assert {p.dtype for p in changed.parameters()} == {torch.float32}
    assert others[-1][1]["generator/l1"] == pytest.approx(steps[-1][1]["generator/l1"], rel=0.01)
    assert others[-1][1] != steps[-1][1]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"ema": 0.9}, {"clip_gradient_norm": 0.1}])
def test_a_compiled_step_agrees_with_the_plain_one_and_is_compiled_once(settings, caplog):
    """Six steps of other holes, weights that ramp and two stages: nothing of a step may be frozen into its graph."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, changed = build(ramp=True), build(ramp=True)
    _, steps = train(plain, TrainingConfig(**settings))
    trainer = Trainer(changed, TrainingConfig(compile=True, **settings), seed=5)
    graphs, others = [], []
    for step in trainer.steps(batches(6)):
        others.append(step.scalars())
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    assert_close(weights(plain), weights(changed), 1e-5)
    for (_, one), other in zip(steps, others, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert graphs[0] == graphs[1] == graphs[2] < graphs[3] == graphs[4] == graphs[5]  # three steps of each stage
    assert "runs as written" not in caplog.text


def test_what_cannot_be_compiled_runs_as_written(monkeypatch, caplog):
    from torch._dynamo.exc import TorchDynamoException

    def refuse(function, **_):
        def run(*_):
            raise TorchDynamoException("no compiler here")

        return run

    monkeypatch.setattr(torch, "compile", refuse)
    plain, changed = build(), build()
    train(plain)
    train(changed, TrainingConfig(compile=True))

    assert_close(weights(plain), weights(changed), 0)
    assert "stage gan, update generator cannot be compiled and runs as written: no compiler here" in caplog.text


@pytest.mark.slow
def test_a_missing_compiler_costs_a_warning_and_changes_nothing(monkeypatch, caplog, tmp_path):
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where nothing was compiled before
    torch.compiler.reset()
    plain, changed = build({"first": 2, "gan": 0}), build({"first": 2, "gan": 0})
    train(plain, count=2)
    with inductor.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}):
        train(changed, TrainingConfig(compile=True), count=2)
    torch.compiler.reset()

    assert_close(weights(plain), weights(changed), 0)
    assert "stage first cannot be compiled and runs as written" in caplog.text


def test_a_clipped_gradient_is_as_long_as_allowed():
    trainer, steps = train(build({"first": 3, "gan": 0}), TrainingConfig(clip_gradient_norm=0.01))

    assert steps[-1][1]["generator/gradient_norm"] > 0.01
    assert trainer.gradient_norms()["generator"].item() == pytest.approx(0.01, rel=1e-3)


def test_averaged_weights_follow_the_weights_at_the_decay():
    method = build({"first": 2, "gan": 0})
    trainer = Trainer(method, TrainingConfig(ema=0.9), seed=0)
    name = "generator.0.weight"
    path = [weights(method)[name]]
    path += [weights(method)[name] for _ in trainer.steps(batches(2))]

    expected = 0.9 * (0.9 * path[0] + 0.1 * path[1]) + 0.1 * path[2]
    with trainer.averaged():
        torch.testing.assert_close(method.state_dict()[name], expected)
    assert torch.equal(method.state_dict()[name], path[2])
    torch.testing.assert_close(trainer.state_dict()["networks"]["generator"]["0.weight"], expected)


def test_a_network_that_a_stage_leaves_alone_rests_with_its_averaged_weights():
    method = build({"first": 2, "gan": 2})
    first, gan = method.stages()
    method.stages = lambda: (first, replace(gan, updates=gan.updates[:1]))  # which trains the discriminator alone
    trainer = Trainer(method, TrainingConfig(ema=0.9), seed=0)
    live = [weights(method)["generator.0.weight"] for _ in trainer.steps(batches(4))]
    with trainer.averaged():
        averaged = weights(method)

    assert not torch.equal(live[1], averaged["generator.0.weight"])
    assert torch.equal(live[2], averaged["generator.0.weight"])
    assert torch.equal(live[3], averaged["generator.0.weight"])
    assert not torch.equal(weights(method)["discriminator.2.weight"], averaged["discriminator.2.weight"])


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "setting", [{}, {"ema": 0.9, "accumulate": 2, "clip_gradient_norm": 0.05}], ids=["plain", "all"]
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(stop, setting):
    config, data = TrainingConfig(deterministic=True, **setting), batches(6)
    unbroken = build(dropout=0.2)
    whole = Trainer(unbroken, config, seed=3)
    history = [step.scalars() for step in whole.steps(data)]

    first = Trainer(build(dropout=0.2), config, seed=3)
    for _ in first.steps(data[:stop]):
        pass
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    torch.rand(7)  # whatever else drew numbers meanwhile
    resumed = build(seed=9, dropout=0.2)
    resumed.prior.load_state_dict(unbroken.prior.state_dict())  # frozen networks come from elsewhere
    second = Trainer(resumed, config, seed=3)
    second.load_state_dict(torch.load(file, weights_only=True))

    assert second.step == stop
    assert [step.scalars() for step in second.steps(data[stop:])] == history[stop:]
    for name, value in unbroken.state_dict().items():
        if not name.startswith("prior"):
            assert torch.equal(value, resumed.state_dict()[name]), name
    with whole.averaged(), second.averaged():
        assert torch.equal(unbroken.generator[0].weight, resumed.generator[0].weight)


def test_random_draws_of_a_step_depend_on_seed_and_step_alone():
    one, two, other = build(dropout=0.5), build(dropout=0.5), build(dropout=0.5)
    train(one)
    torch.rand(100)
    train(two)
    trainer = Trainer(other, TrainingConfig(), seed=6)
    for _ in trainer.steps(batches(6)):
        pass
    assert torch.equal(one.generator[0].weight, two.generator[0].weight)
    assert not torch.equal(one.generator[0].weight, other.generator[0].weight)


def test_the_state_of_other_networks_or_stages_is_refused():
    trainer, _ = train(build())
    state = trainer.state_dict()
    strange = {"networks": {"generator": {}}, "trainer": state["trainer"]}
    with pytest.raises(CheckpointError, match="holds networks generator, this method has discriminator, generator"):
        trainer.load_state_dict(strange)
    longer = Trainer(build({"first": 9, "gan": 3}), TrainingConfig(), seed=5)
    with pytest.raises(CheckpointError, match="step 6 in stage gan, where this run of 12 steps has stage first"):
        longer.load_state_dict(state)
    wide = copy.deepcopy(state)
    wide["networks"]["generator"]["0.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"network generator: .*0\.bias"):
        trainer.load_state_dict(wide)


def test_a_loss_that_is_not_finite_is_named_at_the_next_look():
    data = batches(6)
    data[3] = replace(data[3], image=data[3].image * float("nan"))
    trainer = Trainer(build({"first": 3, "gan": 9}), TrainingConfig(check_every=5), seed=0)
    steps = trainer.steps(data)
    assert [next(steps).number for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(NotFiniteError, match="step 4: stage gan, update discriminator: real is not finite") as caught:
        next(steps)  # the fifth looks
    assert (caught.value.stage, caught.value.update, caught.value.term, caught.value.step) == (
        "gan", "discriminator", "real", 4,
    )  # fmt: skip


def test_a_state_that_is_not_finite_is_not_given_out():
    trainer, _ = train(build({"first": 3, "gan": 9}), count=2)
    with torch.no_grad():
        trainer.method.generator[0].weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(NotFiniteError, match="step 2: stage first, update generator: weights is not finite"):
        trainer.state_dict()


class Syncs(TorchDispatchMode):
    """Counts the operations that make the host wait for a value."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.seen.append(str(function))
        return function(*arguments, **(named or {}))


def test_a_step_that_shows_nothing_never_waits_for_the_device():
    config = TrainingConfig(check_every=1000, ema=0.9, clip_gradient_norm=1.0, precision="bfloat16")
    trainer = Trainer(build({"first": 1, "gan": 9}), config, seed=0)
    data = batches(6)
    steps = trainer.steps(data)
    next(steps), next(steps), next(steps)
    with Syncs() as syncs:
        step = next(steps)
    assert syncs.seen == []
    with Syncs() as syncs:
        step.values.sum().item()
    assert len(syncs.seen) == 1


def test_waiting_for_data_is_measured():
    trainer = Trainer(build(), TrainingConfig(), seed=0)

    def slow():
        import time

        for batch in batches(2):
            time.sleep(0.05)
            yield batch

    assert all(step.waited_seconds >= 0.05 for step in trainer.steps(slow()))


def test_only_networks_of_the_stage_learn_and_others_stay_in_inference_mode():
    method = build({"first": 1, "gan": 1})
    trainer = Trainer(method, TrainingConfig(), seed=0)
    steps = trainer.steps(batches(2))
    next(steps)
    assert (method.generator.training, method.discriminator.training, method.prior.training) == (True, False, False)
    assert not any(p.requires_grad for p in (*method.discriminator.parameters(), *method.prior.parameters()))
    next(steps)
    assert method.discriminator.training
    assert not method.prior.training


def test_graphs_without_a_device_that_has_them_are_refused():
    with pytest.raises(ConfigError, match="cuda_graphs: true needs a CUDA device"):
        Trainer(build(), TrainingConfig(cuda_graphs=True), seed=0)


def test_checkpointing_without_blocks_is_refused():
    method = build({"first": 1, "gan": 0})
    method.generator = torch.nn.Conv2d(4, 3, 3, padding=1)
    with pytest.raises(ConfigError, match="activation_checkpointing: true has no effect in stage first"):
        Trainer(method, TrainingConfig(activation_checkpointing=True), seed=0)


def test_a_batch_that_does_not_divide_into_parts_is_refused():
    trainer = Trainer(build(), TrainingConfig(accumulate=3), seed=0)
    with pytest.raises(ValueError, match="a batch of 4 cannot be split into 3 equal parts"):
        next(trainer.steps(batches(1)))


def test_the_state_holds_only_the_optimizers_of_the_stage_under_way():
    method = build({"first": 1, "gan": 1})
    method.optimizer = Adam(learning_rate=1e-3)
    trainer = Trainer(method, TrainingConfig(), seed=0)
    for _ in trainer.steps(batches(2)):
        pass
    assert set(trainer.state_dict()["trainer"]["optimizers"]) == {"discriminator", "generator"}


def optimizer_steps(trainer):
    optimizers = trainer.state_dict()["trainer"]["optimizers"]
    return {name: int(state["state"][0]["step"]) if state["state"] else 0 for name, state in optimizers.items()}


def test_an_update_that_the_next_stage_repeats_goes_on_with_its_optimizer():
    trainer, seen = Trainer(build({"first": 2, "gan": 2}), TrainingConfig(), seed=0), []
    for _ in trainer.steps(batches(4)):
        seen.append(optimizer_steps(trainer))
    assert seen == [{"generator": 1}, {"generator": 2}, {"discriminator": 1, "generator": 3},
                    {"discriminator": 2, "generator": 4}]  # fmt: skip


def test_a_loaded_optimizer_computes_as_this_run_says_not_as_the_saved_one_did():
    """A captured step reads its rate from a tensor of its own; one from a file would leave it where it was."""
    trainer, _ = train(build({"first": 3, "gan": 0}), count=1)
    state = trainer.state_dict()
    for group in state["trainer"]["optimizers"]["generator"]["param_groups"]:
        group |= {"lr": torch.tensor(5.0), "capturable": True, "fused": False}
    second = Trainer(build({"first": 3, "gan": 0}), TrainingConfig(), seed=5)
    second.load_state_dict(state)
    _, steps = train(build({"first": 3, "gan": 0}), count=3)

    resumed = [step.scalars() for step in second.steps(batches(3)[1:])]
    assert [row["generator/learning_rate"] for row in resumed] == [
        scalars["generator/learning_rate"] for _, scalars in steps[1:]
    ]
    optimizer = second.state_dict()["trainer"]["optimizers"]["generator"]["param_groups"][0]
    assert (optimizer["fused"], optimizer["capturable"]) == (True, False)


def test_an_update_with_other_settings_in_the_next_stage_starts_anew():
    method = build({"first": 2, "gan": 2})
    stages, slower = method.stages(), Adam(learning_rate=1e-4)
    changed = replace(stages[1], updates=tuple(replace(update, optimizer=slower) for update in stages[1].updates))
    method.stages = lambda: (stages[0], changed)
    trainer = Trainer(method, TrainingConfig(), seed=0)
    for _ in trainer.steps(batches(3)):
        pass
    assert optimizer_steps(trainer) == {"discriminator": 1, "generator": 1}


def test_memory_of_a_finished_stage_is_given_back_to_the_next():
    trainer = Trainer(build({"first": 1, "gan": 2}), TrainingConfig(), seed=0)
    steps = trainer.steps(batches(3))
    next(steps)
    first = [weakref.ref(run.optimizer) for run in trainer._run.updates]
    gc.disable()  # as in a process that happens not to collect
    try:
        next(steps)
    finally:
        gc.enable()

    assert first
    assert not any(optimizer() for optimizer in first)
