import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from inpaint.config.holes import FreeFormHoles, MaskSetHoles
from inpaint.errors import DataError
from inpaint.masks import load_mask_set, make_holes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INPAINT_CACHE", str(tmp_path / "cache"))


def write_set(folder, ratios, *, size=64, hole="white", start=0):
    """A mask file per wanted bin; as with real strokes, most of the image's border is known."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, ratio in enumerate(ratios):
        draw = make_holes(FreeFormHoles(), 3 * size // 4, ratio=tuple(r / 0.5625 for r in ratio))  # 0.5625 = 0.75²
        rng = np.random.default_rng(i)
        left, top = rng.integers(0, size // 4, 2)
        mask = np.pad(draw(rng), ((top, size // 4 - top), (left, size // 4 - left))) * 255
        Image.fromarray(mask if hole == "white" else 255 - mask).save(folder / f"{start + i:03d}.png")
    return folder


def test_a_set_gives_exact_ratios_after_resizing(tmp_path):
    masks = load_mask_set(str(write_set(tmp_path / "m", [(0.1, 0.2)] * 3)), hole="white", threshold="nearest", size=32)
    assert len(masks) == 3
    assert [masks[i].mean() for i in range(3)] == masks.ratios.tolist()
    assert masks[0].shape == (32, 32)


def test_only_masks_of_the_bin_are_drawn_each_as_often_as_another(tmp_path):
    folder = write_set(tmp_path / "m", [(0.01, 0.1), (0.1, 0.2), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4)])
    draw = make_holes(MaskSetHoles(url=str(folder), hole="white", ratio=(0.1, 0.2)), 64)
    rng = np.random.default_rng(0)
    drawn = [draw(rng).tobytes() for _ in range(100)]
    assert len(set(drawn)) == 2
    assert 30 < drawn.count(drawn[0]) < 70


def test_rotation_turns_the_mask_by_quarters_and_keeps_its_ratio(tmp_path):
    folder = write_set(tmp_path / "m", [(0.1, 0.2)])
    still = make_holes(MaskSetHoles(url=str(folder), hole="white"), 64)(np.random.default_rng(0))
    draw = make_holes(MaskSetHoles(url=str(folder), hole="white", rotate=True), 64)
    drawn = {draw(np.random.default_rng(seed)).tobytes() for seed in range(40)}
    assert drawn == {np.rot90(still, turns).tobytes() for turns in range(4)}


def test_folder_zip_tar_and_shards_hold_the_same_set(tmp_path):
    folder = write_set(tmp_path / "m", [(0.1, 0.2), (0.2, 0.3)])
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.write(folder / "000.png", "000.png")
        file.write(folder / "001.png", "001.png")
    (tmp_path / "shards").mkdir()
    for place in (tmp_path / "m.tar", tmp_path / "shards" / "000000.tar"):
        with tarfile.open(place, "w") as file:
            file.add(folder / "000.png", "000.png")
            file.add(folder / "001.png", "001.png")
    sets = [
        load_mask_set(str(tmp_path / name), hole="white", threshold="any_hole", size=32)
        for name in ("m", "m.zip", "m.tar", "shards")
    ]
    assert len({masks.sha256 for masks in sets}) == 1


def test_the_set_is_kept_for_the_next_call_until_its_files_change(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "m", [(0.1, 0.2), (0.2, 0.3)])
    first = load_mask_set(str(folder), hole="white", threshold="nearest", size=32)
    with monkeypatch.context() as patch:
        patch.setattr("inpaint.masks.sets.load_mask", lambda *a, **k: pytest.fail("read again"))
        assert load_mask_set(str(folder), hole="white", threshold="nearest", size=32).sha256 == first.sha256
    write_set(tmp_path / "m", [(0.3, 0.4)])
    assert load_mask_set(str(folder), hole="white", threshold="nearest", size=32).sha256 != first.sha256


def test_a_damaged_cache_is_read_anew(tmp_path):
    folder = write_set(tmp_path / "m", [(0.1, 0.2)])
    first = load_mask_set(str(folder), hole="white", threshold="nearest", size=32)
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[:200])
    assert load_mask_set(str(folder), hole="white", threshold="nearest", size=32).sha256 == first.sha256


@pytest.mark.parametrize("hole", ["white", "black"])
@pytest.mark.parametrize("ratio", [(0.05, 0.15), (0.2, 0.3), (0.3, 0.4), (0.45, 0.55)], ids=str)
def test_the_opposite_polarity_contradicts_the_masks(tmp_path, hole, ratio):
    folder = write_set(tmp_path / "m", [ratio] * 8, hole=hole)
    masks = load_mask_set(str(folder), hole=hole, threshold="nearest", size=64)
    assert ((masks.ratios > ratio[0]) & (masks.ratios <= ratio[1])).all()
    opposite = "black" if hole == "white" else "white"
    with pytest.raises(DataError, match=f"hole: {opposite} contradicts these masks.*Set hole: {hole}"):
        load_mask_set(str(folder), hole=opposite, threshold="nearest", size=64)


def test_large_holes_of_the_declared_polarity_are_believed_when_the_wanted_bin_says_so(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    for i in range(6):  # known middle, hole around it: as in outpainting
        mask = np.full((64, 64), 255, np.uint8)
        mask[20 - i : 44 + i, 20:44] = 0
        Image.fromarray(mask).save(folder / f"{i}.png")
    with pytest.raises(DataError, match="a ratio that only they have"):
        make_holes(MaskSetHoles(url=str(folder), hole="white"), 64)
    draw = make_holes(MaskSetHoles(url=str(folder), hole="white", ratio=(0.5, 0.99)), 64)
    assert draw(np.random.default_rng(0)).mean() > 0.7


def test_an_empty_bin_does_not_put_a_right_polarity_in_doubt(tmp_path):
    folder = write_set(tmp_path / "m", [(0.02, 0.04)] * 8)  # the other way round they would fill the bin
    with pytest.raises(DataError, match=r"none of 8 masks has a hole ratio in \(0.95, 0.99\]"):
        make_holes(MaskSetHoles(url=str(folder), hole="white", ratio=(0.95, 0.99)), 64)


def test_a_bin_without_masks_says_where_the_masks_are(tmp_path):
    folder = write_set(tmp_path / "m", [(0.1, 0.2)] * 3)
    with pytest.raises(DataError, match=r"none of 3 masks has a hole ratio in \(0\.5, 0\.6\]"):
        make_holes(MaskSetHoles(url=str(folder), hole="white", ratio=(0.5, 0.6)), 64)


def test_one_file_that_is_no_mask_stops_the_set_and_is_named(tmp_path):
    folder = write_set(tmp_path / "m", [(0.1, 0.2)] * 3)
    Image.fromarray(np.full((64, 64), 127, np.uint8)).save(folder / "grey.png")
    with pytest.raises(DataError, match=r"grey\.png: has values 127"):
        load_mask_set(str(folder), hole="white", threshold="nearest", size=32)


def test_a_place_without_masks_says_what_is_expected(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no mask")
    shutil.copy(write_set(tmp_path / "m", [(0.1, 0.2)]) / "000.png", tmp_path / "text" / "._000.png")
    for name in ("empty", "text", "nowhere"):
        with pytest.raises(DataError, match=name):
            load_mask_set(str(tmp_path / name), hole="white", threshold="nearest", size=32)
