"""A look at the health of a GAN: hand-worked errors, true scores, and a trainer left as it was."""

import itertools

import pytest
import torch

from inpaint.config import RunConfig
from inpaint.imaging import Batch
from inpaint.methods import build_method
from inpaint.training import Trainer
from inpaint.training.health import checkerboard, errors, look, seam_error
from inpaint.training.plan import logged_names
from inpaint.training.recomputing import blocks_of
from ray_jobs.toy import toy_run


@pytest.fixture
def run() -> RunConfig:
    return toy_run("unused", "healthy", "data.image_size=32")


def trained(run, steps):
    torch.manual_seed(0)
    trainer = Trainer(build_method(run), run.training, seed=run.seed)
    made = batches()
    for step in trainer.steps(made):
        if step.number == steps:
            break
    return trainer


def batches():
    generator = torch.Generator().manual_seed(1)
    while True:
        mask = torch.zeros(4, 1, 32, 32)
        mask[..., 8:24, 8:24] = 1
        yield Batch(torch.rand(4, 3, 32, 32, generator=generator), mask)


def test_hole_and_valid_error_are_means_over_their_own_pixels():
    image, mask = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 1, 4, 4)
    mask[..., 1:3, 1:3] = 1
    predicted = torch.where(mask > 0, 0.8, 0.6).expand(1, 3, 4, 4)

    found = errors(image, predicted, mask)

    assert found["health/hole_error"] == pytest.approx(0.3)
    assert found["health/valid_error"] == pytest.approx(0.1)


def test_a_fill_that_is_lighter_by_a_fifth_has_a_seam_of_a_fifth():
    image, mask = torch.full((1, 3, 6, 6), 0.4), torch.zeros(1, 1, 6, 6)
    mask[..., 2:4, 2:4] = 1

    assert seam_error(image, image + 0.2 * mask, mask) == pytest.approx(0.2)
    assert seam_error(image, image, mask) == 0


def test_a_chequered_fill_has_the_energy_of_its_pattern_over_that_of_the_image():
    """a - b - c + d over 2 is ±2h for chequers of height ±h, energy 4h²; here 0.2² over 0.1²."""
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    chequers = ((-1.0) ** (x + y)).expand(1, 3, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1

    assert checkerboard(0.5 + 0.1 * chequers, 0.5 + 0.2 * chequers, mask) == pytest.approx(4.0)


def test_scores_are_the_discriminators_mean_outputs_on_true_and_filled_images(run):
    trainer = trained(run, 2)
    batch = next(batches())

    found = look(trainer, batch)

    method = trainer.method.train()
    with torch.no_grad():
        both = torch.cat((batch.image, method.stages()[0].forward(batch)))
        logits = method.discriminator(both)[0]
    real, filled = logits.chunk(2)
    assert found["health/score/discriminator/real"] == pytest.approx(real.mean().item(), abs=1e-4)
    assert found["health/score/discriminator/filled"] == pytest.approx(filled.mean().item(), abs=1e-4)


def test_shares_of_the_generators_gradient_follow_the_weights(run):
    even = look(trained(run, 1), next(batches()))
    heavy = toy_run("unused", "heavy", "method.weights.l1=1000")
    steep = look(trained(heavy, 1), next(batches()))

    assert even["health/share/generator/l1"] + even["health/share/generator/adversarial"] == pytest.approx(1)
    assert steep["health/share/generator/l1"] > 0.99 > even["health/share/generator/l1"]


@pytest.mark.parametrize("clipped", [False, True])
def test_names_of_what_is_logged_are_known_before_the_first_step(run, clipped):
    run = toy_run("unused", "named", "data.image_size=32", f"training.clip_gradient_norm={9 if clipped else 'null'}")
    trainer = trained(run, 1)
    (step,) = itertools.islice(trainer.steps(batches()), 1)
    logged = set(step.scalars()) | {name for name in look(trainer, next(batches())) if name.count("/") > 1}

    assert logged_names(trainer.plan, clipped=clipped) == logged


def test_gradient_norms_are_there_for_every_network_that_learns(run):
    found = look(trained(run, 1), next(batches()))

    assert found["health/gradient_norm/generator"] > 0
    assert found["health/gradient_norm/discriminator"] > 0


def test_a_look_needs_no_more_memory_than_a_step_in_parts_that_recomputes(run):
    sparing = toy_run("unused", "sparing", "training.accumulate=2", "training.activation_checkpointing=true")
    trainer = trained(sparing, 1)
    block = blocks_of(trainer.method.generator)[0]
    seen = []
    block.register_forward_pre_hook(lambda block, inputs: seen.append((len(inputs[0]), "forward" in vars(block))))

    look(trainer, next(batches()))

    assert seen[0] == (2, True)  # half of the batch, and recomputed: its own forward is replaced
    assert "forward" not in vars(block)


def test_a_look_changes_nothing_of_what_follows(run):
    watched, alone = trained(run, 2), trained(run, 2)
    modes = [module.training for module in watched.method.modules()]

    look(watched, next(batches()))

    assert [module.training for module in watched.method.modules()] == modes
    for trainer in (watched, alone):
        next(trainer.steps(batches()))
    pairs = zip(watched.method.state_dict().values(), alone.method.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
