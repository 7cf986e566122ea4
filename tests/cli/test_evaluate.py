"""`inpaint evaluate` and `inpaint report` as a user types them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from inpaint.cli import app
from inpaint.errors import EvaluationError
from tests.evaluation.scenes import photographs


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INPAINT_ROOT", str(tmp_path / "root"))
    photos = photographs(3, size=32)
    (tmp_path / "photos").mkdir()
    for name in photos.ids:
        Image.fromarray(photos.read(name)).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path


def typed(*words):
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def test_a_baseline_is_scored_printed_and_compared(place):
    printed = typed("evaluate", "baseline:mean-colour", "photos", "--size", "32")
    assert "inp-v1 (drawn strokes)" in printed.stdout
    assert "at 32 pixels; the protocol says 256" in printed.stdout
    first = json.loads(typed("evaluate", "baseline:mean-colour", "photos", "--size", "32", "--json").stdout)
    second = json.loads(typed("evaluate", "baseline:biharmonic", "photos", "--size", "32", "--json").stdout)
    assert first["tables"]["one-shot"]["inp-v1"]["all"]["psnr"]["n"] == 18
    compared = json.loads(typed("report", "compare", first["url"], second["url"], "--json").stdout)
    gap = compared["comparisons"][0]["a - b"]["all"]["psnr"]
    assert gap["mean"] < 0


def test_what_was_scored_already_is_printed_again_and_the_command_says_so(place):
    words = ("evaluate", "baseline:mean-colour", "photos", "--size", "32", "--json")
    first, second = typed(*words), typed(*words)
    assert second.stdout == first.stdout
    assert "scored before" not in first.stderr
    assert "scored before under the same conditions, and read from there; remove it to score anew" in second.stderr


def test_finished_images_are_scored_from_three_folders(place):
    for kind in ("filled", "masks"):
        (place / kind).mkdir()
    for path in (place / "photos").iterdir():
        pixels = np.asarray(Image.open(path)).copy()
        pixels[:8] = 100
        Image.fromarray(pixels).save(place / "filled" / path.name)
        mask = np.zeros((32, 32), np.uint8)
        mask[:8] = 255
        Image.fromarray(mask).save(place / "masks" / path.name)
    options = ["--images", "filled", "--truth", "photos", "--masks", "masks"]
    result = json.loads(typed("evaluate", *options, "--hole", "white", "--name", "theirs", "--json").stdout)
    assert list(result["tables"]["one-shot"]["inp-v1"]) == ["20-30", "20-40", "all"]
    assert "theirs-" in result["url"]
    with pytest.raises(EvaluationError, match="--hole is missing"):
        typed("evaluate", *options)


def test_masks_of_unknown_polarity_and_options_without_effect_are_refused(place):
    with pytest.raises(EvaluationError, match="photos: files do not say which value is the hole"):
        typed("evaluate", "baseline:telea", "photos", "--masks", "photos")
    with pytest.raises(EvaluationError, match="--hole has no effect without --masks"):
        typed("evaluate", "baseline:telea", "photos", "--hole", "white")
    with pytest.raises(EvaluationError, match="--address has no effect without --workers"):
        typed("evaluate", "baseline:telea", "photos", "--address", "host:1")
    with pytest.raises(EvaluationError, match="give a run, a checkpoint, baseline:NAME"):
        typed("evaluate")
    assert not (place / "root").exists()


def test_published_tables_are_printed_whole_and_as_json(place):
    printed = typed("report", "tables", "isfrnet_table1").stdout
    assert "13.31***" in printed
    assert "23.31" in printed
    tables = json.loads(typed("report", "tables", "--json").stdout)["tables"]
    assert len(tables) == 15


def test_what_is_no_command_of_report_is_the_name_of_a_run(place):
    with pytest.raises(EvaluationError, match="runs/nobody: no run here"):
        typed("report", "nobody")
