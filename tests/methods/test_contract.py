"""What every method promises the trainer, the checkpoints and the user, tried on all of them with tiny presets."""

from __future__ import annotations

import copy
import io
import os
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from inpaint.config import list_presets, load_run
from inpaint.config.base import known_paths
from inpaint.errors import ConfigError, InpaintError, ShapeError
from inpaint.imaging import Batch, composite
from inpaint.inference import fill
from inpaint.masks import centre_mask
from inpaint.methods import METHODS, build_method
from inpaint.methods.base import weight_at
from inpaint.nn.features import load_feature_network
from inpaint.training import Trainer
from inpaint.training.plan import check_plan

PRESETS = {load_run(preset).method.name: preset for preset in list_presets() if preset.endswith("tiny")}
STEPS = 2  # of each stage
SAMPLES = 4


def settings(name, *assignments, steps=STEPS):
    """A tiny run of a method whose every stage lasts `steps`. Frozen networks are drawn at random, offline."""
    stages = [f"stages.{stage}.steps={steps}" for stage in load_run(PRESETS[name]).method.stage_names]
    offline = ["feature_weights.vgg16=random", "feature_weights.vgg19=random", f"training.global_batch={SAMPLES}"]
    return load_run(PRESETS[name], assignments=[*stages, *offline, "resources.num_workers=1", *assignments])


@cache
def _features(network, normalise):
    run = settings("isnet", f"method.vgg_input={'imagenet' if normalise else 'raw'}")
    return load_feature_network(run, network)


def build(run):
    torch.manual_seed(0)
    normalise = getattr(run.method, "vgg_input", "raw") == "imagenet"
    return build_method(run, {name: _features(name, normalise) for name in run.feature_networks})


def holes(run, samples):
    size = run.data.image_size
    if run.method.hole_shapes == "centre":
        return centre_mask(size, size // 2).expand(samples, 1, size, size).clone()
    mask = torch.zeros(samples, 1, size, size)
    for sample in range(samples):  # of different size, so that means over samples and over pixels differ
        mask[sample, :, 8 : 24 + 8 * sample, 12:40] = 1
    return mask


def batches(run, count=1, samples=SAMPLES):
    generator, size = torch.Generator().manual_seed(1), run.data.image_size
    images = torch.rand(count, samples, 3, size // 8, size // 8, generator=generator)
    return [
        Batch(torch.nn.functional.interpolate(image, scale_factor=8, mode="bilinear"), holes(run, samples))
        for image in images
    ]


def resume(run, state, *, skip, count):
    """A new trainer after steps `skip` to `count`, from a state."""
    trainer = Trainer(build(run), run.training, seed=run.seed)
    trainer.load_state_dict(state)
    for _ in trainer.steps(batches(run, count)[skip:]):
        pass
    return trainer


def tensors(method):
    return {name: value.clone() for name, value in method.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def on_disk(state):
    """What a state is after it was written and read without trust."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


everywhere = pytest.mark.parametrize("name", METHODS)


def test_every_method_has_a_tiny_preset_and_one_for_a_data_set():
    assert set(PRESETS) == set(METHODS)
    trained = {load_run(preset).method.name for preset in list_presets() if not preset.endswith("tiny")}
    assert trained == set(METHODS)


def _without_numbers(run, made={}):  # noqa: B006 - kept on purpose
    """A run's method at its full size on the meta device, made once for runs that differ in their data alone."""
    settings_text = run.method.model_dump_json()
    if settings_text not in made:
        with torch.device("meta"):
            made[settings_text] = build_method(run)
    return made[settings_text]


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_names_stages_that_its_method_can_train(preset):
    run = load_run(preset)
    method = _without_numbers(run)
    method.steps = {name: stage.steps for name, stage in run.stages.items()}
    assert tuple(stage.name for stage in method.stages()) == run.method.stage_names
    assert {stage.name for stage in check_plan(method)} == {n for n, stage in run.stages.items() if stage.steps}
    assert set(method.inference_networks()) <= set(method.networks())


@everywhere
def test_known_pixels_survive_and_fills_are_images(name):
    run = settings(name)
    method, (batch,) = build(run).eval(), batches(run)
    with torch.no_grad():
        predicted = method.inpaint(batch.image, batch.mask)
        completed = composite(batch.image, predicted, batch.mask)
    known = (batch.mask == 0).expand_as(completed)
    assert predicted.shape == batch.image.shape
    assert predicted.isfinite().all()
    assert 0 <= predicted.min() <= predicted.max() <= 1
    assert torch.equal(completed[known], batch.image[known])
    assert not torch.equal(completed[~known], batch.image[~known])


@everywhere
def test_what_lies_in_the_hole_never_reaches_the_fill(name):
    run = settings(name)
    method, (batch,) = build(run).eval(), batches(run)
    other = composite(batch.image, 1 - batch.image, batch.mask)
    with torch.no_grad():
        assert torch.equal(method.inpaint(batch.image, batch.mask), method.inpaint(other, batch.mask))


@everywhere
def test_previews_are_images(name):
    run = settings(name)
    method, (batch,) = build(run).eval(), batches(run)
    with torch.no_grad():
        for picture in method.previews(batch.image, batch.mask).values():
            assert picture.shape[0] == SAMPLES
            assert picture.shape[1] in (1, 3)
            assert picture.shape[2:] == batch.image.shape[2:]
            assert 0 <= picture.min() <= picture.max() <= 1


@everywhere
def test_each_stage_moves_exactly_the_networks_it_names(name):
    run = settings(name, "training.ema=null")  # with averages, a stage also lays what it does not train to rest
    method = build(run)
    trainer, before = Trainer(method, run.training, seed=0), tensors(method)
    plan = {stage.name: set(stage.trained()) for stage in check_plan(method)}
    for step in trainer.steps(batches(run, trainer.total_steps)):
        if step.stage_step == STEPS:
            after = tensors(method)
            assert {key.split(".")[0] for key in changed(before, after)} == plan[step.stage]
            before = after


@everywhere
def test_stop_and_resume_is_exact_within_and_across_stages(name):
    run = settings(name)
    unbroken = Trainer(build(run), run.training, seed=run.seed)
    total, states = unbroken.total_steps, {}
    for step in unbroken.steps(batches(run, total)):
        if step.number in (1, STEPS, total - 1):
            states[step.number] = on_disk(unbroken.state_dict())
    end = tensors(unbroken.method)
    for stopped, state in states.items():
        torch.manual_seed(99)  # a new process has other random numbers
        resumed = resume(run, state, skip=stopped, count=total)
        assert changed(end, tensors(resumed.method)) == set(), f"stopped after step {stopped}"


@everywhere
def test_every_weight_acts(name):
    usual = settings(name)
    paths = [path for path in known_paths(usual.method) if "weights." in path]
    assert paths
    stages, ends = build(usual).stages(), {}
    for path in paths:
        value = usual.method.model_dump(by_alias=True)
        for part in path.split("."):
            value = value[part]
        varied = settings(name, f"method.{path}={2 * value + 1}")
        method = build(varied)
        stage = _first_difference(stages, method.stages())
        assert stage, f"{path} is the weight of no term"
        if stage not in ends:
            ends[stage] = _train_alone(usual, build(usual), stage)
        assert changed(ends[stage], _train_alone(varied, method, stage)), path


def _first_difference(one, two):
    """Name of the first stage in which two lists of stages weigh something differently."""
    for pair in zip(one, two, strict=True):
        weighed = [
            {(u.name, term): weight_at(weight, 0.5) for u in stage.updates for term, weight in u.weights.items()}
            for stage in pair
        ]
        if weighed[0] != weighed[1]:
            return pair[0].name
    return None


def _train_alone(run, method, stage):
    method.steps = {other: STEPS * (other == stage) for other in run.stages}
    for _ in Trainer(method, run.training, seed=0).steps(batches(run, STEPS, samples=2)):
        pass
    return tensors(method)


@everywhere
def test_bf16_trains_and_fills(name):
    run = settings(name, "training.precision=bfloat16")
    trainer = Trainer(build(run), run.training, seed=0)
    for step in trainer.steps(batches(run, trainer.total_steps)):
        assert all(torch.tensor(value).isfinite() for value in step.scalars().values())
    (batch,) = batches(run)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        predicted = trainer.method.eval().inpaint(batch.image, batch.mask)
    full = trainer.method.inpaint(batch.image, batch.mask)
    assert (predicted.float() - full).abs().mean() < 0.02


@everywhere
def test_a_size_off_the_grid_is_refused_before_and_during_use(name):
    run = settings(name)
    multiple, size = run.method.size_multiple, run.data.image_size
    with pytest.raises(ConfigError, match=rf"data.image_size {size + 1} is not a multiple of {multiple}"):
        settings(name, f"data.image_size={size + 1}")
    image, mask = torch.rand(1, 3, size, size + 1), torch.zeros(1, 1, size, size + 1)
    with pytest.raises(ShapeError, match=f"image is {size + 1}×{size}"):
        build(run).eval().inpaint(image, mask)


@everywhere
def test_a_hole_shape_it_cannot_take_is_refused(name):
    run = settings(name)
    size = run.data.image_size
    image, corner = torch.rand(1, 3, size, size), torch.zeros(1, 1, size, size)
    corner[..., : size // 2, : size // 2] = 1
    method = build(run).eval()
    if run.method.hole_shapes == "free":
        assert fill(method, image, corner, progressive=True).isfinite().all()
        return
    with pytest.raises(ConfigError, match="holes.kind strokes cannot train"):
        settings(name, "holes={kind: strokes}")
    with pytest.raises(ShapeError, match="centred"):
        fill(method, image, corner)
    with pytest.raises(InpaintError, match=r"(?i)progressive"):
        fill(method, image, centre_mask(size, size // 2), progressive=True)


def gentle(name):
    """Settings under which two ways to the same gradient make the same step: Adam with a large eps throughout."""
    run = settings(name, steps=1)
    groups = [path.removesuffix(".kind") for path in known_paths(run.method) if path.endswith("optimizer.kind")]
    adam = "{kind: adam, learning_rate: 1e-3, eps: 1e-3}"
    return settings(name, *(f"method.{group}={adam}" for group in groups), steps=1)


def half(batch, rank):
    return replace(batch, image=batch.image.chunk(2)[rank], mask=batch.mask.chunk(2)[rank])


def precise(run):
    """A method and its batches in float64, in which rounding can neither hide nor feign a difference."""
    method = copy.deepcopy(build(run)).double()  # feature networks are shared between tests
    steps = sum(stage.steps for stage in run.stages.values())
    return method, [replace(b, image=b.image.double(), mask=b.mask.double()) for b in batches(run, steps)]


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name in METHODS:
        run = gentle(name)
        method, joined = precise(run)
        trainer = Trainer(method, run.training, seed=0, rank=rank, world_size=2)
        scalars = [step.scalars() for step in trainer.steps(half(batch, rank) for batch in joined)]
        torch.save({"scalars": scalars, "state": trainer.method.state_dict()}, os.path.join(folder, f"{name}-{rank}"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, args=(str(folder),), nprocs=2)
    return lambda name: [torch.load(folder / f"{name}-{rank}", weights_only=True) for rank in range(2)]


@everywhere
def test_two_ranks_equal_one_process_on_the_joined_batch(name, two_ranks):
    run = gentle(name)
    method, joined = precise(run)
    trainer, start = Trainer(method, run.training, seed=0), tensors(method)
    scalars = [step.scalars() for step in trainer.steps(joined)]
    first, second = two_ranks(name)
    for mine, theirs in zip(first["scalars"], scalars, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    for key, value in trainer.method.state_dict().items():
        assert torch.equal(first["state"][key], second["state"][key]), key
        apart, moved = (first["state"][key] - value).float().norm(), (value - start[key]).float().norm()
        assert apart <= 0.02 * moved + 1e-4, f"{key}: {apart:.2g} apart after moving {moved:.2g}"


@everywhere
def test_a_copy_of_a_method_fills_as_the_original(name):
    run = settings(name)
    method, (batch,) = build(run).eval(), batches(run)
    with torch.no_grad():
        assert torch.equal(
            copy.deepcopy(method).inpaint(batch.image, batch.mask), method.inpaint(batch.image, batch.mask)
        )
