"""The step bench: ours is the plain step in mathematics, and the report has what it promises."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from inpaint.bench.fill import bench_fill
from inpaint.bench.fill import report as fill_report
from inpaint.bench.step import bench_step, report, step_run
from inpaint.bench.step_equality import batch_of, compare, has_plain, without_kinks
from inpaint.config import load_run
from inpaint.errors import ConfigError
from inpaint.methods import METHODS
from inpaint.nn.features import load_features

SMALL = [
    "feature_weights.vgg19=random", "data.image_size=32", "method.width=8", "method.blocks=1",
    "method.discriminator_width=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def run():
    return load_run("isnet-places2", assignments=SMALL)


def test_our_float32_step_is_the_plain_one_to_rounding(run):
    apart = compare(run, load_features(run), batch_of(run, 2, "cpu"), device="cpu", steps=4)
    assert apart["losses"] < 1e-5
    assert apart["generator_gradients"] < 1e-5
    assert apart["generator_moves"] < 1e-3  # Adam turns the rounding of vanishing gradients into moves
    assert apart["discriminator_moves"] < 1e-3


def test_channels_last_changes_gradients_by_rounding_only(run):
    smooth = without_kinks(run)
    apart = compare(smooth, load_features(run), batch_of(run, 2, "cpu"), device="cpu", steps=1, channels_last=True)
    assert apart["losses"] < 1e-5
    assert apart["generator_gradients"] < 1e-5


def test_several_steps_with_fused_kernels_and_channels_last_stay_with_the_plain_ones():
    healthy = load_run("isnet-places2", assignments=[*SMALL, "method.initialisation=orthogonal"])
    smooth = without_kinks(healthy)
    features, data = load_features(smooth), batch_of(smooth, 2, "cpu")
    apart = compare(smooth, features, data, device="cpu", steps=4, channels_last=True)
    assert apart["generator_gradients"] < 1e-5
    assert apart["losses"] < 1e-4
    assert max(apart["generator_moves"], apart["discriminator_moves"]) < 1e-3


def test_only_what_the_plain_step_computes_is_compared_with_it(run):
    assert has_plain(run)
    for other in ("method.gan_loss=nsgan", "method.weights.style=0", "method.design=base", "method.l1_norm=none"):
        assert not has_plain(load_run("isnet-places2", assignments=[*SMALL, other]))


def test_the_bench_reports_every_figure(run):
    result = bench_step(run, batch=1, rounds=1, device="cpu")
    assert list(result["variants"]) == ["plain step", "ours, float32", "ours, bf16"]
    ours = result["variants"]["ours, float32"]
    assert result["variants"]["plain step"]["speed_up"] == 1.0
    assert ours["gflop_per_image"] < result["variants"]["plain step"]["gflop_per_image"]
    assert sum(ours["shares"].values()) == pytest.approx(1.0)
    assert ours["shares"]["backward"] > ours["shares"]["optimizer"] > 0
    assert ours["peak_mib"] > 0
    assert any("DDP" not in line and "ours, bf16" in line for line in report(result))


def test_the_flops_are_the_specifications(run):
    """132.5 GFLOP a forward of the generator at 256 pixels (ISNet, 66.2 GMAC), so a quarter of a quarter at 64."""
    from inpaint.bench.step import FUSED_FLOPS
    from inpaint.methods.isnet import Generator

    image = torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    for fused in (image, image.contiguous()):
        with FlopCounterMode(display=False, custom_mapping=FUSED_FLOPS) as counter, torch.no_grad():
            Generator()(fused)
        assert counter.get_total_flops() / 1e9 == pytest.approx(132.5 / 16, rel=2e-3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_step_to_measure(name):
    run = step_run(name, size=None, stage=None, device="cpu")
    assert run.method.name == name
    assert [stage for stage, one in run.stages.items() if one.steps] == [list(run.stages)[-1]] or name == "edge_texture"
    assert run.data.image_size <= 128


def test_a_step_that_is_not_there_is_refused_with_its_likeness():
    with pytest.raises(ConfigError, match="isnt is neither a preset nor a method"):
        step_run("isnt", size=None, stage=None, device="cpu")
    with pytest.raises(ConfigError, match="has no stage textur of any length; choose one of edge, texture"):
        step_run("edge_texture", size=None, stage="textur", device="cpu")
    with pytest.raises(ConfigError, match="global_batch 1 has no batch statistics"):
        step_run("context_encoder", size=None, stage=None, device="cpu", batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_bench_measures_a_step_of_every_method(name):
    result = bench_step(step_run(name, size=None, stage=None, device="cpu"), batch=2, rounds=1, device="cpu")
    assert list(result["variants"])[-2:] == ["ours, float32", "ours, bf16"]
    assert all(row["images_per_second"] > 0 and row["peak_mib"] > 0 for row in result["variants"].values())
    assert result["date"] in report(result)[0]


@pytest.mark.slow
def test_the_compiled_step_is_the_plain_one_to_rounding(caplog):
    tiny = load_run("isnet-places2", assignments=[*SMALL, "method.initialisation=orthogonal"])
    smooth = without_kinks(tiny)
    features, data = load_features(smooth), batch_of(smooth, 2, "cpu")
    apart = compare(smooth, features, data, device="cpu", steps=3, channels_last=True, compile=True)
    assert apart["generator_gradients"] < 1e-5
    assert apart["losses"] < 1e-4
    assert max(apart["generator_moves"], apart["discriminator_moves"]) < 1e-3
    assert "runs as written" not in caplog.text


def test_the_fill_bench_counts_the_passes(run):
    result = bench_fill(run, size=64, masks=2, rounds=1, device="cpu")
    rows = result["engines"]["bf16"]
    assert rows["10%-20%"]["extra_passes"] == 0  # at most 20 % of the image: one call
    assert rows["40%-50%"]["extra_passes"] >= 1
    assert result["paper_ratio"] == pytest.approx(1.62, abs=0.005)
    assert "10%-20%" in fill_report(result)[2]
