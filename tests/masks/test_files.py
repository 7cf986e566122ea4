import io

import numpy as np
import pytest
from PIL import Image

from inpaint.errors import DataError, StorageError
from inpaint.masks import load_mask


def png(array, mode=None):
    file, image = io.BytesIO(), Image.fromarray(np.asarray(array, np.uint8))
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


def half(size=8, *, left=255, right=0):
    """Left half one value, right half another."""
    mask = np.full((size, size), right, np.uint8)
    mask[:, : size // 2] = left
    return mask


def load(data, *, hole="white", threshold="nearest", size=8):
    return load_mask(data, hole=hole, threshold=threshold, size=size)


def test_the_declared_value_is_the_hole():
    assert load(png(half())).sum(axis=0).tolist() == [8, 8, 8, 8, 0, 0, 0, 0]
    assert load(png(half()), hole="black").sum(axis=0).tolist() == [0, 0, 0, 0, 8, 8, 8, 8]


# A 12x12 file whose columns 0 to 4 are hole, halved. Pillow's bilinear filter weighs columns 2k - 1 to 2k + 2 of the
# file by 1/8, 3/8, 3/8, 1/8 for column k: column 2 is half hole (3 and 4 of 3 to 6), column 3 (5 to 8) has none.
@pytest.mark.parametrize(
    ("threshold", "columns"),
    [
        ("any_hole", [1, 1, 1, 0, 0, 0]),  # a touched pixel is hole: EdgeConnect's loader
        ("any_valid", [1, 1, 0, 0, 0, 0]),  # a pixel that known ones touch is known: ISNet's loader
    ],
)
def test_thresholds_decide_about_touched_pixels(threshold, columns):
    mask = np.zeros((12, 12), np.uint8)
    mask[:, :5] = 255
    loaded = load(png(mask), threshold=threshold, size=6)
    assert loaded[0].tolist() == columns
    assert (loaded == loaded[0]).all()


def test_any_hole_never_has_fewer_hole_pixels_than_nearest_and_any_valid_never_more():
    rng = np.random.default_rng(0)
    blobs = np.kron(rng.integers(0, 2, (16, 16)), np.ones((6, 6))).astype(np.uint8) * 255
    grown, nearest, shrunk = (load(png(blobs), threshold=t, size=32) for t in ("any_hole", "nearest", "any_valid"))
    assert (grown >= nearest).all()
    assert (nearest >= shrunk).all()
    assert grown.mean() > nearest.mean() > shrunk.mean()


def test_any_hole_of_one_polarity_is_the_complement_of_any_valid_of_the_other():
    rng = np.random.default_rng(1)
    blobs = np.kron(rng.integers(0, 2, (8, 8)), np.ones((5, 5))).astype(np.uint8) * 255
    hole = load(png(blobs), hole="white", threshold="any_hole", size=16)
    valid = load(png(blobs), hole="black", threshold="any_valid", size=16)
    assert np.array_equal(hole, 1 - valid)


def test_a_file_that_is_not_square_is_cropped_to_its_middle():
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:8] = 255
    assert load(png(wide)).sum(axis=0).tolist() == [8, 8, 8, 8, 0, 0, 0, 0]


def test_without_a_size_the_file_keeps_its_own():
    wide = np.zeros((8, 16), np.uint8)
    wide[2, 3] = 255
    mask = load(png(wide), size=None)
    assert mask.shape == (8, 16)
    assert np.argwhere(mask).tolist() == [[2, 3]]


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "P", "LA"])
def test_black_and_white_in_any_mode_is_the_same_mask(mode):
    assert np.array_equal(load(png(half(), mode)), load(png(half())))


def test_zero_and_one_or_sixteen_bits_are_black_and_white_too():
    assert np.array_equal(load(png(half(left=1))), load(png(half())))
    file = io.BytesIO()
    Image.fromarray(half().astype(np.uint16) * 257).save(file, "PNG")
    assert np.array_equal(load(file.getvalue()), load(png(half())))


def test_jpeg_noise_is_not_a_touched_pixel():
    rows, columns = np.mgrid[:64, :64]
    disc = (rows - 31) ** 2 + (columns - 33) ** 2 < 400
    file = io.BytesIO()
    Image.fromarray(disc.astype(np.uint8) * 255).save(file, "JPEG", quality=98)
    noisy = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    assert 0 < noisy[noisy > 0].min() < 16  # the file really is noisy
    for threshold in ("any_hole", "any_valid", "nearest"):
        assert np.array_equal(load(file.getvalue(), threshold=threshold, size=64), disc)


def test_anti_aliased_edges_are_accepted():
    soft = Image.fromarray(half(256)).rotate(10, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    soft.save(file, "PNG")
    assert 0.3 < load(file.getvalue(), size=64).mean() < 0.6


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (half(left=255, right=127), "127"),  # TFill's masks: the known side is grey
        (half(left=128, right=0), "128"),
        (half(left=200, right=0), "200"),
        (np.arange(256, dtype=np.uint8).reshape(16, 16), r"0 \(0.4%\).* and 253 others; expected 0 and 255"),
    ],
)
def test_a_third_value_stops_with_the_values_it_found(array, says):
    with pytest.raises(DataError, match=says):
        load(png(array))


def test_colour_transparency_animation_and_non_images_stop():
    red = np.zeros((8, 8, 3), np.uint8)
    red[:4, :, 0] = 255
    with pytest.raises(DataError, match="coloured"):
        load(png(red))
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4, :, 3] = 255
    with pytest.raises(DataError, match="transparent"):
        load(png(clear))
    file = io.BytesIO()
    frames = [Image.fromarray(half()), Image.fromarray(half(left=0, right=255))]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="2 frames"):
        load(file.getvalue())
    for data in (b"", b"not an image"):
        with pytest.raises(DataError, match="mask: not an image; give a PNG or JPEG mask"):
            load(data)
    with pytest.raises(DataError, match="not a readable image"):
        load(png(np.random.default_rng(0).integers(0, 2, (64, 64), np.uint8) * 255)[:300])


def test_messages_name_the_file(tmp_path):
    (tmp_path / "grey.png").write_bytes(png(half(right=127)))
    with pytest.raises(DataError, match=r"grey\.png: has values 127"):
        load_mask(tmp_path / "grey.png", hole="white", threshold="nearest", size=8)
    with pytest.raises(StorageError, match=r"gone\.png"):
        load_mask(tmp_path / "gone.png", hole="white", threshold="nearest", size=8)


def test_exif_orientation_turns_the_mask_as_viewers_show_it():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise: the left half becomes the top
    Image.fromarray(half()).save(file, "PNG", exif=exif)
    assert load(file.getvalue()).sum(axis=1).tolist() == [8, 8, 8, 8, 0, 0, 0, 0]
