"""Images that another program filled: matched by name, checked, scored like any other fill."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from inpaint import storage
from inpaint.config.evaluation import EvaluationRequest
from inpaint.errors import DataError, EvaluationError
from inpaint.evaluation import finished as finished_images
from inpaint.evaluation.collection import results_of
from inpaint.evaluation.gallery import gallery
from inpaint.evaluation.job import prepare, run_job
from inpaint.evaluation.pictures import HEAD_BYTES, decode, header_size, open_pictures
from tests.data.test_shards import write
from tests.evaluation.scenes import photographs

ROWS = (4, 10, 16, 22)  # of 48: 8, 21, 33 and 46 %


@pytest.fixture
def folders(tmp_path):
    """Four photographs whose upper rows were filled with grey."""
    photos = photographs(4, size=48)
    for kind in ("filled", "truth", "masks"):
        (tmp_path / kind).mkdir()
    for name, rows in zip(photos.ids, ROWS, strict=True):
        truth = photos.read(name)
        mask = np.zeros((48, 48), np.uint8)
        mask[:rows] = 255
        filled = truth.copy()
        filled[:rows] = 128
        for kind, pixels in (("filled", filled), ("truth", truth), ("masks", mask)):
            Image.fromarray(pixels).save(tmp_path / kind / f"{name}.png")
    return tmp_path


def request(folders, hole="white", **values):
    finished = {"images": folders / "filled", "truth": folders / "truth", "masks": folders / "masks"}
    finished = {name: str(path) for name, path in finished.items()} | {"hole": hole}
    return EvaluationRequest(subject="theirs", finished=finished, root=str(folders / "root"), device="cpu", **values)


def test_finished_images_are_scored_in_the_bin_of_their_own_mask(folders):
    _, result = run_job(request(folders))
    table = result.tables["one-shot"]["inp-v1"]
    assert {row: table[row]["psnr"].n for row in table} == {
        "1-10": 1, "20-30": 1, "30-40": 1, "40-50": 1, "20-40": 2, "40-60": 1, "all": 4,
    }  # fmt: skip
    truth = np.asarray(Image.open(folders / "truth" / "photo-01.png")).astype(float)[:10]
    expected = 10 * np.log10(255**2 * 48 / 10 / ((truth - 128) ** 2).mean())
    assert table["20-30"]["psnr"].mean == pytest.approx(expected, abs=1e-4)


def test_all_scores_what_it_can_and_says_why_the_rest_is_left_out(folders):
    _, result = run_job(request(folders, protocols=("all",), limit=4))
    assert result.skipped == {"ce-128": "needs the centred square of half the side; these are others"}
    assert len(result.tables["one-shot"]) == 11
    with pytest.raises(EvaluationError, match="ce-128: needs the centred square"):
        run_job(request(folders, protocols=("ce-128",)))


def shrink(folders):
    Image.open(folders / "truth" / "photo-00.png").resize((24, 24)).save(folders / "filled" / "photo-00.png")


def lose(folders):
    (folders / "masks" / "photo-02.png").unlink()


def add(folders):
    Image.new("RGB", (48, 48)).save(folders / "filled" / "photo-09.png")


def stretch(folders):
    Image.new("L", (48, 30)).save(folders / "masks" / "photo-02.png")


def empty(folders):
    Image.new("L", (48, 48)).save(folders / "masks" / "photo-02.png")


def double(folders):
    Image.new("L", (48, 48)).save(folders / "masks" / "photo-02.bmp")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shrink, "photo-00: the filled image is 24×24 and the truth 48×48"),
        (lose, "masks has 3 images and .*filled 4; photo-02 of .*filled is not in masks"),
        (add, "truth has 4 images and .*filled 5; photo-09"),
        (stretch, "photo-02: the mask is 48×30 and the truth 48×48"),
        (double, "masks: 5 masks share 4 names; keep one file per name"),
        (empty, "masks/photo-02.png: no hole with --hole white; is the polarity right"),
    ],
)
def test_sets_that_do_not_match_are_refused_and_nothing_is_written(folders, damage, message):
    damage(folders)
    with pytest.raises(EvaluationError, match=message):
        run_job(request(folders))
    assert not [path for path in folders.joinpath("root").rglob("*") if path.is_file()]


def test_the_wrong_polarity_is_noticed_and_grey_masks_are_refused(folders):
    with pytest.raises(EvaluationError, match="--hole black the median hole is 73% of an image; is it --hole white"):
        run_job(request(folders, hole="black"))
    Image.fromarray(np.full((48, 48), 127, np.uint8)).save(folders / "masks" / "photo-02.png")
    with pytest.raises((EvaluationError, DataError), match="127"):
        run_job(request(folders))


def test_settings_of_filling_have_no_effect_here_and_are_refused(folders):
    with pytest.raises(ValueError, match="progressive has no effect on finished images"):
        request(folders, progressive=True)
    with pytest.raises(ValueError, match="size has no effect on finished images"):
        request(folders, size=64)


def test_a_mask_of_the_other_polarity_among_right_ones_is_found_by_where_the_fill_differs(folders):
    mask = folders / "masks" / "photo-02.png"
    Image.fromarray(255 - np.asarray(Image.open(mask))).save(mask)
    with pytest.raises(EvaluationError, match=r"photo-02.png: with --hole white .* outside the hole and 0.0 inside"):
        run_job(request(folders))
    assert not (folders / "root").exists()


def noise(kind, width, height, *, turned=False):
    """A file of more than 64 KiB; turned, it says so behind its pixels."""
    rng, file = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file, kind, quality=95)
    data = file.getvalue()
    if turned:
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn
        body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        data = data[:-12] + chunk + data[-12:]
    assert len(data) > 2 * HEAD_BYTES
    return data


@pytest.mark.parametrize(
    ("data", "size", "all_of_it"),
    [
        (noise("JPEG", 400, 300), (300, 400), False),
        (noise("PNG", 300, 300), (300, 300), False),
        (noise("PNG", 400, 300), (300, 400), True),
        (noise("PNG", 400, 300, turned=True), (400, 300), True),
        (noise("TIFF", 400, 300), (300, 400), True),
    ],
)
def test_the_size_of_a_picture_is_read_from_its_first_bytes_where_they_tell_it(data, size, all_of_it):
    asked = []

    def read(most):
        asked.append(most)
        return data[:most]

    assert header_size(read, name="x") == size
    assert decode(data, name="x").shape[:2] == size
    assert asked == [HEAD_BYTES, None] if all_of_it else [HEAD_BYTES]


@pytest.mark.parametrize("kind", ["folder", "tar", "shards"])
def test_sizes_are_asked_of_a_store_in_ranges(tmp_path, monkeypatch, kind):
    source = tmp_path / "source"
    source.mkdir()
    for i in range(3):
        (source / f"{i}.jpg").write_bytes(noise("JPEG", 400, 300))
    place = {"folder": source, "tar": tmp_path / "source.tar", "shards": tmp_path / "set"}[kind]
    if kind == "tar":
        with tarfile.open(place, "w") as tar:
            tar.add(source, arcname=".")
    if kind == "shards":
        write(source, place, keep_original=True)
    pictures = open_pictures(str(place))
    lengths, read_range = [], storage.read_range
    monkeypatch.setattr(storage, "read_bytes", lambda url: pytest.fail(f"{url} was read whole"))
    monkeypatch.setattr(storage, "read_range", lambda *a: lengths.append(a[2]) or read_range(*a))
    assert [pictures.size(name) for name in pictures.ids] == [(300, 400)] * 3
    assert lengths == [HEAD_BYTES] * 3


def test_masks_of_finished_images_are_kept_as_bits(folders, monkeypatch):
    """A worker that holds 36,500 of them at 512 pixels needs 1.2 GB and not 9.6."""
    kept, packed_set = [], finished_images.packed_set
    monkeypatch.setattr(
        finished_images, "packed_set", lambda name, kind, masks: kept.append(masks) or packed_set(name, kind, masks)
    )
    job = prepare(request(folders))
    (masks,) = kept
    assert sum(mask.bits.nbytes for mask in masks.values()) == 4 * 48 * 48 / 8
    holes = job.plan.shares["inp-v1"].holes
    for name, rows in zip(holes.names, ROWS, strict=True):
        expected = np.zeros((48, 48), np.uint8)
        expected[:rows] = 1
        assert np.array_equal(holes.read(name), expected)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("filled", "filled: the files changed after they were scored"), ("masks", "masks: the masks are not the ones")],
)
def test_pictures_of_other_fills_or_masks_than_were_scored_are_not_shown(folders, kind, message):
    job, _ = run_job(request(folders))
    (found,) = results_of(job.url)
    shown = gallery(found, subject="one-shot")
    assert [item.image for item in shown] == [f"photo-0{i}" for i in range(4)]
    assert all((item.filled[:rows] == 128).all() for item, rows in zip(shown, ROWS, strict=True))
    place = folders / kind / "photo-01.png"
    pixels = np.asarray(Image.open(place)).copy()
    pixels[:12] = 255
    Image.fromarray(pixels).save(place)
    with pytest.raises(EvaluationError, match=message):
        gallery(found, subject="one-shot")


def test_a_device_that_is_none_is_refused(folders):
    with pytest.raises(EvaluationError, match="--device tpu: expected cpu or cuda"):
        run_job(request(folders).model_copy(update={"device": "tpu"}))
