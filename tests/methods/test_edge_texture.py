"""The acceptance facts of the DiNA paper's method."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from inpaint.config import load_run
from inpaint.errors import ConfigError, ShapeError
from inpaint.evaluation.published import published_tables
from inpaint.imaging import Batch
from inpaint.inference import fill
from inpaint.losses import adversarial, perceptual
from inpaint.methods import build_method
from inpaint.methods.edge_texture import Drawn, ResidualAttentionBlock
from inpaint.nn.canny import canny, grey, precision_recall
from inpaint.nn.features import load_feature_network
from inpaint.training import Trainer
from inpaint.training.rehearsal import rehearse

STEPS = ["stages.edge.steps=2", "stages.texture.steps=2", "stages.joint.steps=2"]
PAPER = ["method.texture_sees_mask=false", "method.canny_sigma=1"]  # the tiny preset's mask channel is its own
ONLY_JOINT = ["stages.edge.steps=0", "stages.texture.steps=0"]
SIZES = ["data.image_size=64", "method.attention_dilations=[1, 4]", "method.width=12"]


def tiny(*assignments):
    return load_run("edge-texture-tiny", assignments=[*STEPS, *PAPER, *SIZES, *assignments])


@cache
def vgg():
    return load_feature_network(load_run("edge-texture-paris", assignments=["feature_weights.vgg19=random"]), "vgg19")


def build(*assignments, features=False):
    torch.manual_seed(0)
    return build_method(tiny(*assignments), {"vgg19": vgg()} if features else None)


def batch(samples=2, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = F.interpolate(torch.rand(samples, 3, 8, 8, generator=generator), (side, side), mode="bilinear")
    mask = torch.zeros(samples, 1, side, side)
    mask[..., side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1  # a quarter
    return Batch(image, mask)


@cache
def counts(*assignments):
    with torch.device("meta"):
        method = build_method(load_run("edge-texture-paris", assignments=assignments))
    return method, {name: sum(p.numel() for p in net.parameters()) for name, net in method.networks().items()}


def split(generator):
    """Parameters of the encoder, of one block, and of the decoder."""
    parts = [generator.encoder, generator.middle[0], torch.nn.ModuleList([generator.decoder, generator.last])]
    return [sum(p.numel() for p in part.parameters()) for part in parts]


def test_networks_have_the_published_number_of_parameters():
    assert counts()[1] == {
        "edge_generator": 12_881_345,
        "edge_discriminator": 2_762_752,
        "texture_generator": 12_894_851,
        "texture_discriminator": 2_764_800,
    }


def test_without_attention_the_generators_are_edgeconnects():
    method, found = counts("method.attention=false")

    assert (found["edge_generator"], found["texture_generator"]) == (10_761_089, 10_774_595)
    texture, edge = split(method.texture_generator), split(method.edge_generator)
    assert texture == [668_352, 1_180_160, 664_963]
    assert edge == [665_216, 1_179_648, 658_689]


def test_shapes_at_256_pixels_are_those_of_the_paper():
    method, _ = counts()
    seen = torch.empty(1, 4, 256, 256, device="meta")
    features = seen
    shapes = []
    for layer in method.texture_generator.encoder:
        features = layer(F.pad(features, (3, 3, 3, 3)) if layer.kernel_size == (7, 7) else features)
        shapes.append(tuple(features.shape[1:]))
    assert shapes == [(64, 256, 256), (128, 128, 128), (256, 64, 64)]
    assert len(method.texture_generator.middle) == 8
    assert method.texture_generator(seen).shape == (1, 3, 256, 256)
    logits, outputs = method.texture_discriminator(seen)
    assert logits.shape == (1, 1, 30, 30)
    assert [o.shape[-1] for o in outputs] == [128, 64, 32, 31, 30]


def test_smallest_image_of_the_default_attention_is_224():
    paris = "edge-texture-paris"
    assert load_run(paris, assignments=["data.image_size=224"]).data.image_size == 224
    with pytest.raises(ConfigError, match="220 gives .* a 55×55 map, smaller than kernel 7 × dilation 8 = 56"):
        load_run(paris, assignments=["data.image_size=220"])
    with pytest.raises(ConfigError, match="222 is not a multiple of 4"):
        load_run(paris, assignments=["data.image_size=222"])


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["method.kernel=4"], "kernel 4 is even"),
        (["method.heads=5"], "heads 5 does not divide the 48 channels of width 12"),
        (["stages.edge.steps=0"], "texture would learn from edges that were never trained"),
        (["stages.edge.steps=0", "stages.texture.from=other"], "texture would learn from edges that were never"),
        ([*ONLY_JOINT, "stages.texture.from=other"], "stages.edge.steps is 0 and neither .*: joint goes on from"),
        ([*ONLY_JOINT, "stages.edge.from=other"], "stages.texture.steps is 0 and neither .*: joint goes on from"),
    ],
)
def test_impossible_settings_are_refused_before_training(assignments, message):
    with pytest.raises(ConfigError, match=message):
        tiny(*assignments)


@pytest.mark.parametrize("sources", [["joint"], ["edge", "texture"]])
def test_joint_alone_goes_on_from_another_run(sources):
    assert tiny(*ONLY_JOINT, *(f"stages.{stage}.from=other" for stage in sources)).total_steps == 2


def test_attention_settings_without_attention_are_refused():
    with pytest.raises(ConfigError, match="kernel is set, but attention is false"):
        load_run("edge-texture-paris", assignments=["method.attention=false", "method.kernel=5"])


def test_block_without_attention_is_two_reflected_convolutions_around_the_input():
    config = tiny().method
    block = ResidualAttentionBlock(8, dilation=None, spectral=False, config=config)
    x = torch.randn(1, 8, 10, 10)
    first, second = block.first, block.second
    h = F.conv2d(F.pad(x, (2,) * 4, mode="reflect"), first.weight, first.bias, dilation=2)
    h = F.pad(F.relu(F.instance_norm(h)), (1,) * 4, mode="reflect")
    h = F.instance_norm(F.conv2d(h, second.weight, second.bias))

    torch.testing.assert_close(block(x), x + h)


def test_attention_stands_after_the_sum_or_in_the_branch():
    x = torch.randn(1, 8, 12, 12)
    for place in ("post", "branch"):
        torch.manual_seed(0)
        config = tiny(f"method.attention_place={place}").method
        block = ResidualAttentionBlock(8, dilation=2, spectral=False, config=config)
        plain = ResidualAttentionBlock(8, dilation=None, spectral=False, config=config)
        plain.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("attention")})
        total = plain(x)
        expected = total + block.attention(total) if place == "post" else x + block.attention(total - x)
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_edges_are_probabilities_and_completed_edges_are_true_where_they_are_known():
    method, b = build(), batch()
    with torch.no_grad():
        drawn = method.draw_edges(b)

    assert drawn.predicted_edges.min() >= 0
    assert drawn.predicted_edges.max() <= 1
    known = b.mask == 0
    assert torch.equal(drawn.completed_edges[known], drawn.edges[known])
    assert torch.equal(drawn.completed_edges[~known], drawn.predicted_edges[~known])
    assert torch.equal(drawn.edges, canny(grey(b.image), sigma=1.0))


def test_generators_ignore_the_content_of_the_hole():
    method, b = build().eval(), batch()
    other = torch.where(b.mask > 0, torch.rand_like(b.image), b.image)
    edges = (torch.rand(2, 1, 64, 64) > 0.8).float()
    with torch.no_grad():
        a = method._with_edges(grey(b.image), edges, b.mask)
        c = method._with_edges(grey(other), torch.where(b.mask > 0, 1 - edges, edges), b.mask)
        assert torch.equal(a.predicted_edges, c.predicted_edges)
        assert torch.equal(method._texture(b.image, b.mask, edges), method._texture(other, b.mask, edges))


def test_the_known_edges_do_not_know_the_hole():
    method, b = build().eval(), batch()
    with torch.no_grad():
        true, noisy, emptied = (
            method.complete_edges(image, b.mask).completed_edges
            for image in (b.image, torch.where(b.mask > 0, torch.rand_like(b.image), b.image), b.image * (1 - b.mask))
        )

    assert torch.equal(true, noisy)
    assert torch.equal(true, emptied)


@pytest.mark.parametrize("fill", [0, 1])
def test_hole_is_painted_with_the_chosen_value(fill):
    method, b = build(f"method.hole_fill={fill}"), batch()

    holed = method._holed(b.image, b.mask)
    assert (holed[(b.mask > 0).expand_as(holed)] == fill).all()
    assert torch.equal(holed[(b.mask == 0).expand_as(holed)], b.image[(b.mask == 0).expand_as(holed)])


def test_zero_logits_cost_log_two_and_extreme_ones_stay_finite():
    zeros = torch.zeros(2, 1, 3, 3)
    terms = adversarial.bce_discriminator(zeros, zeros)
    assert (terms["real"] + terms["filled"]).item() == pytest.approx(0.693147, abs=1e-6)
    assert adversarial.bce_generator(zeros).item() == pytest.approx(0.693147, abs=1e-6)
    assert adversarial.bce_generator(torch.full((1,), 20.0)).item() < 1e-8
    assert adversarial.bce_generator(torch.full((1,), -200.0)).item() == 200


def with_images(method, b, predicted):
    edges = torch.zeros_like(b.mask)
    return Drawn(grey(b.image), edges, edges, edges, predicted)


@pytest.mark.parametrize(("norm", "expected"), [("hole", 0.4), ("none", 0.1)])
def test_l1_of_a_constant_error_is_divided_by_the_hole_share(norm, expected):
    method, b = build(f"method.l1_norm={norm}"), batch()

    terms = method.texture_loss(b, with_images(method, b, b.image + 0.1), frozenset({"l1"}))
    assert terms["l1"].item() == pytest.approx(expected, rel=1e-4)


def test_style_of_the_hole_does_not_see_pixels_outside_it():
    method = build("method.texture_weights.style=1", "method.texture_weights.perceptual=1", features=True)
    b, active = batch(1), frozenset({"style"})
    predicted = torch.rand(1, 3, 64, 64)
    outside = torch.where(b.mask > 0, predicted, torch.rand_like(predicted))

    first = method.texture_loss(b, with_images(method, b, predicted), active)["style"]
    assert torch.equal(first, method.texture_loss(b, with_images(method, b, outside), active)["style"])
    assert first > 0


@pytest.mark.parametrize(
    ("region", "inside", "outside"), [("hole", True, False), ("valid", False, True), ("full", True, True)]
)
def test_style_region_says_which_pixels_get_its_gradient(region, inside, outside):
    method = build(f"method.style_region={region}", "method.texture_weights.style=1", features=True)
    b = batch(1)
    predicted = torch.rand(1, 3, 64, 64).requires_grad_()
    method.texture_loss(b, with_images(method, b, predicted), frozenset({"style"}))["style"].backward()

    reached = predicted.grad.abs().sum(1, keepdim=True) > 0
    assert bool(reached[b.mask > 0].any()) is inside
    assert bool(reached[b.mask == 0].any()) is outside


def test_feature_matching_of_equal_inputs_is_zero_and_teaches_the_discriminator_nothing():
    method, b = build(), batch()
    real = [torch.randn(1, 4, 8, 8, requires_grad=True)]
    assert perceptual.feature_matching([real[0].detach()], real).item() == 0

    drawn = method.draw_edges(b)
    method.edge_discriminator.requires_grad_(False)
    terms = method.edge_loss(b, drawn, frozenset({"feature_matching"}))
    terms["feature_matching"].backward()
    assert all(p.grad is None for p in method.edge_discriminator.parameters())
    assert any(p.grad.abs().max() > 0 for p in method.edge_generator.parameters())


def test_texture_stage_sends_nothing_into_the_edge_generator_and_the_joint_stage_does():
    method, b = build(), batch()
    active = frozenset({"l1", "adversarial"})
    for draw, reached in ((method.draw_on_frozen_edges, False), (method.draw_both, True)):
        method.zero_grad()
        sum(method.texture_loss(b, draw(b), active).values()).backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in method.edge_generator.parameters()) is reached


def test_canny_edges_can_stand_in_for_the_edge_generator():
    method, b = build("method.texture_edges=canny"), batch()
    with torch.no_grad():
        drawn = method.draw_on_frozen_edges(b)

    assert torch.equal(drawn.completed_edges, drawn.edges)


def test_conditions_of_the_discriminators_act():
    b = batch()
    full, masked = build(), build("method.edge_condition=masked")
    drawn = full.draw_edges(b)
    assert torch.equal(full._judged_with(b, drawn), grey(b.image))
    assert (masked._judged_with(b, drawn)[b.mask > 0] == 0).all()
    assert full.texture_discriminator.layers[0].in_channels == 4
    assert build("method.texture_condition=none").texture_discriminator.layers[0].in_channels == 3
    assert build("method.texture_sees_mask=true").texture_generator.encoder[0].in_channels == 5


def test_scores_are_one_for_perfect_edges_and_say_nothing_where_there_are_none():
    method, b = build().eval(), batch()
    true = canny(grey(b.image), sigma=1.0)
    method.complete_edges = lambda image, mask: Drawn(grey(image), true, true, true)
    found = method.scores(b.image, b.mask)

    there = (true * b.mask).sum((1, 2, 3)) > 0
    assert there.any()
    for values in found.values():
        assert (values[there] == 1).all()
        assert values[~there].isnan().all()


def test_spectral_norm_is_on_every_convolution_of_the_edge_generator_but_the_last():
    edge, texture = build().edge_generator, build().texture_generator
    wrapped = [torch.nn.utils.parametrize.is_parametrized(layer) for layer in (*edge.encoder, *edge.decoder)]
    assert all(wrapped)
    assert all(torch.nn.utils.parametrize.is_parametrized(b.first) for b in edge.middle)
    assert not torch.nn.utils.parametrize.is_parametrized(edge.last)
    assert not torch.nn.utils.parametrize.is_parametrized(edge.middle[0].attention.qkv)
    assert not any(torch.nn.utils.parametrize.is_parametrized(layer) for layer in texture.modules())
    up = edge.decoder[0].eval()  # a transposed convolution keeps its outputs in dimension 1
    assert up.parametrizations.weight[0]._u.numel() == up.out_channels


def test_image_smaller_than_the_attention_window_is_refused_and_padded_when_filled():
    method = build().eval()
    image, mask = torch.rand(1, 3, 32, 36), torch.zeros(1, 1, 32, 36)
    mask[..., 8:20, 8:20] = 1

    assert method.config.smallest_side == 48  # kernel 3 × dilation 4 on a map of a quarter of the side
    with pytest.raises(ShapeError, match="image is 36×32; EdgeTexture with these settings needs sides of at least 48"):
        method.inpaint(image, mask)
    filled = fill(method, image, mask)
    assert filled.shape == image.shape
    assert torch.equal(filled[..., 20:, :], image[..., 20:, :])


def test_every_update_is_rehearsed_so_that_no_rank_searches_for_unused_parameters():
    method = build("method.texture_weights.adversarial=1")
    found = rehearse(method, method.stages())

    assert set(found) == {(s, u) for s in ("edge", "texture", "joint") for u in ("discriminator", "generator")}
    assert all(update.all_reached for update in found.values())


def test_the_papers_own_row_leads_all_its_cells_by_the_known_margins():
    tables = published_tables()
    leads, seconds = {}, {}
    for name in ("dina_table1", "dina_table2"):
        cells = {}
        for number in tables[name].numbers:
            cells.setdefault((number.bin, number.metric), {})[number.label] = float(number.printed)
        for cell, values in cells.items():
            ours = values.pop("Ours")
            second = max(values, key=values.get)
            leads[name, *cell], seconds[name, *cell] = ours - values[second], second

    assert len(leads) == 24
    assert min(leads.values()) > 0
    smallest = {metric: min((k for k in leads if k[2] == metric), key=leads.get) for metric in ("psnr", "ssim")}
    assert smallest == {"psnr": ("dina_table2", "1-10", "psnr"), "ssim": ("dina_table1", "1-10", "ssim")}
    assert [round(leads[smallest[metric]], 3) for metric in ("psnr", "ssim")] == [0.39, 0.002]
    assert [seconds[smallest[metric]] for metric in ("psnr", "ssim")] == ["MADF", "GC"]
    for bin_name in ("40-50", "50-60"):
        assert seconds["dina_table1", bin_name, "psnr"] == "EC"


def learnt_by_heart(steps, *assignments):
    """Precision and recall, in the hole and outside it, after so many steps on one batch."""
    small = [f"stages.edge.steps={steps}", "stages.texture.steps=0", "method.canny_sigma=1", "training.ema=null"]
    run = load_run("edge-texture-tiny", assignments=[*small, *assignments])
    torch.manual_seed(0)
    method, b = build_method(run), batch(4, side=32)
    for _ in Trainer(method, run.training, seed=0).steps([b] * steps):
        pass
    with torch.no_grad():
        drawn = method.eval().draw_edges(b)
    found = [precision_recall(drawn.predicted_edges, drawn.edges, region) for region in (b.mask, 1 - b.mask)]
    return [score.nanmean().item() for pair in found for score in pair]


def test_the_edge_stage_learns_one_batch_by_heart():
    assert min(learnt_by_heart(100)) > 0.95


@pytest.mark.slow
def test_the_papers_optimizer_learns_one_batch_by_heart_too():
    ranger = [
        "method.generator_optimizer={kind: ranger21, learning_rate: 0.002}",
        "method.discriminator_optimizer={kind: ranger21, learning_rate: 0.00001}",
    ]
    assert min(learnt_by_heart(400, *ranger)) > 0.9
