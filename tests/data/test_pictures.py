import io
import warnings

import numpy as np
import pytest
from PIL import Image

from inpaint.data.pictures import Refused, read_picture, read_size
from tests.data.gallery import GOOD, MENDED, REFUSED, save, scene, turned


@pytest.mark.parametrize("name", GOOD)
def test_an_ordinary_file_is_read_without_a_word(name):
    picture = read_picture(GOOD[name])
    assert picture.mended == ()
    assert picture.as_it_is
    expected = np.asarray(Image.open(io.BytesIO(GOOD[name])).convert("RGB"))
    assert np.array_equal(picture.pixels, expected)


@pytest.mark.parametrize("name", MENDED)
def test_an_awkward_file_is_mended_and_says_how(name):
    data, how = MENDED[name]
    picture = read_picture(data)
    assert how in picture.mended
    assert not picture.as_it_is
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.shape[2] == 3


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusable_file_is_refused_with_its_reason(name):
    data, why = REFUSED[name]
    with pytest.raises(Refused) as caught:
        read_picture(data)
    assert why in str(caught.value)


def test_no_file_of_the_gallery_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {outcome(data) for data, _ in MENDED.values()} == {"read"}
        assert {outcome(data) for data, _ in REFUSED.values()} == {"refused"}


def test_deep_pixels_are_scaled_not_cut_off():
    for name in ("deep_grey.png", "deep_colour.png"):
        row = read_picture(MENDED[name][0]).pixels[0, :, 0].tolist()
        assert row == [0, 0, 128, 128, 255, 255, 255, 255]  # 32768 / 65535 * 255 = 127.5 + 0.002


def test_cmyk_gives_the_colours_it_was_made_from():
    picture = read_picture(MENDED["cmyk.jpg"][0])
    assert np.abs(picture.pixels.astype(int) - scene()).mean() < 4  # JPEG at quality 95


@pytest.mark.parametrize(
    ("orientation", "back"),
    [  # EXIF 2.3, tag 0x0112: what the stored picture must undergo to stand upright
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_every_exif_orientation_stands_upright(orientation, back):
    picture = read_picture(turned(orientation))
    assert np.array_equal(picture.pixels, back(read_picture(turned(1)).pixels))
    assert picture.as_it_is == (orientation == 1)
    assert read_size(turned(orientation)) == picture.pixels.shape[:2]


def test_the_limit_on_pixels_is_the_callers():
    with pytest.raises(Refused, match="48x32 is more than 0.0015 million pixels"):
        read_picture(GOOD["plain.jpg"], max_pixels=1500)
    assert read_picture(GOOD["plain.jpg"], max_pixels=1536).pixels.shape == (32, 48, 3)


def test_no_cut_of_a_jpeg_passes_for_whole():
    data = save(scene(64, 64), quality=80)
    for length in range(0, len(data), 37):
        with pytest.raises(Refused):
            read_picture(data[:length])


def test_random_damage_raises_nothing_but_a_refusal():
    rng = np.random.default_rng(0)
    outcomes = set()
    for data in [*GOOD.values(), MENDED["cmyk.jpg"][0], MENDED["palette.png"][0]]:
        for _ in range(30):
            broken = bytearray(data)
            for place in rng.integers(0, len(broken), 5):
                broken[place] = rng.integers(256)
            outcomes.add(outcome(bytes(broken)))
    assert outcomes == {"refused", "read"}


def outcome(data: bytes) -> str:
    try:
        read_picture(data)
    except Refused:
        return "refused"
    return "read"
