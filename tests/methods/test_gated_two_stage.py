"""The gated two-stage network against its paper's tables and hand-worked losses.

Counts marked as such were obtained once from an independent construction of the paper's Tables I to IV.
"""

import pytest
import torch

from inpaint.config import load_run
from inpaint.config.methods import GatedTwoStageConfig
from inpaint.errors import ConfigError, ShapeError
from inpaint.imaging import Batch, composite
from inpaint.losses import adversarial
from inpaint.methods.base import weight_at
from inpaint.methods.gated_two_stage import Coarse, Drawn, GatedTwoStage, PatchCritic, Refinement
from inpaint.nn.features import FeatureNetwork
from inpaint.nn.gated import GatedConv, UpGatedConv
from inpaint.training import Trainer

TINY = {"width": 8, "discriminator_width": 8}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def method(*, steps=1, **settings):
    torch.manual_seed(0)
    config = GatedTwoStageConfig(**(TINY | settings))
    features = {name: FeatureNetwork(name) for name in config.feature_networks(["joint"])}
    return GatedTwoStage(config, {"joint": steps}, features)


def batch(size=64, samples=2, hole=(20, 44)):
    mask = torch.zeros(samples, 1, size, size)
    mask[..., hole[0] : hole[1], hole[0] : hole[1]] = 1
    return Batch(torch.rand(samples, 3, size, size, generator=torch.Generator().manual_seed(1)), mask)


def without(*terms):
    weights = {"l1_coarse": 100, "l1_refined": 100, "perceptual": 10, "adversarial": 1}
    return weights | dict.fromkeys(terms, 0)


def test_networks_have_the_papers_number_of_parameters():
    with torch.device("meta"):
        coarse, refinement = Coarse(GatedTwoStageConfig()), Refinement(GatedTwoStageConfig())
        assert (count(coarse), count(coarse.attention)) == (2_935_942, 41_088)
        assert (count(coarse.encoder), count(coarse.decoder)) == (2_626_368, 268_486)
        assert (count(refinement), count(refinement.attention)) == (4_102_759, 20_641)
        assert (count(refinement.before_attention), count(refinement.after_attention)) == (578_688, 590_336)
        assert (count(refinement.dilated), count(refinement.decoder)) == (1_759_360, 1_153_734)
        assert count(coarse) + count(refinement) == 7_038_701
        assert count(PatchCritic(64)) == 5_946_816
        assert (count(coarse.encoder[0]), count(coarse.encoder[5])) == (6_464, 295_168)


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({"attentions": "none"}, 6_976_972),
        ({"gated": False, "coarse_dilations": [1] * 4, "refine_dilations": [1] * 6}, 3_550_215),
        (TINY, 185_446 + 259_807),
    ],
)
def test_the_papers_experiments_have_their_number_of_parameters(settings, parameters):
    with torch.device("meta"):
        config = GatedTwoStageConfig(**settings)
        assert count(Coarse(config)) + count(Refinement(config)) == parameters


def test_the_small_networks_of_the_tests_have_their_number_of_parameters():
    small = method(weights=without("perceptual"))
    assert [count(network) for network in small.networks().values()] == [185_446, 259_807, 93_752]


def test_vgg_16_up_to_pool3_has_its_number_of_frozen_parameters():
    with torch.device("meta"):
        vgg = FeatureNetwork("vgg16")
    used = [layer for name, layer in vgg.convs.items() if name[4] in "123"]
    assert sum(map(count, used)) == 1_735_488
    assert not any(parameter.requires_grad for parameter in vgg.parameters())


def test_shapes_at_256_are_the_papers():
    with torch.device("meta"):
        whole = GatedTwoStage(GatedTwoStageConfig(), {"joint": 1}, {})
        shapes = {}
        for name in ("coarse.encoder", "refinement.dilated", "refinement.after_attention"):
            whole.get_submodule(name).register_forward_hook(
                lambda _, __, out, name=name: shapes.update({name: tuple(out.shape)})
            )
        drawn = whole.draw(Batch(torch.rand(2, 3, 256, 256), torch.rand(2, 1, 256, 256)))
        scores = whole.discriminator(drawn.completed, torch.rand(2, 1, 256, 256))
    assert set(shapes.values()) == {(2, 128, 64, 64)}
    assert drawn.coarse.shape == drawn.refined.shape == drawn.completed.shape == (2, 3, 256, 256)
    assert scores.shape == (2, 256, 4, 4)


def test_both_fills_lie_between_black_and_white():
    drawn = method(weights=without("perceptual")).draw(batch())
    for fill in (drawn.coarse, drawn.refined):
        assert fill.min() >= 0
        assert fill.max() <= 1
        assert fill.std() > 0


def test_a_gate_multiplies_its_feature():
    # f = 2x, g = 0 everywhere: leaky ReLU of (4, -4) is (4, -0.8), halved by the gate
    layer = GatedConv(1, 1, kernel=1)
    with torch.no_grad():
        layer.conv.weight.copy_(torch.tensor([2.0, 0.0]).reshape(2, 1, 1, 1))
    out = layer(torch.tensor([2.0, -2.0]).reshape(1, 1, 1, 2))
    torch.testing.assert_close(out.flatten(), torch.tensor([2.0, -0.4]))


def test_enlarging_layers_double_both_sides():
    assert UpGatedConv(3, 5)(torch.rand(1, 3, 7, 9)).shape == (1, 5, 14, 18)


def test_fresh_weights_keep_the_signal_alive_to_the_last_layer():
    torch.manual_seed(0)
    network, deviations = Coarse(GatedTwoStageConfig()), []
    for layer in [*network.encoder, *list(network.decoder)[:-1]]:
        layer.register_forward_hook(lambda _, __, out: deviations.append(out.std().item()))
    network(torch.rand(1, 3, 128, 128), torch.zeros(1, 1, 128, 128))
    assert len(deviations) == 16
    assert all(0.1 < deviation < 1.2 for deviation in deviations)  # torch's own weights: 0.005 at the bottleneck


@pytest.mark.parametrize(("rates", "touched", "span"), [([1, 2, 3, 1, 2, 3], 25, 25), ([2, 4, 8, 16], 31, 61)])
def test_hybrid_dilation_touches_every_pixel_in_reach_where_powers_of_two_skip_half(rates, touched, span):
    branch = method(refine_dilations=rates, allow_gaps=True, gated=False).refinement.dilated[4:]
    for parameter in branch.parameters():
        torch.nn.init.constant_(parameter, 0.01)  # all positive, so that no path cancels
    row = torch.ones(1, 16, 1, 101, requires_grad=True)
    branch(row)[0, 0, 0, 50].backward()
    reached = row.grad[0, 0, 0].nonzero().flatten()
    assert len(reached) == touched
    assert reached[-1] - reached[0] + 1 == span


def test_what_lies_in_the_hole_never_reaches_the_generator():
    whole, seen = method(weights=without("perceptual")), batch()
    other = torch.where(seen.mask > 0, torch.nan, seen.image)
    first, second = whole.draw(seen), whole.draw(Batch(other, seen.mask))
    assert torch.equal(first.coarse, second.coarse)
    assert torch.equal(first.refined, second.refined)


def test_known_pixels_survive_to_the_bit():
    seen = batch()
    completed = method(weights=without("perceptual")).draw(seen).completed
    known = (seen.mask == 0).expand_as(completed)
    assert torch.equal(completed[known], seen.image[known])
    assert not torch.equal(completed[~known], seen.image[~known])


def test_hinge_losses_by_hand():
    def of_discriminator(real, filled):
        return sum(adversarial.hinge_discriminator(torch.tensor(real), torch.tensor(filled)).values()).item()

    assert of_discriminator([2.0, 2.0], [-2.0, -2.0]) == 0
    assert of_discriminator([0.0, 0.0], [0.0, 0.0]) == 2
    assert adversarial.hinge_generator(torch.tensor([3.0, 3.0])).item() == -3


def test_both_l1_terms_weigh_a_hundred():
    # 100 · 0.01 for each of the two fills
    whole, seen = method(weights=without("perceptual", "adversarial")), batch()
    off = seen.image + 0.01
    update = whole.stages()[0].updates[-1]
    terms = update.loss(seen, Drawn(off, off, off), update.active())
    total = sum(weight_at(update.weights[name], 0.0) * term for name, term in terms.items())
    torch.testing.assert_close(total, torch.tensor(2.0), atol=1e-4, rtol=0)


def test_weights_are_those_of_equation_11():
    generator = method().stages()[0].updates[1]
    assert generator.weights == {"l1_coarse": 100, "l1_refined": 100, "perceptual": 10, "adversarial": 1}
    assert generator.trains == ("coarse", "refinement")


def test_the_perceptual_term_is_the_mean_difference_at_the_first_three_pools():
    whole, seen = method(), batch()
    drawn = whole.draw(seen)
    term = whole.generator_loss(seen, drawn, frozenset({"perceptual"}))["perceptual"]
    features = [whole.vgg(image, ("pool1", "pool2", "pool3")) for image in (drawn.refined, seen.image)]
    by_hand = sum((features[0][name] - features[1][name]).abs().mean() for name in ("pool1", "pool2", "pool3"))
    torch.testing.assert_close(term, by_hand)
    assert term > 0


def test_a_step_moves_both_generators_and_the_critic_but_not_vgg():
    whole = method(vgg_input="raw")
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    trainer = Trainer(whole, load_run("gated-two-stage-tiny").training, seed=0)
    assert len(list(trainer.steps([batch()]))) == 1
    moved = {name.split(".")[0] for name, value in whole.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"coarse", "refinement", "discriminator"}


def test_the_refinements_loss_reaches_the_coarse_network_through_the_composite():
    whole, seen = method(weights=without("perceptual")), batch()
    drawn = whole.draw(seen)
    whole.generator_loss(seen, drawn, frozenset({"l1_refined"}))["l1_refined"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in whole.coarse.encoder.parameters())


def test_without_an_adversarial_weight_no_critic_is_trained():
    updates = method(weights=without("adversarial")).stages()[0].updates
    assert [update.trains for update in updates] == [("coarse", "refinement")]


def test_a_size_off_the_grid_is_refused():
    with pytest.raises(ShapeError, match="image is 60×64; GatedTwoStage needs sides that are multiples of 8"):
        method(weights=without("perceptual")).inpaint(torch.rand(1, 3, 64, 60), torch.zeros(1, 1, 64, 60))


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 16},
        {"gated": False},
        {"activation": "elu"},
        {"coarse_dilations": [1, 1, 1, 1]},
        {"refine_dilations": [1, 2, 3]},
        {"attentions": "coarse"},
        {"attentions": "refinement"},
        {"attentions": "none"},
        {"contextual": {"rate": 1, "patch": 1}},
        {"contextual": {"patch": 5}},
        {"contextual": {"scale": 1.0}},
        {"contextual": {"reduction": 4}},
        {"self_attention": {"reduction": 2}},
    ],
    ids=str,
)
def test_every_setting_of_the_generator_changes_it(settings):
    base, varied = (method(weights=without("perceptual"), **given) for given in ({}, settings))
    for whole in (base, varied):
        if whole.refinement.attention is not None:
            torch.nn.init.ones_(whole.refinement.attention.gamma)
    seen = batch()
    assert not torch.allclose(base.draw(seen).refined, varied.draw(seen).refined, atol=1e-7)


def test_the_critics_width_and_the_input_of_vgg_act():
    assert count(PatchCritic(16)) > count(PatchCritic(8))
    run = load_run("gated-two-stage-tiny", assignments=["method.vgg_input=raw", "method.weights.perceptual=1"])
    assert run.feature_networks == ("vgg16",)
    assert GatedTwoStageConfig().vgg_input == "imagenet"  # features.load_feature_network reads it


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("method.refine_dilations=[2, 4, 8, 16]", "miss pixels .HDC Eq. 3: gap 4, at most 3; common divisor 2"),
        ("method.refine_dilations=[1, 2, 9]", "gap 5, at most 3"),
        ("method.refine_dilations=[]", "at least 1 item"),
        ("method.contextual.rate=3", "method.contextual.rate 3: input should be 1 or 2"),
        ("method.contextual.reduction=7", "contextual.reduction 7 does not divide the 64 channels"),
        ("method.attentions=both_of_them", "method.attentions"),
        ("data.image_size=60", "data.image_size 60 is not a multiple of 8"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_training(assignment, message):
    with pytest.raises(ConfigError, match=message):
        load_run("gated-two-stage-tiny", assignments=[assignment])


def test_settings_of_an_absent_attention_are_refused():
    for attentions, setting in (("none", "contextual.scale=2"), ("coarse", "self_attention.reduction=4")):
        with pytest.raises(ConfigError, match=f"{setting.split('.')[0]} is set, but attentions is {attentions}"):
            load_run("gated-two-stage-tiny", assignments=[f"method.attentions={attentions}", f"method.{setting}"])


def test_the_control_with_gaps_is_built_when_asked_for():
    run = load_run(
        "gated-two-stage-tiny", assignments=["method.refine_dilations=[2,4,8,16]", "method.allow_gaps=true"]
    )
    with torch.device("meta"):
        assert len(Refinement(run.method).dilated) == 4 + 4


def test_previews_show_the_coarse_fill_with_the_known_pixels():
    whole, seen = method(weights=without("perceptual")), batch()
    preview = whole.previews(seen.image, seen.mask)["coarse"]
    assert torch.equal(preview, composite(seen.image, whole.draw(seen).coarse, seen.mask))
