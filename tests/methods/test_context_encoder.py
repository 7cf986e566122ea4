"""The context encoder against its paper's prose, counts of an independent construction, and hand-worked losses."""

import math

import pytest
import torch
from torch import nn

from inpaint.config import load_run
from inpaint.config.methods import ContextEncoderConfig
from inpaint.config.run import TrainingConfig
from inpaint.errors import ConfigError, ShapeError
from inpaint.evaluation.metrics import Comparison, psnr_hole, psnr_rgb
from inpaint.imaging import Batch
from inpaint.losses import adversarial, reconstruction
from inpaint.methods.base import weight_at
from inpaint.methods.context_encoder import ContextEncoder
from inpaint.training import Trainer
from inpaint.training.plan import check_plan
from inpaint.training.rehearsal import rehearse

FULL = {"reconstruct": 20_000, "local": 30_000, "global": 50_000}
SMALL = {"image_size": 64, "width": 8, "code": 64}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def method(steps=FULL, **settings):
    torch.manual_seed(0)
    return ContextEncoder(ContextEncoderConfig(**(SMALL | settings)), steps, {})


def full_size():
    with torch.device("meta"):
        return ContextEncoder(ContextEncoderConfig(), FULL, {})


def batch(size=64, samples=4, seed=1):
    mask = torch.zeros(samples, 1, size, size)
    mask[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return Batch(torch.rand(samples, 3, size, size, generator=torch.Generator().manual_seed(seed)), mask)


def batches(number):
    return [batch(seed=seed) for seed in range(number)]


def trained(whole, number, **training):
    trainer = Trainer(whole, TrainingConfig(**training), seed=3)
    for _ in trainer.steps(batches(number)):
        pass
    return trainer


def weights_of(whole, step):
    """λ of the generator's terms at a step of the whole training, counted from 0."""
    for stage in whole.stages():
        if step < stage.steps:
            return {name: weight_at(weight, step / stage.steps) for name, weight in stage.updates[-1].weights.items()}
        step -= stage.steps
    raise AssertionError("the training is shorter")


def test_networks_have_their_number_of_parameters():
    whole = full_size()
    assert count(whole.generator.encoder) == 35_041_984
    assert count(whole.generator.decoder) == 35_525_507
    assert count(whole.generator) == 70_567_491
    assert count(whole.local_discriminator) == 2_765_697
    assert count(whole.global_discriminator) == 6_961_025


@pytest.mark.parametrize(
    ("size", "counts"), [(64, (52_464 + 60_019, 43_889, 109_553)), (128, (210_787, 44_657, 110_321))]
)
def test_small_networks_have_their_number_of_parameters(size, counts):
    whole = method(image_size=size)
    assert tuple(count(network) for network in whole.networks().values()) == counts


def test_the_bottleneck_holds_nearly_all_weights_and_the_1x1_layer_few():
    whole = full_size()
    convolutions = [layer for layer in whole.generator.encoder.modules() if isinstance(layer, nn.Conv2d)]
    enlarging = [layer for layer in whole.generator.decoder.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert (len(convolutions), len(enlarging)) == (5, 5)
    assert convolutions[2].kernel_size == (1, 1)
    assert convolutions[2].weight.numel() == 32_768
    assert convolutions[4].weight.numel() == enlarging[0].weight.numel() == 32_768_000


def test_sizes_at_128_are_the_papers():
    whole, sizes = full_size(), []
    for layer in whole.generator.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _, __, out: sizes.append((out.shape[1], out.shape[2])))
    with torch.device("meta"):
        drawn = whole.draw(Batch(torch.rand(2, 3, 128, 128), torch.rand(2, 1, 128, 128)))
        logits = whole.local_discriminator(drawn.hole), whole.global_discriminator(drawn.completed)
    assert sizes == [
        (64, 64), (64, 32), (128, 16), (128, 8), (256, 8), (512, 4), (4000, 1),
        (512, 4), (256, 8), (128, 16), (64, 32), (3, 64),
    ]  # fmt: skip
    assert drawn.hole.shape == drawn.true_hole.shape == (2, 3, 64, 64)
    assert [tuple(out.shape) for out in logits] == [(2, 1), (2, 1)]


def test_the_encoder_pools_twice_and_nothing_else_does():
    whole = full_size()
    pools = [name for name, layer in whole.named_modules() if "Pool" in type(layer).__name__]
    assert len(pools) == 2
    assert all(name.startswith("generator.encoder") for name in pools)


def test_the_hole_is_drawn_and_the_surround_kept_to_the_bit():
    whole, seen = method(image_size=128), batch(128)
    drawn = whole.draw(seen)
    known = (seen.mask == 0).expand_as(drawn.image)
    assert torch.equal(drawn.image, seen.image * 2 - 1)
    assert torch.equal(drawn.completed[known], drawn.image[known])
    assert torch.equal(drawn.completed[..., 32:96, 32:96], drawn.hole)
    assert torch.equal(drawn.true_hole, drawn.image[..., 32:96, 32:96])
    assert drawn.hole.abs().max() <= 1


def test_the_fill_is_in_the_products_range_with_the_surround_kept_to_the_bit():
    whole, seen = method().eval(), batch()
    filled = whole.inpaint(seen.image, seen.mask)
    known = (seen.mask == 0).expand_as(filled)
    assert torch.equal(filled[known], seen.image[known])
    assert filled.min() >= 0
    assert filled.max() <= 1


def test_what_lies_in_the_hole_never_reaches_the_generator():
    whole, seen = method(), batch()
    given = []
    whole.generator.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    first = whole.draw(seen).hole
    second = whole.draw(Batch(torch.where(seen.mask > 0, torch.nan, seen.image), seen.mask)).hole
    assert torch.equal(first, second)
    assert torch.equal(given[0][..., 16:48, 16:48], torch.zeros(4, 3, 32, 32))


@pytest.mark.parametrize(
    ("step", "local", "whole_image"),
    [
        (19_999, 0, 0), (20_000, 0, 0), (25_000, 5e-4, 0), (30_000, 1e-3, 0), (50_000, 1e-3, 0),
        (55_000, 1e-3, 5e-4), (60_000, 1e-3, 1e-3), (99_999, 1e-3, 1e-3),
    ],
)  # fmt: skip
def test_weights_grow_from_0_when_their_stage_begins(step, local, whole_image):
    found = weights_of(method(), step)
    assert found["reconstruction"] == 1
    assert found.get("local", 0) == pytest.approx(local)
    assert found.get("global", 0) == pytest.approx(whole_image)


def test_ramped_weights_are_logged_with_every_step_and_constant_ones_are_not():
    steps = {"reconstruct": 1, "local": 2, "global": 2}
    whole = method(steps, ramp_steps=4)
    rows = [step.scalars() for step in Trainer(whole, TrainingConfig(), seed=0).steps([batch()] * 5)]
    logged = [{name: value for name, value in row.items() if name.endswith("_weight")} for row in rows]

    local, both = "generator/local_weight", ("generator/local_weight", "generator/global_weight")
    assert logged[0] == {}
    assert [row.keys() for row in logged[1:]] == [{local}, {local}, set(both), set(both)]
    assert [row[local] for row in logged[1:]] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4])  # of 1e-3, in quarters
    assert [row[both[1]] for row in logged[3:]] == pytest.approx([0, 2.5e-4])


def test_a_ramp_longer_than_its_stage_goes_on_in_the_next():
    whole = method({"reconstruct": 0, "local": 100, "global": 400}, ramp_steps=200)
    assert weights_of(whole, 99)["local"] == pytest.approx(1e-3 * 99 / 200)
    assert weights_of(whole, 150) == pytest.approx({"reconstruction": 1, "local": 7.5e-4, "global": 2.5e-4})


def test_without_a_ramp_all_losses_are_there_from_the_start():
    whole = method({"reconstruct": 0, "local": 0, "global": 100}, ramp_steps=0)
    assert weights_of(whole, 0) == {"reconstruction": 1, "local": 1e-3, "global": 1e-3}


def test_each_stage_moves_its_networks_alone_and_leaves_later_ones_untouched():
    whole = method({"reconstruct": 2, "local": 2, "global": 2}, ramp_steps=1)
    trainer, before, moved = Trainer(whole, TrainingConfig(), seed=0), None, {}
    for step in trainer.steps(batches(6)):
        now = {name: value.clone() for name, value in whole.state_dict().items()}
        if before is not None and step.stage_step == 2:
            moved[step.stage] = {name.split(".")[0] for name in now if not torch.equal(now[name], before[name])}
            optimizers = set(trainer.state_dict()["trainer"]["optimizers"])
            assert ("global_discriminator" in optimizers) == (step.stage == "global")
        before = now
    assert moved == {
        "reconstruct": {"generator"},
        "local": {"generator", "local_discriminator"},
        "global": {"generator", "local_discriminator", "global_discriminator"},
    }


def test_losses_by_hand():
    drawn = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(reconstruction.squared(drawn + 0.1, drawn), torch.tensor(0.01))
    zero = torch.zeros(5, 1)
    assert adversarial.bce_generator(zero).item() == pytest.approx(math.log(2))
    assert sum(adversarial.cross_entropy_discriminator(zero, zero).values()).item() == pytest.approx(1.3863, abs=1e-4)
    assert adversarial.minimax_generator(zero).item() == pytest.approx(math.log(0.5))
    # log(1 - sigmoid(ln 3)) = log(1/4)
    assert adversarial.minimax_generator(torch.tensor([math.log(3)])).item() == pytest.approx(math.log(0.25))


def test_the_global_loss_reaches_the_hole_and_nothing_around_it():
    whole, seen = method(), batch()
    drawn = whole.draw(seen)
    term = whole.generator_loss(seen, drawn, frozenset({"global"}))["global"]
    around = (drawn.completed * (1 - seen.mask)).sum()
    assert torch.autograd.grad(term, drawn.hole, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(around, drawn.hole)[0].abs().sum() == 0


def test_real_and_filled_images_pass_a_discriminator_apart():
    whole, seen = method(), batch()
    passes = []
    whole.global_discriminator.register_forward_hook(lambda _, inputs, __: passes.append(inputs[0]))
    drawn = whole.draw(seen)
    whole.global_loss(seen, drawn, frozenset({"real", "filled"}))
    assert [torch.equal(given, wanted) for given, wanted in zip(passes, (drawn.image, drawn.completed), strict=True)]
    assert len(passes) == 2
    assert not passes[1].requires_grad


def test_discriminators_use_batch_statistics_in_every_mode_and_keep_none():
    judge, images = method().local_discriminator, torch.rand(4, 3, 32, 32)
    assert list(judge.buffers()) == []
    assert torch.equal(judge.train()(images), judge.eval()(images))


def square(rows, columns):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., rows[0] : rows[1], columns[0] : columns[1]] = 1
    return mask


@pytest.mark.parametrize(
    "mask",
    [square((17, 49), (16, 48)), square((16, 48), (16, 47)), square((8, 56), (8, 56)), square((0, 0), (0, 0))],
    ids=["off centre", "too narrow", "too large", "no hole"],
)
def test_any_other_hole_is_refused(mask):
    whole, image = method().eval(), torch.rand(1, 3, 64, 64)
    for call in (lambda: whole.inpaint(image, mask), lambda: whole.draw(Batch(image, mask))):
        with pytest.raises(ShapeError, match=r"not the centred 32×32 square \(rows and columns 16 to 47\)"):
            call()


def test_any_other_size_is_refused():
    with pytest.raises(ShapeError, match="image is 128×128; this context encoder takes 64×64 only"):
        method().inpaint(torch.rand(1, 3, 128, 128), torch.zeros(1, 1, 128, 128))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("holes={kind: strokes}", "holes.kind strokes cannot train context_encoder"),
        ("holes.share=0.4", "holes.share 0.4 cannot train context_encoder"),
        ("data.image_size=128", "data.image_size 128 is not method.image_size 64"),
        ("training.global_batch=1", "training.global_batch 1"),
        ("training.accumulate=2", "training.accumulate 2 would change the batch statistics"),
        ("method.image_size=80", "method.image_size 80: input should be a multiple of 32"),
        ("method.weights.glbal=1", "method.weights.glbal is not a setting of method.weights; did you mean global"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_training(assignment, message):
    with pytest.raises(ConfigError, match=message):
        load_run("context-encoder-tiny", assignments=[assignment, "resources.num_workers=1"])


def test_a_training_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="batch statistics need 2 values per channel and found 1"):
        method().train().draw(batch(samples=1))


def test_with_an_exact_surround_the_whole_image_scores_6_decibels_more_than_the_hole():
    # the hole is a quarter of the area: 10 log10(4)
    seen = batch(samples=1)
    compared = Comparison(method().eval().inpaint(seen.image, seen.mask).detach(), seen.image, seen.mask)
    assert (psnr_rgb(compared) - psnr_hole(compared)).item() == pytest.approx(6.0206, abs=1e-4)


def test_a_run_stopped_inside_a_ramp_goes_on_exactly():
    steps = {"reconstruct": 1, "local": 6, "global": 1}
    unbroken = trained(method(steps, ramp_steps=4), 4)
    first = trained(method(steps, ramp_steps=4), 3)
    resumed = Trainer(method(steps, ramp_steps=4), TrainingConfig(), seed=3)
    resumed.load_state_dict(first.state_dict())
    for _ in resumed.steps(batches(4)[3:]):
        pass
    assert weights_of(resumed.method, 3)["local"] == pytest.approx(5e-4)
    for name, value in unbroken.method.state_dict().items():
        assert torch.equal(value, resumed.method.state_dict()[name]), name


def test_with_no_adversarial_weight_three_stages_train_the_generator_of_one():
    silent = {"weights": {"local": 0, "global": 0}}
    three = trained(method({"reconstruct": 2, "local": 2, "global": 2}, **silent), 6)
    one = trained(method({"reconstruct": 6, "local": 0, "global": 0}), 6)
    for name, value in one.method.generator.state_dict().items():
        assert torch.equal(value, three.method.generator.state_dict()[name]), name


@pytest.mark.parametrize(
    ("variant", "stages"),
    [
        ({"reconstruct": 9, "local": 0, "global": 0}, ["reconstruct"]),
        ({"reconstruct": 3, "local": 6, "global": 0}, ["reconstruct", "local"]),
        ({"reconstruct": 3, "local": 3, "global": 3}, ["reconstruct", "local", "global"]),
        ({"reconstruct": 0, "local": 0, "global": 9}, ["global"]),
    ],
)
def test_stages_of_no_steps_give_the_papers_ablations(variant, stages):
    assert [stage.name for stage in check_plan(method(variant))] == stages


@pytest.mark.parametrize(
    "settings",
    [{"width": 16}, {"code": 32}, {"hole_value": -1.0}, {"generator_adversarial": "minimax"}, {"ramp_steps": 0}],
    ids=str,
)
def test_every_setting_changes_the_training(settings):
    steps = {"reconstruct": 0, "local": 0, "global": 3}
    quick = {"ramp_steps": 4, "weights": {"local": 1, "global": 1}}
    base, varied = (trained(method(steps, **(quick | given)), 3).method for given in ({}, settings))
    seen = batch()
    assert not torch.allclose(base.draw(seen).hole, varied.draw(seen).hole, atol=1e-6)


def test_fresh_weights_are_those_of_dcgan():
    whole = method(width=32)
    for layer in whole.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.02)
            assert layer.bias.abs().sum() == 0


def test_a_rehearsal_on_the_meta_device_sees_every_update():
    whole = method(image_size=128)
    seen = rehearse(whole, check_plan(whole))
    assert len(seen) == 1 + 2 + 3
    assert all(one.all_reached for one in seen.values())
