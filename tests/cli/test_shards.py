import json

import pytest
from typer.testing import CliRunner

from inpaint.cli import app
from inpaint.cli.shards import parse_bytes
from inpaint.data.index import load_index
from inpaint.errors import ConfigError, DataError
from tests.data.gallery import REFUSED, save, scene, write_gallery


def run(*words, fails=None):
    result = CliRunner().invoke(app, ["shards", *map(str, words)])
    if fails is not None:
        assert isinstance(result.exception, fails[0])
        assert fails[1] in str(result.exception)
    elif result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(9):
        (folder / f"{i}.jpg").write_bytes(save(scene(seed=i), quality=90))
    return folder


def test_write_verify_list_and_overlap_follow_one_another(tmp_path, photos):
    told = run("write", photos, tmp_path / "set", "--samples", 4, "--short-side", 24, "--workers", 1)
    assert "9 samples in 3 shards" in told
    assert "0 images refused" in told
    assert "9 samples" in run("verify", tmp_path / "set", "--decode")
    assert "photos" in run("list", tmp_path)
    assert "9 pairs, 9 of them the same bytes" in run("overlap", tmp_path / "set", tmp_path / "set")


def test_json_is_all_that_is_on_stdout(tmp_path, photos):
    report = json.loads(run("write", photos, tmp_path / "set", "--workers", 1, "--json"))
    assert (report["samples"], report["shards"], report["refused"]) == (9, 1, [])
    verdict = json.loads(run("verify", tmp_path / "set", "--json"))
    assert verdict["whole"] is True
    assert [s["samples"] for s in json.loads(run("list", tmp_path, "--json"))] == [9]
    assert json.loads(run("overlap", tmp_path / "set", tmp_path / "set", "--json"))["exact"] == 9
    index = json.loads(run("index", tmp_path / "set", "--json"))
    assert index["samples"] == 9


def test_every_refused_image_is_printed_with_its_reason(tmp_path):
    write_gallery(tmp_path / "gallery")
    told = run("write", tmp_path / "gallery", tmp_path / "set", "--workers", 1)
    for name in REFUSED:
        assert f"  {name}: " in told


def test_verify_fails_on_a_damaged_set_and_names_the_damage(tmp_path, photos):
    run("write", photos, tmp_path / "set", "--workers", 1)
    shard = tmp_path / "set" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:-10240])
    told = run("verify", tmp_path / "set", fails=(DataError, "bring back what is named above"))
    assert "000000.tar: " in told


def test_every_option_reaches_the_set(tmp_path, photos):
    (tmp_path / "list.txt").write_text("3\n5\n1\n")
    run(
        "write", photos, tmp_path / "set", "--list", tmp_path / "list.txt", "--crop", 20, "--short-side", 16,
        "--quality", 50, "--shuffle", 1, "--limit", 2, "--bytes", "1MB", "--max-pixels", 2000, "--workers", 1,
    )  # fmt: skip
    index = load_index(str(tmp_path / "set"))
    options, chosen = index.provenance["options"], index.provenance["chosen"]
    assert (options["center_crop"], options["short_side"], options["quality"]) == (20, 16, 50)
    assert (options["shard_bytes"], options["samples"], options["max_pixels"]) == (1_000_000, None, 2000)
    assert (chosen["shuffle"], chosen["limit"]) == (1, 2)
    assert set(index.keys.to_pylist()) < {"1", "3", "5"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dataset", "places2"], "belong together"),
        (["--split", "train"], "belong together"),
        (["--dataset", "place2", "--split", "train"], "did you mean places2"),
        (["--keep-original", "--quality", "90"], "Give only one"),
        (["--keep-original", "--short-side", "64"], "Give only one"),
        (["--samples", "5", "--bytes", "1MB"], "exactly one"),
        (["--bytes", "large"], "expected for instance 64MB"),
        (["--bytes", "1e400"], "expected for instance 64MB"),
    ],
)
def test_options_that_contradict_are_refused_before_anything_is_written(tmp_path, photos, words, says):
    run("write", photos, tmp_path / "set", *words, fails=(ConfigError, says))
    assert not (tmp_path / "set").exists()


def test_an_empty_destination_is_not_the_working_directory(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("write", photos, "", fails=(ConfigError, "DST is empty; give a folder"))
    assert list(tmp_path.iterdir()) == [photos]


def test_sizes_are_read_with_their_unit():
    assert [parse_bytes(text) for text in ("64MB", "1 GiB", "1.5kb", "12b", "700")] == [
        64_000_000, 1 << 30, 1500, 12, 700,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="12 parsecs is not a size"):
        parse_bytes("12 parsecs")
