"""`inpaint fill` on a checkpoint of a tiny run: one photo, folders, and what is refused in one line."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from inpaint import cli
from inpaint.checkpoints import CheckpointWriter
from inpaint.config import load_run
from inpaint.errors import ShapeError
from inpaint.methods import build_method
from inpaint.methods.isnet import ISNet
from inpaint.training import Trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    """A store with one run, `one`, that has one checkpoint."""
    root = str(tmp_path_factory.mktemp("store"))
    run = load_run("tiny", name="one", root=root, assignments=["method.width=4", "method.discriminator_width=4"])
    torch.manual_seed(0)
    writer = CheckpointWriter(run)
    writer.save(1, Trainer(build_method(run), run.training, seed=0).state_dict(), {})
    writer.close()
    return root


@pytest.fixture
def folder(tmp_path):
    """Photos a.png and b.jpg with masks of their names, and a single mask for both."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    holes = np.zeros((40, 60), np.uint8)
    holes[10:20, 10:30] = 255
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    Image.fromarray(pixels).save(tmp_path / "photos" / "b.jpg")
    for name in ("masks/a", "masks/b", "mask"):
        Image.fromarray(holes).save(tmp_path / f"{name}.png")
    return tmp_path


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["inpaint", *(str(word) for word in words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    shown = capsys.readouterr()
    return left.value.code, shown.out, shown.err


@pytest.mark.parametrize("options", [[], ["--progressive"], ["--bf16"]])
def test_fills_one_photo_from_a_run(monkeypatch, capsys, root, folder, options):
    words = ["fill", folder / "photos/a.png", folder / "mask.png", "-o", folder / "out.png", "--run", "one"]
    code, out, _ = call(monkeypatch, capsys, *words, "--root", root, "--device", "cpu", "--json", *options)
    assert code == 0
    assert json.loads(out)["hole_ratio"] == pytest.approx(200 / 2400)
    before, after = (np.asarray(Image.open(path)) for path in (folder / "photos/a.png", folder / "out.png"))
    same = (before == after).all(axis=2)
    same[10:20, 10:30] = True
    assert same.all()
    assert not np.array_equal(before, after)


def test_fills_a_folder_with_masks_matched_by_name(monkeypatch, capsys, root, folder):
    words = ["fill", folder / "photos", folder / "masks", "-o", folder / "out", "--run", f"{root}/runs/one"]
    code, _, err = call(monkeypatch, capsys, *words, "--device", "cpu")
    assert code == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "b.png"]
    assert "a.png: 60x40, 8.3% filled" in err


def test_one_bad_photo_does_not_stop_the_others(monkeypatch, capsys, root, folder):
    (folder / "photos" / "a.png").write_text("no image")
    words = ["fill", folder / "photos", folder / "mask.png", "-o", folder / "out", "--run", "one", "--root", root]
    code, _, err = call(monkeypatch, capsys, *words, "--device", "cpu")
    assert code == 1
    assert [path.name for path in (folder / "out").iterdir()] == ["b.png"]
    assert "1 of 2 photos were not filled" in err


def test_tiles_without_a_known_pixel_are_told(monkeypatch, capsys, root, folder):
    holes = np.zeros((40, 300), np.uint8)
    holes[:, 20:280] = 255
    Image.fromarray(holes).save(folder / "wide.png")
    Image.new("RGB", (300, 40), "teal").save(folder / "photo.png")
    words = ["fill", folder / "photo.png", folder / "wide.png", "-o", folder / "out.png", "--run", "one"]
    for tile, told in ((64, True), (300, False)):
        code, _, err = call(monkeypatch, capsys, *words, "--root", root, "--device", "cpu", "--tile", tile)
        assert code == 0
        assert ("tiles wholly in the hole, drawn without a known pixel" in err) is told


def test_a_photo_that_the_method_refuses_does_not_stop_the_others(monkeypatch, capsys, root, folder):
    refusing = iter([True, False])

    def refuse_first(self, image):
        if next(refusing):
            raise ShapeError("image is 60×40; this method takes others")

    monkeypatch.setattr(ISNet, "check_sides", refuse_first)
    words = ["fill", folder / "photos", folder / "mask.png", "-o", folder / "out", "--run", "one", "--root", root]
    code, _, err = call(monkeypatch, capsys, *words, "--device", "cpu")
    assert code == 1
    assert [path.name for path in (folder / "out").iterdir()] == ["b.png"]
    assert "this method takes others" in err
    assert "1 of 2 photos were not filled" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["photos/a.png", "mask.png", "-o", "out.png"], "fill needs --run RUN or --checkpoint PATH"),
        (["photos/a.png", "mask.png", "-o", "out.png", "--run", "one", "--hole", "grey"], "--hole grey: expected"),
        (["photos/a.png", "mask.png", "-o", "out.jpg", "--run", "one"], "JPEG cannot keep known pixels"),
        (["photos/a.png", "photos", "-o", "out.png", "--run", "two"], "two"),
        (["photos", "photos/a.png", "-o", "mask.png", "--run", "one"], "is a file; a folder of photos needs a folder"),
        (["photos/a.png", "empty", "-o", "out.png", "--run", "one"], "no mask named a"),
        (["empty", "mask.png", "-o", "out", "--run", "one"], "no photos here"),
        (["photos/a.png", "mask.png", "-o", "photos/a.png", "--run", "one"], "a.png would be written over"),
        (["photos", "mask.png", "-o", "photos", "--run", "one"], "a.png would be written over"),
        (["photos/a.png", "mask.png", "-o", "mask.png", "--run", "one"], "mask.png would be written over"),
        (["photos/a.png", "mask.png", "-o", "out.png", "--run", "one", "--device", "cuda:9"], "--device cuda:9"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(monkeypatch, capsys, root, folder, options, message):
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("INPAINT_ROOT", root)
    code, out, err = call(monkeypatch, capsys, "fill", *options)
    assert (code, out) == (1, "")
    assert err.startswith("inpaint: ")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list(folder.glob("out*"))
