"""Decoding: PIL's pixels when exact, known distances when fast or scaled, planes that are nearly the same image."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from inpaint.data import decoding
from inpaint.data.decoding import Decoder, UndecodableImage, resize
from inpaint.data.pictures import read_picture
from inpaint.data.planes import PlanesCache, to_planes
from inpaint.data.ring import HostBatch, Slot, to_batch
from inpaint.demo_photos import photo as bundled


def photo(width, height, *, quality=90, mode="RGB"):
    """The bundled photograph of a cat, cut to a size, as a JPEG."""
    image = bundled("chelsea.png")
    scale = max(1, width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.crop((0, 0, width, height)).convert(mode).save(file, "JPEG", quality=quality)
    return file.getvalue()


def with_pil(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decoded(data, size, *, fast=False, dct_scaling=False, across=0.5, down=0.5, crop_share=1.0):
    row = np.empty((size, size, 3), np.uint8)
    decoder = Decoder(size, fast_dct=fast, repeat_colours=fast, dct_scaling=dct_scaling, crop_share=crop_share)
    decoder.into(row, data, across, down)
    return row


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_exact_decoding_gives_the_pixels_of_pil(mode):
    data = photo(64, 64, mode=mode)
    assert np.array_equal(decoded(data, 64), with_pil(data))


def test_exact_decoding_does_not_need_simplejpeg(monkeypatch):
    data = photo(64, 64)
    expected = decoded(data, 64)
    monkeypatch.setattr(decoding, "simplejpeg", None)
    assert np.array_equal(decoded(data, 64, fast=True), expected)


def test_fast_decoding_is_within_two_levels_on_average():
    data = photo(128, 128)
    assert np.abs(decoded(data, 128, fast=True).astype(int) - with_pil(data)).mean() < 2


@pytest.mark.parametrize(("across", "left"), [(0.0, 0), (0.5, 32), (1.0, 64)])
def test_the_crop_is_the_largest_square_at_the_asked_place(across, left):
    data = photo(128, 64)
    assert np.array_equal(decoded(data, 64, across=across), with_pil(data)[:, left : left + 64])


@pytest.mark.parametrize(("across", "down", "left", "top"), [(0.0, 0.0, 0, 0), (0.5, 1.0, 40, 16), (1.0, 0.5, 80, 8)])
def test_a_crop_of_a_share_lies_anywhere_in_the_image(across, down, left, top):
    data = photo(208, 144)
    found = decoded(data, 128, across=across, down=down, crop_share=128 / 144)
    assert np.array_equal(found, with_pil(data)[top : top + 128, left : left + 128])


def test_a_crop_of_a_share_is_scaled_and_never_taken_for_the_whole_image():
    data, row = photo(144, 144), np.empty((64, 64, 3), np.uint8)
    decoder = Decoder(64, fast_dct=False, repeat_colours=False, dct_scaling=False, crop_share=0.5)
    assert not decoder.into(row, data, 0.0, 0.0)
    expected = Image.fromarray(with_pil(data)[:72, :72]).resize((64, 64), Image.Resampling.BICUBIC)
    assert psnr(row, np.asarray(expected)) > 50
    native = Decoder(144, fast_dct=False, repeat_colours=False, dct_scaling=False, crop_share=0.5)
    assert not native.into(np.empty((144, 144, 3), np.uint8), data, 0.0, 0.0)
    scaled = decoded(photo(640, 640), 64, dct_scaling=True, across=1.0, down=1.0, crop_share=0.5)
    assert psnr(scaled, decoded(photo(640, 640), 64, across=1.0, down=1.0, crop_share=0.5)) > 38


def test_scaling_down_is_antialiased_like_pil():
    data = photo(200, 150)
    square = Image.open(io.BytesIO(data)).convert("RGB").crop((25, 0, 175, 150))
    expected = np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(decoded(data, 64).astype(int) - expected).max() <= 1


def test_a_dct_scaled_image_is_nearly_the_same():
    data = photo(320, 320)
    assert psnr(decoded(data, 64, dct_scaling=True), decoded(data, 64)) > 38


@pytest.mark.parametrize(("side", "decoded_side"), [(1024, 256), (683, 342), (511, 256), (510, 510), (2048, 256)])
def test_dct_scaling_never_goes_below_the_wanted_size(side, decoded_side):
    divisor = Decoder(256, fast_dct=True, repeat_colours=True, dct_scaling=True)._divisor(side)
    assert -(-side // divisor) == decoded_side
    assert Decoder(256, fast_dct=True, repeat_colours=True, dct_scaling=False)._divisor(side) == 1


def test_enlarging_is_possible():
    assert resize(np.full((8, 8, 3), 77, np.uint8), 16).tolist() == np.full((16, 16, 3), 77).tolist()


@pytest.mark.parametrize("data", [b"", b"x", b"\xff\xd8\xff", photo(64, 64)[:900], b"\x89PNG\r\n\x1a\n" + b"0" * 50])
def test_damaged_bytes_are_undecodable(data):
    with pytest.raises(UndecodableImage):
        decoded(data, 64)


@pytest.mark.parametrize("exact", [False, True])
def test_planes_give_the_jpeg_paths_image_within_the_stated_tolerance(exact):
    """Colours are stored at half resolution and rounded once more: a level on average, a few at most."""
    data = photo(128, 128)
    pixels = np.empty((128, 128, 3), np.uint8)
    Decoder(128, fast_dct=not exact, repeat_colours=True, dct_scaling=False).into(pixels, data, 0.5, 0.5)
    slot = Slot(pixels=None, planes=torch.zeros(1, 128 * 128 * 3 // 2, dtype=torch.uint8), masks=None)
    to_planes(pixels, slot.rows["planes"][0])

    batch = to_batch(
        HostBatch(slot, np.array([False]), ("a",)), size=128, smooth=exact, mask=torch.zeros(1, 1, 128, 128),
        device=torch.device("cpu"),
    )  # fmt: skip
    image = batch.image[0].permute(1, 2, 0).numpy() * 255
    distance = np.abs(image - decoded(data, 128, fast=not exact))
    assert distance.mean() < 1
    assert distance.max() < 8


def planes_of(number, count=16 * 16 * 3 // 2):
    return np.random.default_rng(number).integers(0, 256, count, np.uint8)


def open_cache(folder, *, name="set", samples=10, limit_bytes=1 << 20):
    return PlanesCache(folder, name, samples=samples, size=16, limit_bytes=limit_bytes)


def test_planes_are_shared_by_processes_that_open_the_same_file(tmp_path):
    one, other = open_cache(tmp_path), open_cache(tmp_path)
    one.write(3, planes_of(3))

    assert other.has(np.array([2, 3])).tolist() == [False, True]
    rows = np.zeros((1, 384), np.uint8)
    other.read(np.array([3]), rows)
    assert np.array_equal(rows[0], planes_of(3))


def test_planes_that_were_damaged_on_disk_are_not_used(tmp_path):
    cache = open_cache(tmp_path)
    cache.write(3, planes_of(3))
    del cache
    path = next((tmp_path / "planes").glob("*.planes"))
    data = bytearray(path.read_bytes())
    data[5 * 10 + 3 * 384 + 7] ^= 1  # ten flags and checksums, three images before it
    path.write_bytes(data)

    assert open_cache(tmp_path).has(np.array([3])).tolist() == [False]


def test_the_planes_file_is_bounded_and_the_first_samples_have_places(tmp_path):
    cache = open_cache(tmp_path, limit_bytes=4 * 389 + 100)  # 16·16·3/2 + 5 bytes each
    for sample in range(10):
        cache.write(sample, planes_of(sample))

    assert cache.has(np.arange(10)).tolist() == [True] * 4 + [False] * 6
    assert next((tmp_path / "planes").glob("*.planes")).stat().st_size == 4 * 389


def test_unused_planes_of_other_sets_make_room_and_used_ones_do_not(tmp_path):
    used = open_cache(tmp_path, name="used", limit_bytes=4000)
    open_cache(tmp_path, name="unused", limit_bytes=8000, samples=2)
    third = open_cache(tmp_path, name="third", limit_bytes=6000)

    names = {path.name.split("-")[0] for path in (tmp_path / "planes").glob("*.planes")}
    assert names == {"used", "third"}
    assert used.slots == 10
    assert third.slots == (6000 - 3890) // 389


def test_planes_without_room_on_the_disk_are_left_out(tmp_path, monkeypatch, caplog):
    import errno

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    cache = open_cache(tmp_path)
    assert cache.slots == 0
    assert "No space left" in caplog.text
    assert list((tmp_path / "planes").glob("*.planes")) == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_training_sees_a_turned_photo_as_an_evaluation_does(orientation):
    image, exif, file = Image.open(io.BytesIO(photo(96, 64))), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, "JPEG", quality=95, exif=exif)
    upright = read_picture(file.getvalue()).pixels
    height, width = upright.shape[:2]

    found = decoded(file.getvalue(), 64, across=1.0, down=1.0)

    assert (width > height) == (orientation < 5)
    assert np.array_equal(found, upright[height - 64 :, width - 64 :])


def test_decoding_in_many_threads_leaves_pythons_warnings_as_they_were():
    odd = io.BytesIO()
    Image.open(io.BytesIO(photo(64, 64))).save(odd, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff")
    png = io.BytesIO()
    Image.open(io.BytesIO(photo(64, 64))).save(png, "PNG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda data: decoded(data, 64), [odd.getvalue(), png.getvalue()] * 200))
    assert warnings.filters == before


def test_training_sees_sixteen_bits_as_an_evaluation_does():
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)).save(file, "PNG")
    assert np.array_equal(decoded(file.getvalue(), 64), read_picture(file.getvalue()).pixels)
    assert 120 < decoded(file.getvalue(), 64).mean() < 135


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"Exif\0\0nonsense"])
def test_exif_that_says_nothing_or_nonsense_is_passed_over(exif):
    image, plain, odd = Image.open(io.BytesIO(photo(64, 64))), io.BytesIO(), io.BytesIO()
    image.save(plain, "JPEG", quality=95)
    image.save(odd, "JPEG", quality=95, exif=exif)
    assert np.array_equal(decoded(odd.getvalue(), 64), decoded(plain.getvalue(), 64))
