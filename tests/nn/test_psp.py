"""The pSp rebuild against the published architecture: its counts, its keys, and numbers its code gives."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from inpaint.errors import WeightsError
from inpaint.nn.psp import Design, Encoder, face_pool, load_published, published_state
from inpaint.nn.stylegan2 import Blur, Doubled, ModulatedConv, StyleGAN2, decoder_widths, num_styles

SMALL = Design(
    image_size=64,
    width=4,
    units=(1, 1, 1, 1),
    code=32,
    widths=decoder_widths(64, most=16, product=512),
    mapping_layers=2,
)


@cache
def published(size):
    with torch.device("meta"):
        return Design(widths=decoder_widths(size)).build()


def count(network):
    return sum(p.numel() for p in network.parameters())


def small(seed=0):
    torch.manual_seed(seed)
    return SMALL.build()


def by_formula(network):
    """Weights that anybody can write down again: a sine over the elements, shifted by the key's alphabetical place."""
    state = {key: value for key, value in network.state_dict().items() if key != "latent_avg"}
    for place, (key, value) in enumerate(sorted(state.items())):
        if not value.is_floating_point() or key.endswith("kernel"):
            continue
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + place).view(value.shape)
        if key.endswith("running_var"):
            wave = 1 + 0.5 * wave
        elif value.dim() == 1:
            wave = 0.1 * wave + key.endswith("weight")
        elif value.dim() == 4 and "noise" not in key and key != "input.input":
            wave = wave * value[0].numel() ** -0.5
        state[key] = wave.float()
    network.load_state_dict(state, strict=False)
    return network


@pytest.mark.parametrize(
    ("size", "styles", "encoder", "decoder", "encoder_entries", "decoder_entries"),
    [(1024, 18, 267_136_704, 30_370_060, 621, 171), (256, 14, 209_450_688, 30_034_338, 565, 135)],
)
def test_networks_are_as_large_as_the_published_ones(size, styles, encoder, decoder, encoder_entries, decoder_entries):
    codes, images = published(size)

    assert num_styles(size) == styles == len(codes.styles)
    assert (count(codes), count(images)) == (encoder, decoder)
    assert len(codes.state_dict()) == encoder_entries + 1  # and the mean code, kept beside `state_dict` in files
    assert len(images.state_dict()) == decoder_entries
    assert count(codes.body) == 30_948_160
    assert count(images.style) == 2_101_248
    assert [count(codes.styles[i]) for i in (0, 3, 7)] == [9_701_888, 12_061_696, 14_421_504]


def test_styles_follow_from_the_size():
    assert [num_styles(size) for size in (1024, 512, 256, 64)] == [18, 16, 14, 10]


def test_small_networks_have_the_known_sizes():
    encoder, decoder = small()

    assert (count(encoder), count(decoder)) == (308_596, 27_456)
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, 10, 32)


def test_published_encoder_reads_eighteen_styles_off_256_pixels():
    encoder, decoder = published(1024)
    codes = encoder(torch.empty(1, 3, 256, 256, device="meta"))

    assert codes.shape == (1, 18, 512)
    assert decoder(codes).shape == (1, 3, 1024, 1024)


def test_keys_are_the_published_ones():
    encoder, decoder = published(1024)
    keys = set(published_state(encoder, decoder)["state_dict"])

    # one key of each kind, from the published files
    assert keys >= {
        "encoder.input_layer.0.weight", "encoder.input_layer.1.running_mean", "encoder.input_layer.2.weight",
        "encoder.body.3.shortcut_layer.0.weight", "encoder.body.3.shortcut_layer.1.bias",
        "encoder.body.23.res_layer.4.running_var", "encoder.body.0.res_layer.5.fc1.weight",
        "encoder.styles.0.convs.6.weight", "encoder.styles.17.convs.10.bias", "encoder.styles.17.linear.weight",
        "encoder.latlayer1.weight", "encoder.latlayer2.bias",
        "decoder.style.8.bias", "decoder.input.input", "decoder.conv1.conv.modulation.bias",
        "decoder.conv1.noise.weight", "decoder.conv1.activate.bias", "decoder.to_rgb1.bias",
        "decoder.convs.14.conv.blur.kernel",
        "decoder.convs.15.conv.weight", "decoder.to_rgbs.7.upsample.kernel", "decoder.to_rgbs.7.conv.modulation.weight",
        "decoder.noises.noise_16",
    }  # fmt: skip
    assert "decoder.style.0.weight" not in keys
    assert "encoder.body.0.shortcut_layer.0.weight" not in keys
    assert len(keys) == 621 + 171


def test_outputs_are_those_of_the_published_code():
    # GradualStyleEncoder of 16 channels and Generator(64, 128, 2) of the authors' release, same weights, on CPU
    encoder = by_formula(Encoder(styles=10, width=16, code=128, image_size=64))
    decoder = by_formula(StyleGAN2(decoder_widths(64), code=128, mapping_layers=2))
    image = torch.sin(torch.arange(2 * 3 * 64 * 64, dtype=torch.float64) * 0.01).view(2, 3, 64, 64).float()
    with torch.no_grad():
        codes = encoder(image)
        drawn = decoder(codes)

    assert codes[0, [0, 5, 9], :3].flatten().tolist() == pytest.approx(
        [-0.3365189, -0.1037196, 0.2102455, -0.1892989, 0.0043195, 0.2953755, -0.2865475, -0.1093573, 0.3648541],
        abs=2e-5,
    )
    assert drawn[0, :, [0, 17, 40], [0, 30, 63]].flatten().tolist() == pytest.approx(
        [-0.1858061, -0.0352543, -0.1139577, -0.3984551, -0.2032639, -0.3533089, -0.8259913, -0.5774717, -0.8007859],
        abs=1e-4,
    )
    assert (drawn.mean().item(), drawn.std().item()) == pytest.approx((-0.803590, 0.831909), abs=1e-4)


@pytest.mark.parametrize(("doubles", "demodulate"), [(False, True), (True, True), (False, False)])
def test_modulated_convolution_is_one_convolution_per_sample_with_its_own_weights(doubles, demodulate):
    torch.manual_seed(0)
    layer = ModulatedConv(4, 6, 3, 5, doubles=doubles, demodulate=demodulate)
    x, style = torch.randn(3, 4, 7, 7), torch.randn(3, 5)
    found = layer(x, style)
    for sample in range(3):
        weight = layer.weight[0] / 6 * layer.modulation(style)[sample].view(1, 4, 1, 1)  # √(4·9) = 6
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        one = x[sample : sample + 1]
        expected = (
            layer.blur(F.conv_transpose2d(one, weight.transpose(0, 1), stride=2)) if doubles
            else F.conv2d(one, weight, padding=1)
        )  # fmt: skip
        torch.testing.assert_close(found[sample : sample + 1], expected, atol=1e-5, rtol=1e-5)


def test_blur_and_doubling_keep_the_mean_of_a_constant():
    flat = torch.full((1, 2, 16, 16), 3.0)
    inner = Blur(before=1, after=1, gain=4.0)(flat)
    assert inner.shape == (1, 2, 15, 15)
    torch.testing.assert_close(inner[..., 3:-3, 3:-3], torch.full((1, 2, 9, 9), 12.0))
    doubled = Doubled()(flat)
    assert doubled.shape == (1, 2, 32, 32)
    torch.testing.assert_close(doubled[..., 4:-4, 4:-4], torch.full((1, 2, 24, 24), 3.0))


def test_stored_noise_makes_the_image_a_function_of_its_code_and_random_noise_does_not():
    codes = torch.randn(1, 10, 32)
    for random, equal in ((False, True), (True, False)):
        decoder = StyleGAN2(SMALL.widths, code=32, mapping_layers=2, random_noise=random)
        for module in decoder.modules():
            if type(module).__name__ == "Noise":
                module.weight.data.fill_(1.0)
        assert torch.equal(decoder(codes), decoder(codes)) is equal


def test_batch_statistics_never_move_in_training_mode_either():
    encoder, _ = small()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.train()(torch.rand(2, 3, 64, 64)).sum().backward()

    assert not any(module.training for module in encoder.modules())
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_weights_of_rank_five_survive_channels_last_memory():
    _, decoder = small()
    codes = torch.randn(1, 10, 32)
    before = decoder(codes)
    decoder.to(memory_format=torch.channels_last)

    assert decoder.conv1.conv.weight.shape == (1, 16, 16, 3, 3)
    torch.testing.assert_close(decoder(codes), before, atol=1e-5, rtol=1e-5)


def test_saved_and_loaded_networks_draw_the_same_face():
    encoder, decoder = small()
    encoder.latent_avg.normal_()
    image = torch.rand(1, 3, 64, 64)
    other, drawer = load_published(published_state(encoder, decoder))

    assert torch.equal(drawer(other(image)), decoder(encoder(image)))


def test_bare_state_dict_has_no_mean_code():
    encoder, decoder = small()
    found, _ = load_published(published_state(encoder, decoder)["state_dict"])

    assert found.latent_avg.abs().sum() == 0


def test_one_mean_vector_serves_all_styles_and_is_left_out_when_the_options_say_so():
    content = published_state(*small())
    content["latent_avg"] = torch.arange(32.0)
    assert torch.equal(load_published(content)[0].latent_avg, torch.arange(32.0).expand(10, -1))

    content["opts"]["start_from_latent_avg"] = False
    assert load_published(content)[0].latent_avg.abs().sum() == 0


def test_truncation_keeps_the_styles_and_blocks_of_the_smaller_size():
    encoder, decoder = small()
    shorter, drawer = load_published(published_state(encoder, decoder), truncate=32)

    assert len(shorter.styles) == num_styles(32) == 8
    assert (len(drawer.convs), len(drawer.to_rgbs), len(list(drawer.noises.buffers()))) == (6, 3, 7)
    codes = encoder(torch.rand(1, 3, 64, 64))
    assert drawer(codes[:, :8]).shape == (1, 3, 32, 32)


def test_truncating_the_published_size_to_256_drops_what_the_papers_say():
    encoder, decoder = published(1024)
    cut, drawer = published(256)
    assert len(encoder.state_dict()) - len(cut.state_dict()) == 56
    assert len(decoder.state_dict()) - len(drawer.state_dict()) == 36


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["state_dict"].pop("encoder.body.0.res_layer.1.weight"), "encoder does not fit .*Missing key"),
        (lambda c: c["state_dict"].pop("encoder.input_layer.0.weight"), "key input_layer.0.weight is missing"),
        (lambda c: c["state_dict"].pop("decoder.to_rgbs.3.conv.weight"), "10 styles do not fit a decoder of 32 pixels"),
        (lambda c: c["state_dict"].update({"encoder.new": torch.zeros(1)}), "encoder does not fit .*Unexpected key"),
        (lambda c: c["state_dict"].update({"net.new": torch.zeros(1)}), "key net.new has no prefix"),
        (lambda c: c["opts"].update(output_size=1024), "opts say output_size 1024, its decoder draws 64"),
        (lambda c: c["opts"].update(encoder_type="BackboneEncoder"), "encoder_type BackboneEncoder"),
        (lambda c: c["opts"].update(learn_in_w=True), "learn_in_w True"),
        (lambda c: c.pop("latent_avg"), "there is no latent_avg"),
        (lambda c: c.update(latent_avg=torch.zeros(4, 32)), "does not fit .*latent_avg"),
        (
            lambda c: c["state_dict"].update({"encoder.input_layer.0.weight": torch.zeros(4, 6, 3, 3)}),
            "takes 6 channels; expected 3",
        ),
    ],
)
def test_damaged_or_foreign_checkpoint_is_refused_by_name(damage, message):
    content = published_state(*small())
    damage(content)
    with pytest.raises(WeightsError, match=message):
        load_published(content)


@pytest.mark.parametrize("size", [4, 48, 64, 128])
def test_impossible_truncation_is_refused(size):
    with pytest.raises(WeightsError, match=f"psp.truncate {size}: expected a power of two from 8"):
        load_published(published_state(*small()), truncate=size)


def test_face_is_pooled_down_and_enlarged_to_the_working_size():
    image = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)

    torch.testing.assert_close(face_pool(image, (2, 2))[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    assert face_pool(image, (8, 8)).shape == (1, 3, 8, 8)
    assert torch.equal(face_pool(image, (4, 4)), image)
