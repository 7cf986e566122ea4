"""Photos of every kind keep their known pixels bit for bit in the file that is written."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from inpaint.errors import DataError
from inpaint.inference import deep_png, fill_photo, read_photo
from inpaint.inference.photo_files import write_photo
from tests.inference.painters import Painter

SIZE = (50, 37)  # width, height: off every grid
HOLE = (slice(10, 20), slice(5, 30))


def noise(channels: int, levels: int = 256) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, levels, (SIZE[1], SIZE[0], channels))
    return values.astype(np.uint8 if levels == 256 else np.uint16)


@pytest.fixture
def mask(tmp_path):
    holes = np.zeros(SIZE[::-1], np.uint8)
    holes[HOLE] = 255
    Image.fromarray(holes).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def opened(path) -> Image.Image:
    """An image file that needs no closing."""
    return Image.open(io.BytesIO(path.read_bytes()))


def known(values: np.ndarray) -> np.ndarray:
    outside = np.ones(values.shape[:2], bool)
    outside[HOLE] = False
    return values[outside]


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGBA", 4), ("L", 1)])
def test_known_pixels_survive_in_every_lossless_file(tmp_path, mask, mode, channels, ending):
    pixels = noise(channels)
    Image.fromarray(pixels.squeeze()).save(tmp_path / "photo.png")
    done = fill_photo(Painter(), tmp_path / "photo.png", mask, tmp_path / f"out.{ending}")

    written = opened(tmp_path / f"out.{ending}")
    assert written.mode == ("RGB" if (mode, ending) == ("L", "webp") else mode)
    values = np.asarray(written.convert(mode)).reshape(SIZE[1], SIZE[0], channels)
    assert np.array_equal(known(values), known(pixels))
    drawn = {"L": [152], "RGB": [255, 128, 0], "RGBA": [255, 128, 0]}[mode]  # 0.299 + 0.587 / 2 = 0.5925
    assert abs(values[15, 15, : len(drawn)].astype(int) - drawn).max() <= 1
    assert done.hole_ratio == pytest.approx(250 / (50 * 37))


def test_alpha_stays_also_in_the_hole(tmp_path, mask):
    pixels = noise(4)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    fill_photo(Painter(), tmp_path / "photo.png", mask, tmp_path / "out.png")
    assert np.array_equal(np.asarray(opened(tmp_path / "out.png"))[..., 3], pixels[..., 3])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_stay_sixteen_bits(tmp_path, mask, channels, ending):
    pixels = noise(channels, 65536)
    tifffile.imwrite(tmp_path / "photo.tif", pixels.squeeze(), photometric="rgb" if channels > 1 else "minisblack",
                     extrasamples=[2] if channels == 4 else None)  # fmt: skip
    fill_photo(Painter(), tmp_path / "photo.tif", mask, tmp_path / f"once.{ending}")
    fill_photo(Painter((0.0, 0.0, 0.0)), tmp_path / f"once.{ending}", mask, tmp_path / "twice.png")

    for name in (f"once.{ending}", "twice.png"):
        again = read_photo(tmp_path / name)
        assert again.pixels.dtype == np.uint16
        assert np.array_equal(known(again.pixels), known(pixels))
    assert (again.pixels[HOLE][..., :3 if channels > 1 else 1] == 0).all()


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning")
def test_a_deep_png_is_read_by_others_as_it_was_written(tmp_path):
    import torch
    from torchvision.io import ImageReadMode, decode_image

    pixels = noise(3, 65536)
    data = deep_png.encode(pixels, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    decoded = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    assert np.array_equal(decoded.numpy().transpose(1, 2, 0), pixels)
    assert np.array_equal(deep_png.decode(data), pixels)
    (tmp_path / "deep.png").write_bytes(data)
    assert np.array_equal(np.asarray(opened(tmp_path / "deep.png")), (pixels >> 8).astype(np.uint8))


@pytest.mark.parametrize("filter_type", range(5))
def test_every_filter_of_a_deep_png_is_undone(filter_type):
    """The filters as the PNG specification writes them, pixel by pixel."""
    pixels = noise(3, 65536)[:9, :7]
    rows = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(9, 42).astype(int)
    packed = b""
    for y in range(9):
        packed += bytes([filter_type])
        for x in range(42):
            a, b = rows[y, x - 6] if x >= 6 else 0, rows[y - 1, x] if y else 0
            c = rows[y - 1, x - 6] if y and x >= 6 else 0
            nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            packed += bytes([(rows[y, x] - [0, a, b, (a + b) // 2, nearest][filter_type]) % 256])
    data = deep_png.encode(pixels)
    start = data.index(b"IDAT") - 4
    data = data[:start] + deep_png._chunk(b"IDAT", zlib.compress(packed)) + deep_png._chunk(b"IEND", b"")
    assert np.array_equal(deep_png.decode(data), pixels)


def test_a_damaged_deep_png_is_refused(tmp_path):
    data = bytearray(deep_png.encode(noise(3, 65536)))
    data[200] ^= 1
    (tmp_path / "photo.png").write_bytes(data)
    with pytest.raises(DataError, match=r"photo\.png: not a readable image"):
        read_photo(tmp_path / "photo.png")
    (tmp_path / "photo.png").write_bytes(data[:150])
    with pytest.raises(DataError, match=r"photo\.png: not a readable image"):
        read_photo(tmp_path / "photo.png")


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_deep_photo_keeps_its_resolution(tmp_path, ending):
    pixels = noise(3, 65536)
    if ending == "png":
        (tmp_path / "photo.png").write_bytes(deep_png.encode(pixels, dpi=(300, 150)))
    else:
        tifffile.imwrite(tmp_path / "photo.tif", pixels, photometric="rgb", resolution=(300, 150), resolutionunit=2)
    write_photo(read_photo(tmp_path / f"photo.{ending}"), tmp_path / f"out.{ending}")
    with opened(tmp_path / f"out.{ending}") if ending == "png" else tifffile.TiffFile(tmp_path / "out.tif") as out:
        found = out.info["dpi"] if ending == "png" else out.pages[0].get_resolution(2)
    assert found == pytest.approx((300, 150), abs=0.02)  # PNG counts whole dots per metre


@pytest.mark.parametrize(
    ("resolution", "unit", "dpi"),
    [((100, 200), 3, (254, 508)), ((72, 72), 1, None), (((0, 1), (0, 1)), 2, None), (((72, 1), (0, 1)), 2, None)],
)
def test_a_deep_tiff_tells_dots_per_inch_or_nothing(tmp_path, resolution, unit, dpi):
    place = tmp_path / "photo.tif"
    tifffile.imwrite(place, noise(3, 65536), photometric="rgb", resolution=resolution, resolutionunit=unit)
    photo = read_photo(place)
    assert photo.kept["dpi"] == (dpi and pytest.approx(dpi))
    write_photo(photo, tmp_path / "out.png")
    write_photo(photo, tmp_path / "out.tif")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_that_means_transparent_becomes_alpha_in_deep_photos_too(tmp_path, channels):
    pixels = noise(channels, 65536)
    data = deep_png.encode(pixels)
    clear = pixels[3, 5].astype(">u2").tobytes()
    place = data.index(b"IDAT") - 4
    (tmp_path / "photo.png").write_bytes(data[:place] + deep_png._chunk(b"tRNS", clear) + data[place:])
    photo = read_photo(tmp_path / "photo.png")
    expected = np.full(pixels.shape[:2], 65535)
    expected[3, 5] = 0
    assert photo.kind == ("RGBA" if channels == 3 else "LA")
    assert np.array_equal(photo.pixels[..., :-1], pixels)
    assert np.array_equal(photo.pixels[..., -1], expected)


def test_a_deep_tiff_whose_colours_are_multiplied_by_alpha_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "photo.tif", noise(4, 65536), photometric="rgb", extrasamples=[1])
    with pytest.raises(DataError, match=r"photo\.tif: .*multiplied by its alpha; save it with straight alpha"):
        read_photo(tmp_path / "photo.tif")


def exif_with_previews(preview: bytes) -> bytes:
    """EXIF as cameras write it: who made it, a lens and a note that holds a picture, then the thumbnail's directory."""

    def directory(entries, following):
        words = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        return struct.pack("<H", len(entries)) + words + struct.pack("<I", following)

    size = len(preview)
    about, details, thumbnail = 8, 8 + 30, 8 + 30 + 30  # places of the directories; pictures and texts follow
    texts = thumbnail + 30
    body = directory([(0x010F, 2, 6, texts), (0x8769, 4, 1, details)], thumbnail)
    body += directory([(0xA433, 2, 5, texts + 6), (0x927C, 7, size, texts + 11)], 0)
    body += directory([(0x0201, 4, 1, texts + 11 + size), (0x0202, 4, 1, size)], 0)
    assert len(body) == texts - about
    return b"Exif\0\0II*\0\x08\0\0\0" + body + b"Maker\0" + b"Lens\0" + preview + preview


@pytest.mark.parametrize("deep", [False, True])
def test_previews_of_what_was_in_the_hole_do_not_come_along_in_exif(tmp_path, deep):
    preview = b"\xff\xd8\xff\xe0 the face that was there \xff\xd9"
    exif = exif_with_previews(preview)
    if deep:
        (tmp_path / "photo.png").write_bytes(deep_png.encode(noise(3, 65536), exif=exif))
    else:
        Image.fromarray(noise(3)).save(tmp_path / "photo.png", exif=exif)
    assert preview in (tmp_path / "photo.png").read_bytes()
    holes = np.zeros(noise(1).shape[:2], np.uint8)
    holes[2:12, 3:9] = 255
    Image.fromarray(holes).save(tmp_path / "mask.png")
    for ending in ("png", "tif") if deep else ("png", "webp", "tif"):
        out = tmp_path / f"out.{ending}"
        fill_photo(Painter(), tmp_path / "photo.png", tmp_path / "mask.png", out)

        assert preview not in out.read_bytes()
    with opened(tmp_path / "out.png") as written:
        assert written.getexif()[0x010F] == "Maker"
        assert written.getexif().get_ifd(0x8769)[0xA433] == "Lens"


def test_exif_that_cannot_be_read_does_not_come_along(tmp_path):
    Image.fromarray(noise(3)).save(tmp_path / "photo.png", exif=b"Exif\0\0II*\0\xff\xff\0\0 what may hold a preview")
    written = read_photo(tmp_path / "photo.png")
    assert b"preview" not in (written.kept["exif"] or b"")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_kept_and_the_mask_is_meant_as_displayed(tmp_path, orientation):
    stored = noise(3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    displayed = ImageOps.exif_transpose(opened(tmp_path / "photo.png"))
    holes = np.zeros(displayed.size[::-1], np.uint8)
    holes[2:12, 3:9] = 255
    Image.fromarray(holes).save(tmp_path / "mask.png")
    for ending in ("png", "webp", "tif"):
        fill_photo(Painter(), tmp_path / "photo.png", tmp_path / "mask.png", tmp_path / f"out.{ending}")

        written = opened(tmp_path / f"out.{ending}")
        assert written.getexif()[0x0112] == orientation
        assert written.getexif()[0x010F] == "Maker"
        if ending != "tif":  # Pillow turns TIFF as it reads
            assert written.size == SIZE
        upright = np.asarray(ImageOps.exif_transpose(written))
        assert np.array_equal(upright[holes == 0], np.asarray(displayed)[holes == 0])
        assert (upright[holes == 255] == [255, 128, 0]).all()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_deep_tiff_that_was_turned_becomes_a_png_that_is_shown_upright(tmp_path, orientation, channels):
    pixels = noise(channels, 65536)  # 40 rows of 60
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "photo.tif", pixels, photometric="rgb", extratags=[tag],
                     extrasamples=["unassalpha"] if channels == 4 else None)  # fmt: skip
    photo = read_photo(tmp_path / "photo.tif")
    holes = np.zeros(photo.pixels.shape[:2], np.uint8)
    holes[5:9, 4:8] = 255
    Image.fromarray(holes).save(tmp_path / "mask.png")

    fill_photo(Painter(), tmp_path / "photo.tif", tmp_path / "mask.png", tmp_path / "out.png")

    assert np.array_equal(read_photo(tmp_path / "out.png").pixels[holes == 0], photo.pixels[holes == 0])
    with Image.open(tmp_path / "out.png") as out:
        assert ImageOps.exif_transpose(out).size == photo.size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"photometric": "separated"}, "SEPARATED of 4 × 16 bits that would lose digits"),
        ({"photometric": "rgb", "dtype": np.int16}, "RGB of 3 × 16 bits that would lose digits"),
        ({"photometric": "rgb", "dtype": np.float32}, "RGB of 3 × 32 bits that would lose digits"),
        ({"photometric": "rgb", "pages": 2}, "has 2 pages; a photo is one still image"),
    ],
)
def test_a_deep_tiff_whose_digits_cannot_be_kept_is_refused(tmp_path, options, message):
    settings = {"dtype": np.uint16, "pages": 1} | options
    shape = (settings["pages"], 8, 8, 4 if settings["photometric"] == "separated" else 3)
    pixels = np.ones(shape, settings["dtype"])
    with tifffile.TiffWriter(tmp_path / "photo.tif") as file:
        for page in pixels:
            file.write(page, photometric=settings["photometric"], contiguous=False, metadata=None)
    with pytest.raises(DataError, match=message):
        read_photo(tmp_path / "photo.tif")


def test_a_preview_beside_a_deep_photo_is_no_second_photo(tmp_path):
    pixels = noise(3, 65536)
    with tifffile.TiffWriter(tmp_path / "photo.tif") as file:
        file.write(pixels, photometric="rgb", metadata=None)
        file.write(pixels[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
    assert np.array_equal(read_photo(tmp_path / "photo.tif").pixels, pixels)


@pytest.mark.parametrize("levels", [256, 65536])
def test_a_big_tiff_is_read_whole_and_written_upright(tmp_path, mask, levels):
    pixels, tag = noise(3, levels), (274, "H", 1, 6, True)
    tifffile.imwrite(tmp_path / "photo.tif", pixels, photometric="rgb", bigtiff=True, extratags=[tag])
    photo = read_photo(tmp_path / "photo.tif")
    assert np.array_equal(photo.pixels, np.rot90(pixels, -1))
    for ending in ("tif", "png"):
        write_photo(photo, tmp_path / f"again.{ending}")
        assert np.array_equal(read_photo(tmp_path / f"again.{ending}").pixels, photo.pixels)


def test_a_tiff_cut_to_its_first_bytes_is_refused_in_one_line(tmp_path):
    (tmp_path / "photo.tif").write_bytes(b"II*\0\x08\0\0\0")
    with pytest.raises(DataError, match="not a readable image"):
        read_photo(tmp_path / "photo.tif")


def test_a_photo_longer_than_a_format_allows_is_refused_before_it_is_filled(tmp_path):
    Image.new("RGB", (16_400, 8)).save(tmp_path / "photo.png")
    Image.new("L", (16_400, 8)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="WEBP holds up to 16383 pixels a side, the photo is 16400×8; write out.png"):
        fill_photo(None, tmp_path / "photo.png", tmp_path / "mask.png", tmp_path / "out.webp")


def test_a_mask_made_for_the_stored_rows_is_turned_with_them(tmp_path, mask):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(3)).save(tmp_path / "photo.png", exif=exif)
    fill_photo(Painter(), tmp_path / "photo.png", mask, tmp_path / "out.png")
    assert np.array_equal(known(np.asarray(opened(tmp_path / "out.png"))), known(noise(3)))


def test_a_palette_becomes_the_colours_it_stands_for(tmp_path, mask):
    photo = Image.fromarray(noise(3)).quantize(16)
    photo.save(tmp_path / "photo.png")
    fill_photo(Painter(), tmp_path / "photo.png", mask, tmp_path / "out.png")
    written = opened(tmp_path / "out.png")
    assert written.mode == "RGB"
    assert np.array_equal(known(np.asarray(written)), known(np.asarray(photo.convert("RGB"))))


def test_a_transparent_palette_keeps_its_transparency(tmp_path, mask):
    photo = Image.fromarray(noise(3)).quantize(16)
    photo.save(tmp_path / "photo.png", transparency=3)
    fill_photo(Painter(), tmp_path / "photo.png", mask, tmp_path / "out.png")
    expected = np.asarray(opened(tmp_path / "photo.png").convert("RGBA"))
    assert np.array_equal(known(np.asarray(opened(tmp_path / "out.png"))), known(expected))


def test_cmyk_stays_cmyk_in_tiff_and_becomes_rgb_in_png(tmp_path, mask):
    pixels = noise(4)
    Image.frombytes("CMYK", SIZE, pixels.tobytes()).save(tmp_path / "photo.tif")
    fill_photo(Painter(), tmp_path / "photo.tif", mask, tmp_path / "out.tif")
    fill_photo(Painter(), tmp_path / "photo.tif", mask, tmp_path / "out.png")

    in_tiff, in_png = opened(tmp_path / "out.tif"), opened(tmp_path / "out.png")
    assert (in_tiff.mode, in_png.mode) == ("CMYK", "RGB")
    assert np.array_equal(known(np.asarray(in_tiff)), known(pixels))
    expected = np.asarray(opened(tmp_path / "photo.tif").convert("RGB"))
    assert np.array_equal(known(np.asarray(in_png)), known(expected))
    assert np.asarray(in_tiff.convert("RGB"))[15, 15].tolist() == [255, 128, 0]


def test_black_and_white_stays_black_and_white(tmp_path, mask):
    photo = Image.fromarray(noise(1)[..., 0] > 127)
    photo.save(tmp_path / "photo.png")
    fill_photo(Painter(), tmp_path / "photo.png", mask, tmp_path / "out.png")
    written = opened(tmp_path / "out.png")
    assert written.mode == "1"
    assert np.array_equal(known(np.asarray(written)), known(np.asarray(photo)))
    assert np.asarray(written)[HOLE].all()  # 0.5925 is nearer white


def test_the_colour_profile_is_kept(tmp_path, mask):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise(3)).save(tmp_path / "photo.png", icc_profile=profile)
    fill_photo(Painter(), tmp_path / "photo.png", mask, tmp_path / "out.tif")
    assert opened(tmp_path / "out.tif").info["icc_profile"] == profile


def test_a_black_hole_is_asked_for(tmp_path, mask):
    inverted = tmp_path / "inverted.png"
    ImageOps.invert(opened(mask)).save(inverted)
    Image.fromarray(noise(3)).save(tmp_path / "photo.png")
    fill_photo(Painter(), tmp_path / "photo.png", inverted, tmp_path / "out.png", hole="black")
    assert np.array_equal(known(np.asarray(opened(tmp_path / "out.png"))), known(noise(3)))


def test_jpeg_is_written_only_when_wanted(tmp_path, mask):
    Image.fromarray(noise(3)).save(tmp_path / "photo.jpg")
    with pytest.raises(DataError, match=r"JPEG cannot keep known pixels bit for bit; write out.png, or .* --lossy"):
        fill_photo(Painter(), tmp_path / "photo.jpg", mask, tmp_path / "out.jpg")
    assert not (tmp_path / "out.jpg").exists()
    fill_photo(Painter(), tmp_path / "photo.jpg", mask, tmp_path / "out.jpg", lossy=True)
    assert opened(tmp_path / "out.jpg").format == "JPEG"


def refused(tmp_path, photo="photo.png", mask="mask.png", out="out.png", **options):
    with pytest.raises(DataError) as caught:
        fill_photo(Painter(), tmp_path / photo, tmp_path / mask, tmp_path / out, **options)
    assert not (tmp_path / out).exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_filled_is_refused_in_one_line(tmp_path, mask):
    Image.fromarray(noise(3)).save(tmp_path / "photo.png")
    Image.fromarray(noise(4)).save(tmp_path / "clear.png")
    Image.new("L", (50, 36), 255).save(tmp_path / "small.png")
    Image.new("L", SIZE, 0).save(tmp_path / "nothing.png")
    Image.new("L", SIZE, 255).save(tmp_path / "everything.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "photo.png").read_bytes()[:600])
    (tmp_path / "text.png").write_text("hello")
    frames = [Image.fromarray(noise(3)), Image.new("RGB", SIZE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(noise(3)).convert("LAB").save(tmp_path / "lab.tif")

    assert "the mask is 50x36, the photo" in refused(tmp_path, mask="small.png")
    assert "covers nothing; is its hole black? Then pass --hole black" in refused(tmp_path, mask="nothing.png")
    assert "covers the whole photo" in refused(tmp_path, mask="everything.png")
    assert "cut.png: not a readable image" in refused(tmp_path, photo="cut.png")
    assert "text.png: not a readable image" in refused(tmp_path, photo="text.png")
    assert "absent.png: cannot be read (No such file" in refused(tmp_path, photo="absent.png")
    assert "has 2 frames" in refused(tmp_path, photo="moving.gif")
    assert "mode LAB cannot be filled" in refused(tmp_path, photo="lab.tif")
    assert "unknown ending .xyz" in refused(tmp_path, out="out.xyz")
    assert "BMP has no alpha channel" in refused(tmp_path, photo="clear.png", out="out.bmp")
    assert "cannot be written" in refused(tmp_path, out="nowhere/out.png")
    assert sorted(p.name for p in tmp_path.iterdir() if "part" in p.name) == []


@pytest.mark.slow
def test_memory_for_a_very_large_photo_is_bounded(tmp_path):
    """9000×6000 pixels are 162 MB; filling them holds the photo, its copy and the mask, and a strip of tiles."""
    photo = np.zeros((6000, 9000, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    holes = np.zeros((6000, 9000), np.uint8)
    holes[100:5900:600, 100:8900] = 255
    Image.fromarray(holes).save(tmp_path / "mask.png")
    code = (
        "import resource, sys; from inpaint.inference import fill_photo; from tests.inference.painters import Painter\n"
        "import torch, PIL.Image, torchvision\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"fill_photo(Painter(), *({str(tmp_path)!r} + n for n in ('/photo.png', '/mask.png', '/out.png')))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 1500  # MiB


def test_a_photo_and_mask_beyond_pillows_limit_are_no_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    Image.new("RGB", (32, 32), "grey").save(tmp_path / "photo.png")
    hole = Image.new("L", (32, 32))
    hole.paste(255, (8, 8, 16, 16))
    hole.save(tmp_path / "mask.png")
    filled = fill_photo(Painter(), tmp_path / "photo.png", tmp_path / "mask.png", tmp_path / "out.png")
    assert filled.hole_ratio == 64 / 1024
    assert Image.MAX_IMAGE_PIXELS == 100
