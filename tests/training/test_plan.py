"""Stages that contradict themselves are refused before a step is made, with stage, update and term in the message."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inpaint.config.run import TrainingConfig
from inpaint.errors import TrainingError
from inpaint.methods.base import Stage
from inpaint.training import PlanError, Trainer
from inpaint.training.rehearsal import rehearse
from tests.training.tiny_method import TinyMethod, batches, build


def altered(change):
    """A tiny method whose `gan` updates (discriminator, generator) are what `change` makes of them."""

    class Altered(TinyMethod):
        def stages(self):
            first, gan = super().stages()
            return (first, replace(gan, updates=change(self, *gan.updates)))

    torch.manual_seed(0)
    return Altered({"first": 1, "gan": 1})


def only(**changes):
    return lambda method, judge, draw: (judge, replace(draw, **changes))


def loss_with(**extra):
    def change(method, judge, draw):
        def loss(batch, made, active):
            return method.generator_loss(batch, made, active) | {n: made.mean() for n in extra}

        return (judge, replace(draw, loss=loss))

    return change


def computed_at_zero(method, judge, draw):
    judge, draw = loss_with(style=1)(method, judge, draw)
    return (judge, replace(draw, weights={**draw.weights, "style": 0.0}))


REFUSED = {
    "network in two updates": (
        only(trains=("discriminator",)),
        "stage gan, update generator: network discriminator is already trained by update discriminator",
    ),
    "unknown network": (only(trains=("generater",)), "generater is not a network of tiny; did you mean generator"),
    "frozen network": (only(trains=("prior",)), "stage gan, update generator: network prior is frozen"),
    "no network": (only(trains=()), "stage gan, update generator trains no network"),
    "term without a weight": (
        loss_with(styl=1),
        "stage gan, update generator: term styl has no weight",
    ),
    "weight without a term": (
        only(weights={"l1": 1.0, "style": 3.0}),
        "stage gan, update generator: weight style has no term; the loss gave l1",
    ),
    "term of weight 0 computed": (
        computed_at_zero,
        "stage gan, update generator: term style has weight 0 and was computed",
    ),
    "all weights 0": (only(weights={"l1": 0.0}), "stage gan, update generator: every weight is 0"),
    "two updates of one name": (only(name="discriminator"), "stage gan: update discriminator stands 2 times"),
    "no updates": (lambda *_: (), "stage gan has no update"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_at_construction(change, message):
    with pytest.raises(PlanError, match=message) as caught:
        Trainer(altered(change), TrainingConfig(), seed=0)
    assert isinstance(caught.value, TrainingError)


def test_a_network_under_two_names_is_refused():
    class Aliased(TinyMethod):
        def __init__(self, steps):
            super().__init__(steps)
            self.critic = self.discriminator

        def networks(self):
            return super().networks() | {"critic": self.critic}

        def stages(self):
            first, gan = super().stages()
            judge, draw = gan.updates
            return (first, replace(gan, updates=(judge, draw, replace(judge, name="again", trains=("critic",)))))

    with pytest.raises(PlanError, match="update again: network critic shares parameters with discriminator"):
        Trainer(Aliased({"first": 1, "gan": 1}), TrainingConfig(), seed=0)


def test_a_method_with_no_steps_is_refused():
    with pytest.raises(PlanError, match="every stage has 0 steps"):
        Trainer(build({"first": 0, "gan": 0}), TrainingConfig(), seed=0)


def test_a_loss_that_looks_at_values_is_checked_in_its_first_step():
    def change(method, judge, draw):
        def loss(batch, made, active):
            scale = float(batch.mask.mean())  # cannot be rehearsed
            return {"l1": made.mean() * scale, "styl": made.mean()}

        return (judge, replace(draw, loss=loss))

    trainer = Trainer(altered(change), TrainingConfig(), seed=0)
    steps = trainer.steps(batches(2))
    next(steps)
    with pytest.raises(PlanError, match="update generator: term styl has no weight"):
        next(steps)


def test_a_loss_that_reaches_nothing_is_refused_in_its_first_step():
    def change(method, judge, draw):
        draw = replace(draw, weights={"l1": 1.0})
        return (judge, replace(draw, loss=lambda batch, made, active: {"l1": made.detach().mean()}))

    steps = Trainer(altered(change), TrainingConfig(), seed=0).steps(batches(2))
    next(steps)
    with pytest.raises(PlanError, match="stage gan, update generator: no term reaches generator"):
        next(steps)


def test_the_rehearsal_sees_parameters_that_no_loss_reaches():
    class Spare(TinyMethod):
        def __init__(self, steps):
            super().__init__(steps)
            self.generator[1].spare = torch.nn.Linear(2, 2)

    method = Spare({"first": 1, "gan": 1})
    seen = rehearse(method, tuple(method.stages()))
    assert not seen["gan", "generator"].all_reached
    assert seen["gan", "discriminator"].all_reached
    assert not seen["gan", "discriminator"].through_forward
    assert seen["gan", "generator"].through_forward


def test_the_rehearsal_leaves_the_method_untouched():
    method = build()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    rehearse(method, tuple(stage for stage in method.stages() if isinstance(stage, Stage)))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_a_stage_that_cannot_be_rehearsed_does_not_hide_those_behind_it(caplog):
    method = altered(only())
    first, gan = method.stages()
    (update,) = first.updates
    looking = replace(update, loss=lambda batch, made, active: {"l1": made.mean() * float(batch.mask.mean())})
    method.stages = lambda: (replace(first, updates=(looking,)), gan)

    with caplog.at_level("INFO"):
        seen = rehearse(method, method.stages())

    assert [stage for stage, _ in seen] == ["gan", "gan"]
    assert "stage first cannot be rehearsed without data" in caplog.text
