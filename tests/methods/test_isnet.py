"""ISNet against the facts of its paper and of the authors' released networks (exact counts, shapes, key names)."""

import re

import pytest
import torch

from inpaint.config.methods import ISNetConfig, ISNetWeights
from inpaint.errors import WeightsError
from inpaint.imaging import Batch
from inpaint.methods.isnet import Generator, ISNet, UNetLike
from inpaint.methods.isnet_published import load_authors_discriminator, load_authors_generator, own_key
from inpaint.nn.features import FeatureNetwork
from inpaint.nn.patch_discriminator import PatchDiscriminator


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def tiny(**settings):
    return ISNetConfig(width=4, blocks=1, discriminator_width=4, **settings)


def method(config):
    features = {name: FeatureNetwork(name) for name in config.feature_networks(["gan"])}
    return ISNet(config, {"gan": 10}, features)


def batch(size=32, samples=2, hole=16):
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(samples, 1, size, size)
    mask[..., :hole, :hole] = 1
    return Batch(torch.rand(samples, 3, size, size, generator=generator), mask)


# Table 8, and the exact integers counted on the authors' networks; "M" in the paper is 2^20.
@pytest.mark.parametrize(
    ("design", "blocks", "exact", "printed"),
    [
        ("isnet", 1, 19_908_259, "18.99"),
        ("isnet", 2, 21_530_275, "20.53"),
        ("isnet", 3, 23_152_291, "22.08"),
        ("isnet", 4, 24_774_307, "23.63"),
        ("base", 4, 16_516_995, "15.75"),
        ("base_ff", 4, 14_610_083, "13.93"),
    ],
)
def test_generators_have_the_published_number_of_parameters(design, blocks, exact, printed):
    with torch.device("meta"):
        generator = Generator(design=design, blocks=blocks)
    assert count(generator) == exact
    assert f"{exact / 2**20:.2f}" == printed


def test_unet_like_and_discriminator_have_the_published_number_of_parameters():
    with torch.device("meta"):
        assert count(UNetLike()) == 24_403_715
        assert count(PatchDiscriminator()) == 2_763_776


def test_branches_have_the_papers_shapes_at_256():
    shapes = {}
    with torch.device("meta"):
        generator = Generator(blocks=1)
        for number, phase in enumerate(generator.phases, start=1):
            phase.register_forward_hook(
                lambda _, __, out, number=number: shapes.update({number: [tuple(part.shape[1:]) for part in out]})
            )
        out = generator(torch.rand(1, 3, 256, 256))
    assert shapes == {
        1: [(32, 256, 256), (64, 128, 128)],
        2: [(32, 256, 256), (128, 64, 64)],
        3: [(32, 256, 256), (256, 32, 32)],
        4: [(32, 256, 256), (512, 16, 16)],
    }
    assert out.shape == (1, 3, 256, 256)


@pytest.mark.parametrize("size", [64, 96])
def test_output_is_an_image_of_the_same_size_within_zero_and_one(size):
    predicted = Generator(blocks=1, width=4)(torch.rand(1, 3, size, size))
    assert predicted.shape == (1, 3, size, size)
    assert predicted.min() >= 0
    assert predicted.max() <= 1


def test_discriminator_shrinks_256_to_30_patches():
    with torch.device("meta"):
        logits, features = PatchDiscriminator()(torch.rand(1, 3, 256, 256))
    assert [tuple(f.shape[1:]) for f in features] == [
        (64, 128, 128), (128, 64, 64), (256, 32, 32), (512, 31, 31), (1, 30, 30),
    ]  # fmt: skip
    assert logits is features[-1]


def test_what_lies_in_the_hole_never_reaches_the_generator():
    net, data = method(tiny(weights=ISNetWeights(perceptual=0, style=0))).eval(), batch()
    changed = torch.where(data.mask > 0, torch.rand_like(data.image), data.image)
    assert torch.equal(net.inpaint(data.image, data.mask), net.inpaint(changed, data.mask))


def test_every_convolution_but_the_skip_is_spectrally_normalised():
    generator = Generator(blocks=1, width=4)
    normed = {name for name, layer in generator.named_modules() if hasattr(layer, "parametrizations")}
    convs = {name for name, layer in generator.named_modules() if hasattr(layer, "kernel_size")}
    assert convs - normed == {"stem.skip"}


def test_the_full_generator_has_92_convolutions_two_of_them_biased():
    with torch.device("meta"):
        convs = [layer for layer in Generator().modules() if hasattr(layer, "kernel_size")]
    assert len(convs) == 92
    assert sum(layer.bias is not None for layer in convs) == 2


def test_normalised_weights_have_a_largest_singular_value_near_one_after_25_passes():
    torch.manual_seed(0)
    generator = Generator(blocks=1, width=8)
    with torch.no_grad():
        for _ in range(25):
            generator(torch.rand(1, 3, 16, 16))
    generator.eval()
    for name, layer in generator.named_modules():
        if hasattr(layer, "parametrizations"):
            largest = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item()
            assert 0.999 <= largest <= 1.06, name


def test_low_resolution_blocks_are_dilated_in_the_first_convolution_only():
    phase = Generator(blocks=2, width=4).phases[1]
    assert [(b.first.dilation, b.second.dilation) for b in phase.low_blocks] == [((2, 2), (1, 1))] * 2
    assert [(b.first.dilation, b.second.dilation) for b in phase.high_blocks] == [((1, 1), (1, 1))] * 2
    others = [phase.high_aggregation, phase.low_aggregation, phase.low_down, *phase.down, *phase.up.convs]
    assert {layer.dilation for layer in others} == {(1, 1)}


def test_initial_weights_have_a_deviation_of_a_thousandth():
    torch.manual_seed(0)
    weight = Generator(blocks=1).phases[3].low_aggregation.parametrizations.weight.original
    assert weight.std().item() == pytest.approx(0.001, rel=0.01)
    assert Generator(blocks=1, width=4).head[0].bias.abs().max() == 0


def test_orthogonal_initial_weights_let_a_signal_through_that_normal_ones_swallow():
    torch.manual_seed(0)
    weights = ISNetWeights(perceptual=0, style=0)
    image = batch().image
    swallowed = method(tiny(weights=weights)).generator(image).std()
    passed = method(tiny(weights=weights, initialisation="orthogonal")).generator(image).std()
    assert passed > 2 * swallowed


def test_l1_of_a_constant_error_is_divided_by_the_share_of_the_hole():
    data = batch(hole=16)  # 16² of 32² is a quarter
    predicted = data.image + 0.1
    by_hole = method(tiny(weights=ISNetWeights(perceptual=0, style=0)))
    plain = method(tiny(l1_norm="none", weights=ISNetWeights(perceptual=0, style=0)))
    active = frozenset({"l1"})
    assert by_hole.generator_loss(data, predicted, active)["l1"].item() == pytest.approx(0.4, rel=1e-5)
    assert plain.generator_loss(data, predicted, active)["l1"].item() == pytest.approx(0.1, rel=1e-5)


def test_a_batch_without_a_hole_gives_a_finite_loss():
    data = batch(hole=0)
    loss = method(tiny(weights=ISNetWeights(perceptual=0, style=0))).generator_loss(data, data.image, frozenset({"l1"}))
    assert torch.isfinite(loss["l1"])


def test_a_perfect_prediction_has_no_reconstruction_loss():
    torch.manual_seed(0)
    net = method(tiny())
    data = batch()
    terms = net.generator_loss(data, data.image, frozenset({"l1", "perceptual", "style"}))
    assert {name: term.item() for name, term in terms.items()} == {"l1": 0, "perceptual": 0, "style": 0}


def test_terms_that_are_not_active_are_not_computed():
    net = method(tiny())
    net.discriminator.forward = net.vgg.forward = None  # calling either would fail
    assert set(net.generator_loss(batch(), batch().image, frozenset({"l1"}))) == {"l1"}


def test_without_adversarial_and_feature_matching_weight_the_discriminator_is_not_trained():
    (stage,) = method(tiny(weights=ISNetWeights(adversarial=0, perceptual=0, style=0))).stages()
    assert stage.trained() == ("generator",)


def test_the_defaults_are_equation_5_with_the_discriminator_ten_times_slower():
    config = ISNetConfig()
    assert config.weights.model_dump() == {
        "l1": 1, "adversarial": 3, "perceptual": 1, "style": 3, "feature_matching": 0,
    }  # fmt: skip
    assert config.generator_optimizer.learning_rate == 10 * config.discriminator_optimizer.learning_rate == 1e-4


def authors_names(own):
    """The authors' name of one of our tensors, from the table in isnet_published's docstring, read right to left."""
    rules = [
        (r"stem\.skip", "layer1.downsample"),
        (r"stem\.first", "layer1.conv_block.1"),
        (r"stem\.second", "layer1.conv_block.4"),
        (r"phases\.(\d)\.high_blocks\.(\d)\.first", r"stage\1.branches.0.\2.conv_block.1"),
        (r"phases\.(\d)\.high_blocks\.(\d)\.second", r"stage\1.branches.0.\2.conv_block.4"),
        (r"phases\.(\d)\.low_blocks\.(\d)\.first", r"stage\1.branches.1.\2.conv_block.1"),
        (r"phases\.(\d)\.low_blocks\.(\d)\.second", r"stage\1.branches.1.\2.conv_block.4"),
        (r"phases\.(\d)\.up\.convs\.(\d)", r"stage\1.fuse_layers.0.1.\2.0"),
        (r"phases\.(\d)\.down\.(\d)", r"stage\1.fuse_layers.1.0.\2.0"),
        (r"phases\.(\d)\.low_down", r"stage\1.fuse_layers.1.1.0"),
        (r"phases\.(\d)\.high_aggregation", r"stage\1.fused_branches.0.0.0"),
        (r"phases\.(\d)\.low_aggregation", r"stage\1.fused_branches.1.0.0"),
        (r"fusion_up\.convs\.(\d)", r"up_layer.\1.0"),
        (r"head\.0", "final_layer.0"),
        (r"head\.1", "final_layer.2"),
    ]
    for part, theirs in [
        (".parametrizations.weight.original", ".weight_orig"),
        (".parametrizations.weight.0._u", ".weight_u"),
        (".parametrizations.weight.0._v", ".weight_v"),
        (".weight", ".weight"),
        (".bias", ".bias"),
    ]:
        if own.endswith(part):
            layer = own.removesuffix(part)
            for pattern, name in rules:
                if re.fullmatch(pattern, layer):
                    return re.sub(pattern, name, layer) + theirs
    raise AssertionError(own)


def test_the_authors_generator_checkpoint_loads_by_name():
    torch.manual_seed(0)
    source, target = Generator(blocks=1, width=4).eval(), Generator(blocks=1, width=4).eval()
    load_authors_generator(target, {authors_names(key): tensor for key, tensor in source.state_dict().items()})
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(target(image), source(image))


def test_the_authors_names_are_those_of_their_released_code():
    assert own_key("stage3.fuse_layers.0.1.2.0.weight_orig") == "phases.3.up.convs.2.parametrizations.weight.original"
    assert own_key("layer1.downsample.weight") == "stem.skip.weight"
    assert own_key("module.final_layer.2.bias") == "head.1.bias"


def test_the_authors_discriminator_checkpoint_loads_and_its_alias_is_ignored():
    source, target = PatchDiscriminator(width=4).eval(), PatchDiscriminator(width=4).eval()
    state = {}
    for key, tensor in source.state_dict().items():
        layer, part = key.removeprefix("layers.").split(".", 1)
        part = {"original": "weight_orig", "_u": "weight_u", "_v": "weight_v"}[part.rsplit(".", 1)[-1]]
        state[f"conv{int(layer) + 1}.0.{part}"] = tensor
    state |= {key.replace("conv1.0", "features.0"): tensor for key, tensor in state.items() if key.startswith("conv1.")}
    load_authors_discriminator(target, state)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(target(image)[0], source(image)[0])


def test_a_checkpoint_with_another_number_of_blocks_is_refused():
    state = {authors_names(key): tensor for key, tensor in Generator(blocks=2, width=4).state_dict().items()}
    with pytest.raises(WeightsError, match="do not fit"):
        load_authors_generator(Generator(blocks=1, width=4), state)


def test_a_checkpoint_of_something_else_is_refused():
    with pytest.raises(WeightsError, match="encoder.0.weight is no tensor of the ISNet authors'"):
        load_authors_generator(Generator(blocks=1, width=4), {"encoder.0.weight": torch.zeros(1)})
