"""The acceptance facts of ISFRNet."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from inpaint.config import load_run
from inpaint.errors import ConfigError, WeightsError
from inpaint.imaging import Batch
from inpaint.losses import perceptual, reconstruction
from inpaint.methods import build_method, load_into_method, untrained
from inpaint.methods.isfrnet import IdentityRefiner, Refined, StructureRefiner, skip_weight
from inpaint.nn.features import load_feature_network
from inpaint.nn.patch_discriminator import PatchDiscriminator
from inpaint.nn.psp import published_state
from inpaint.training import Trainer

STEPS = ["stages.prior.steps=2", "stages.ifr.steps=2", "stages.sfr.steps=2", "training.global_batch=2"]
NO_PRIOR = ["stages.prior.steps=0"]


def tiny(*assignments):
    return load_run("isfrnet-tiny", assignments=[*STEPS, "resources.num_workers=1", *assignments])


def build(*assignments):
    torch.manual_seed(0)
    return build_method(tiny(*assignments))


def batch(samples=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = F.interpolate(torch.rand(samples, 3, 8, 8, generator=generator), (64, 64), mode="bilinear")
    mask = torch.zeros(samples, 1, 64, 64)
    for sample in range(samples):
        mask[sample, :, 16:48, 16 : 32 + 8 * sample] = 1
    return Batch(image, mask)


@cache
def published_sizes():
    with torch.device("meta"):
        method = build_method(load_run("isfrnet-celeba"))
    return method, {name: sum(p.numel() for p in net.parameters()) for name, net in method.named_children()}


@pytest.fixture
def checkpoint(tmp_path):
    """A small pSp file as published ones are written, and the networks in it."""
    source = build()
    encoder, decoder = source.psp_encoder, source.psp_decoder
    encoder.latent_avg.normal_()
    torch.save(published_state(encoder, decoder), tmp_path / "psp.pt")
    return tmp_path / "psp.pt", encoder, decoder


def with_file(path, *assignments):
    """The tiny run on a published prior: its sizes are the file's."""
    run = load_run("isfrnet-celeba", assignments=[
        f"method.psp.checkpoint={path}", "data.image_size=64", "method.width=8", "method.sfr_width=8",
        "method.levels=6", "method.discriminator_width=8", "method.sfr_weights.perceptual=0",
        "method.sfr_weights.style=0", "method.prior_weights.perceptual=0", "training.compile=false",
        *STEPS, *NO_PRIOR, *assignments,
    ])  # fmt: skip
    torch.manual_seed(0)
    return run, build_method(run)


def test_networks_have_the_published_number_of_parameters():
    method, found = published_sizes()

    assert found == {
        "psp_encoder": 267_136_704,
        "psp_decoder": 30_370_060,
        "ifr": 5_480_515,
        "ifr_discriminator": 2_764_737,
        "sfr": 93_480_259,
        "sfr_discriminator": 2_764_737,
    }
    assert found["psp_encoder"] + found["psp_decoder"] == 297_506_764
    assert sum(p.numel() for p in method.sfr.image_encoder.parameters()) == 19_536_832
    assert sum(p.numel() for p in method.sfr.decoder.parameters()) == 54_406_595


def test_small_networks_have_the_known_sizes():
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    judge = PatchDiscriminator(width=8, bias=True, spectral_last=False)

    assert count(IdentityRefiner(8)) == 88_331
    assert count(StructureRefiner(8, 6)) == 807_723
    assert count(judge) == 44_537
    assert judge(torch.rand(1, 3, 64, 64))[0].shape == (1, 1, 6, 6)


def test_shapes_at_256_pixels_are_those_of_the_paper():
    method, _ = published_sizes()
    image, mask = torch.empty(1, 3, 256, 256, device="meta"), torch.empty(1, 1, 256, 256, device="meta")
    made = method.refine(image, mask)

    assert made.coarse.shape == made.identity.shape == made.predicted.shape == (1, 3, 256, 256)
    assert method.ifr_discriminator(image)[0].shape == (1, 1, 30, 30)
    assert method.sfr.image_encoder(torch.empty(1, 4, 256, 256, device="meta"))[-1].shape == (1, 512, 1, 1)


def test_identity_refiner_sees_89_pixels(monkeypatch):
    monkeypatch.setattr(F, "instance_norm", lambda features: features)
    network = IdentityRefiner(4)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    seen = torch.zeros(1, 4, 160, 160, requires_grad=True)
    network(seen)[0, :, 80, 80].sum().backward()

    columns = (seen.grad.abs().sum((0, 1, 2)) > 0).nonzero().flatten()
    assert columns[-1] - columns[0] + 1 <= 89
    widths = []
    for place in range(78, 84):  # strides make it depend on the place; 89 is the widest
        seen.grad = None
        network(seen)[0, :, 80, place].sum().backward()
        reached = (seen.grad.abs().sum((0, 1, 2)) > 0).nonzero().flatten()
        widths.append((reached[-1] - reached[0] + 1).item())
    assert max(widths) == 89


def share(ratio, side=256):
    mask = torch.zeros(side * side)
    mask[: round(ratio * side * side)] = 1
    return mask.view(1, 1, side, side)


@pytest.mark.parametrize(
    ("ratio", "weight"), [(0.0, 1.0), (0.05, 1.0), (0.1, 1.0), (0.2, 0.5), (0.4, 0.25), (0.5, 0.2)]
)
def test_skip_weight_falls_in_inverse_proportion_to_the_hole(ratio, weight):
    assert skip_weight(share(ratio), "inverse_ratio", reference=0.1).item() == pytest.approx(weight, rel=1e-3)


def test_literal_skip_weight_is_one_over_the_number_of_hole_pixels():
    assert skip_weight(share(0.2), "literal", reference=0.1).item() == pytest.approx(7.6295e-5, rel=1e-4)
    assert skip_weight(share(0.0), "literal", reference=0.1).item() == 1
    assert skip_weight(share(0.3), "none", reference=0.1).item() == 1


def test_each_sample_of_a_batch_has_its_own_skip_weight():
    mixed = torch.cat([share(r) for r in (0.0, 0.2, 0.5)])

    found = skip_weight(mixed, "inverse_ratio", reference=0.1)
    assert found.shape == (3, 1, 1, 1)
    assert found.flatten().tolist() == pytest.approx([1, 0.5, 0.2], rel=1e-3)


@pytest.mark.parametrize("mode", ["literal", "inverse_ratio", "none"])
def test_zero_hole_is_finite_in_every_mode(mode):
    method, b = build(f"method.weighting={mode}").eval(), batch()

    assert method.inpaint(b.image, torch.zeros_like(b.mask)).isfinite().all()


def test_skips_of_the_holed_image_act_and_its_bottleneck_passes_without_them():
    torch.manual_seed(0)
    network = StructureRefiner(8, 6)
    image, refined = torch.rand(1, 4, 64, 64, requires_grad=True), torch.rand(1, 4, 64, 64)
    with_skips = network(image, refined, torch.ones(1, 1, 1, 1))
    without = network(image, refined, torch.zeros(1, 1, 1, 1))

    assert not torch.equal(with_skips, without)
    without.sum().backward()
    assert image.grad.abs().max() > 0


def test_identity_loss_is_the_mean_error_of_the_hole_whatever_lies_outside():
    image, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
    mask[0, :, 2:5, 3:9] = 1
    mask[1, :, 0:12, 0:12] = 1
    predicted = torch.where(mask > 0, image + 0.1, image - 7)

    assert reconstruction.l1_in_hole(predicted, image, mask).item() == pytest.approx(0.1, rel=1e-5)


def test_identity_loss_without_a_hole_is_zero_with_finite_gradients():
    predicted = torch.rand(1, 3, 8, 8, requires_grad=True)
    loss = reconstruction.l1_in_hole(predicted, torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))
    loss.backward()

    assert loss.item() == 0
    assert (predicted.grad == 0).all()


def test_variant_without_structure_stage_counts_the_error_of_the_whole_image():
    method, b = build("method.variant=psp_ifr", "stages.sfr.steps=0"), batch()
    made = Refined(b.image, identity=(b.image * 2 - 1) + 0.1, identity_completed=b.image)

    terms = method.ifr_loss(b, made, frozenset({"reconstruction"}))
    assert terms["reconstruction"].item() == pytest.approx(0.1, rel=1e-4)


def test_gram_of_ones_is_one_over_the_channels():
    torch.testing.assert_close(perceptual.gram(torch.ones(1, 4, 5, 5)), torch.full((1, 4, 4), 0.25))


def test_structure_losses_of_equal_images_are_zero():
    run = tiny("method.sfr_weights.perceptual=1", "method.sfr_weights.style=1", "feature_weights.vgg16=random")
    method, b = build_method(run, {"vgg16": load_feature_network(run, "vgg16")}), batch()
    signed = b.image * 2 - 1
    terms = method.sfr_loss(b, Refined(signed, predicted=signed), frozenset({"reconstruction", "perceptual", "style"}))

    assert {name: round(value.item(), 5) for name, value in terms.items()} == {
        "reconstruction": 0, "perceptual": 0, "style": 0,
    }  # fmt: skip


def test_features_are_read_after_the_first_three_pools_of_vgg16_on_imagenet_scale():
    run = tiny("method.sfr_weights.perceptual=1", "feature_weights.vgg16=random")
    network = load_feature_network(run, "vgg16")
    blocks = tuple(f"convs.relu{block}_" for block in (1, 2, 3))
    shallow = [p for name, p in network.named_parameters() if name.startswith(blocks)]

    assert sum(p.numel() for p in shallow) == 1_735_488
    assert network.normalise
    assert not any(p.requires_grad for p in network.parameters())


def test_truth_under_the_hole_reaches_no_generator():
    method, b = build().eval(), batch()
    other = torch.where(b.mask > 0, 1 - b.image, b.image)
    with torch.no_grad():
        for draw in (method.draw_prior, method.draw_identity, method.draw_structure):
            first, second = draw(b), draw(Batch(other, b.mask))
            for name in ("coarse", "identity", "predicted"):
                a, c = getattr(first, name), getattr(second, name)
                assert a is c is None or torch.equal(a, c)


def test_coarse_face_is_a_function_of_the_image():
    method, b = build().eval(), batch()
    image = b.image * 2 - 1

    assert torch.equal(method.coarse(image, b.mask), method.coarse(image, b.mask))
    assert method.coarse(image, b.mask).abs().max() <= 1
    assert not method.coarse(image, b.mask).requires_grad


def test_published_checkpoint_gives_the_coarse_face_of_its_networks(checkpoint):
    path, encoder, decoder = checkpoint
    _, method = with_file(path)
    b = batch()
    image = b.image * 2 - 1
    holed = torch.where(b.mask > 0, torch.ones_like(image), image)  # white, as the key psp.hole_fill says

    with torch.no_grad():
        torch.testing.assert_close(method.coarse(image, b.mask), decoder(encoder(holed)).clamp(-1, 1))


def test_published_prior_never_moves_and_is_named_by_file_instead_of_saved(checkpoint):
    run, method = with_file(checkpoint[0])
    before = {key: value.clone() for key, value in method.state_dict().items()}
    moved = {}
    trainer = Trainer(method, run.training, seed=0)
    for step in trainer.steps([batch()] * 4):
        now = method.state_dict()
        moved[step.stage] = {key.split(".")[0] for key in now if not torch.equal(now[key], before[key])}
        if step.stage_step == 2:
            before = {key: value.clone() for key, value in now.items()}

    assert moved == {"ifr": {"ifr", "ifr_discriminator"}, "sfr": {"sfr", "sfr_discriminator"}}
    assert set(method.networks()) == {"ifr", "ifr_discriminator", "sfr", "sfr_discriminator"}
    assert not any(p.requires_grad for p in method.psp_encoder.parameters())
    assert method.config.weight_files() == {"method.psp.checkpoint": (str(checkpoint[0]), None)}


def test_prior_of_ones_own_belongs_to_the_checkpoint_and_fine_tuning_starts_from_the_file(checkpoint):
    assert {"psp_encoder", "psp_decoder"} <= set(build().networks())

    path, encoder, _ = checkpoint
    _, method = with_file(path, "stages.prior.steps=1")
    assert {"psp_encoder", "psp_decoder", "prior_discriminator"} <= set(method.networks())
    assert torch.equal(method.psp_encoder.latent_avg, encoder.latent_avg)


@pytest.mark.parametrize("truncate", ["null", "32"])
def test_a_fine_tuned_prior_is_loaded_without_the_file_that_it_began_from(checkpoint, truncate):
    path, *_ = checkpoint
    run, method = with_file(path, "stages.prior.steps=1", f"method.psp.truncate={truncate}")
    saved = {name: method.networks()[name].state_dict() for name in method.inference_networks()}
    path.unlink()

    found, b = load_into_method(run, saved), batch()

    with torch.no_grad():
        assert torch.equal(found.inpaint(b.image, b.mask), method.eval().inpaint(b.image, b.mask))


def test_encoder_can_be_fine_tuned_alone(checkpoint):
    run, method = with_file(checkpoint[0], "stages.prior.steps=1", "method.psp.train=encoder", "stages.ifr.steps=0",
                            "stages.ifr.from=other")  # fmt: skip
    before = {key: value.clone() for key, value in method.state_dict().items()}
    for step in Trainer(method, run.training, seed=0).steps([batch()]):
        assert step.stage == "prior"
    moved = {key.split(".")[0] for key, value in method.state_dict().items() if not torch.equal(value, before[key])}

    assert moved == {"psp_encoder", "prior_discriminator"}


def test_a_fine_tuned_encoder_brings_the_decoder_of_the_run_that_it_comes_from():
    run = tiny("stages.prior.from=other", "method.psp.train=encoder", "stages.ifr.from=other")
    (stage, *_) = build_method(run).stages()

    assert "psp_decoder" not in stage.trained()
    assert stage.given == ("psp_decoder",)


def test_networks_that_no_step_has_trained_yet_are_named(checkpoint):
    run, method = tiny(), build()  # two steps each of prior, ifr and sfr
    assert untrained(method, run, 0) == ("psp_encoder", "psp_decoder", "ifr", "sfr")
    assert untrained(method, run, 2) == ("ifr", "sfr")
    assert untrained(method, run, 5) == ()
    published, method = with_file(checkpoint[0])
    assert untrained(method, published, 1) == ("sfr",)
    brought = tiny(*NO_PRIOR, "stages.prior.from=other", "stages.sfr.from=other")
    assert untrained(build_method(brought), brought, 0) == ("ifr",)
    random = tiny(*NO_PRIOR, "method.psp.allow_random=true")
    assert untrained(build_method(random), random, 4) == ("psp_encoder", "psp_decoder")


def test_prior_costs_no_gradient_memory_outside_its_own_stage():
    method, b = build(), batch()
    method.psp_encoder.requires_grad_(True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        method.coarse(b.image, b.mask)

    assert kept == []


def test_encoder_of_four_channels_sees_the_mask(tmp_path):
    source = build()
    encoder, decoder = source.psp_encoder, source.psp_decoder
    content = published_state(encoder, decoder)
    first = content["state_dict"]["encoder.input_layer.0.weight"]
    content["state_dict"]["encoder.input_layer.0.weight"] = torch.randn(len(first), 4, 3, 3)
    torch.save(content, tmp_path / "four.pt")
    _, method = with_file(tmp_path / "four.pt")
    b = batch()

    seen = method._prior_input(b.image, b.mask)
    assert seen.shape[1] == 4
    assert torch.equal(seen[:, 3:], b.mask)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["stages.prior.steps=0"], "isfrnet has no prior; give method.psp.checkpoint, or train one"),
        (["method.psp.allow_random=true"], "allow_random is set, but the run has a prior"),
        (["method.psp.sha256=" + "ab" * 32], "psp.sha256 is set, but there is no psp.checkpoint"),
        (["method.psp.train=encoder"], "psp.train is encoder, which needs"),
        (["stages.ifr.steps=0"], "sfr would refine what was never trained"),
        (["stages.ifr.steps=0", "stages.sfr.from=other"], "sfr would refine what was never trained"),
        (["method.variant=psp_ifr"], "stages.sfr.steps is not 0, but variant psp_ifr has no sfr"),
        (
            ["method.psp.cache=faces", "stages.prior.steps=0", "stages.prior.from=other"],
            "psp.cache keeps faces, and holes that are drawn anew each epoch bring none again; set data.looks",
        ),
        (["method.reference_ratio=0.2", "method.weighting=none"], "only weighting inverse_ratio reads it"),
        (["method.levels=7"], "data.image_size 64 is not a multiple of 128"),
        (["method.psp.checkpoint=a.pt"], "psp.image_size is set, but the checkpoint tells it"),
    ],
)
def test_impossible_settings_are_refused_before_training(assignments, message):
    with pytest.raises(ConfigError, match=message):
        tiny(*assignments)


def test_training_on_remembered_faces_equals_training_that_computes_them(checkpoint, tmp_path):
    path, _, _ = checkpoint
    seen = [batch(seed=0), batch(seed=1)] * 2  # ifr and sfr look at the same two batches

    def train(*assignments):
        run, method = with_file(path, *assignments)
        for _ in Trainer(method, run.training, seed=0).steps(seen):
            pass
        return method

    kept = (f"method.psp.cache={tmp_path / 'faces'}", "data.looks=2")
    plain, first = train(), train(*kept)
    assert (first.faces.computed, first.faces.read) == (4, 4)
    first.faces.flush()
    second = train(*kept)

    assert (second.faces.computed, second.faces.read) == (0, 8)
    for name, value in plain.state_dict().items():
        assert torch.equal(first.state_dict()[name], value), name
        assert torch.equal(second.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ([], "psp.cache keeps the faces of a frozen prior, and stages.prior.steps trains it"),
        (["method.psp.random_noise=true"], "psp.cache keeps faces, which psp.random_noise draws anew"),
        (
            [*NO_PRIOR, "stages.prior.from=other", "data.looks=2", "training.cuda_graphs=true"],
            "psp.cache looks at each batch on the host, which training.cuda_graphs forbids",
        ),
    ],
)
def test_faces_that_cannot_be_remembered_are_refused(assignments, message):
    with pytest.raises(ConfigError, match=message):
        tiny("method.psp.cache=faces", *assignments)


def test_absent_altered_or_foreign_checkpoint_is_refused_before_training(checkpoint, tmp_path):
    with pytest.raises(WeightsError, match=r"method.psp.checkpoint weights: .*nothing.pt is not a file; set"):
        with_file(tmp_path / "nothing.pt")
    with pytest.raises(WeightsError, match="has sha256 .*, expected abab"):
        with_file(checkpoint[0], "method.psp.sha256=" + "ab" * 32)
    content = torch.load(checkpoint[0], weights_only=True)
    del content["state_dict"]["decoder.conv1.noise.weight"]
    torch.save(content, tmp_path / "partial.pt")
    with pytest.raises(WeightsError, match=r"decoder does not fit .*conv1.noise.weight"):
        with_file(tmp_path / "partial.pt")


def test_file_with_objects_in_its_options_is_refused_with_what_to_do(checkpoint, tmp_path):
    content = torch.load(checkpoint[0], weights_only=True)
    content["opts"] = tmp_path  # any class of another library
    torch.save(content, tmp_path / "objects.pt")
    with pytest.raises(WeightsError, match="re-save them as plain types"):
        with_file(tmp_path / "objects.pt")


def test_truncated_prior_draws_the_smaller_image_and_enlarges_it(checkpoint):
    _, method = with_file(checkpoint[0], "method.psp.truncate=32")
    b = batch()

    assert len(method.psp_encoder.styles) == 8
    assert method.coarse(b.image, b.mask).shape == (2, 3, 64, 64)


def test_swapped_weights_are_one_line_of_a_preset():
    printed, swapped = load_run("isfrnet-celeba").method, load_run("isfrnet-celeba-swapped").method

    assert list(printed.sfr_weights.model_dump().values()) == [50, 120, 0.05, 0.1, 1]
    assert list(swapped.sfr_weights.model_dump().values()) == [50, 0.05, 120, 0.1, 1]
    assert printed.model_copy(update={"sfr_weights": swapped.sfr_weights}) == swapped


def test_variants_have_only_the_networks_they_use():
    without_sfr = build("method.variant=psp_ifr", "stages.sfr.steps=0")
    without_ifr = build("method.variant=psp_sfr", "stages.ifr.steps=0")

    assert [stage.name for stage in without_sfr.stages()] == ["prior", "ifr"]
    assert [stage.name for stage in without_ifr.stages()] == ["prior", "sfr"]
    assert not hasattr(without_sfr, "sfr")
    assert not hasattr(without_ifr, "ifr")
    b = batch()
    assert without_sfr.config.size_multiple == 4
    for method in (without_sfr, without_ifr):
        assert method.eval().inpaint(b.image, b.mask).shape == b.image.shape
