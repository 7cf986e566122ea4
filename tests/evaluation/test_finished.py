"""Images that another program filled: matched by name, checked, scored like any other fill."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from inpaint.config.evaluation import EvaluationRequest
from inpaint.errors import DataError, EvaluationError
from inpaint.evaluation.job import run_job
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


def test_a_device_that_is_none_is_refused(folders):
    with pytest.raises(EvaluationError, match="--device tpu: expected cpu or cuda"):
        run_job(request(folders).model_copy(update={"device": "tpu"}))
