from __future__ import annotations

from functools import partial

from PIL import Image

from inpaint.data.samples import ShardOptions
from inpaint.data.shards import write_shards
from inpaint.data.workers import in_processes
from inpaint.evaluation.leaks import check_leaks
from tests.evaluation.scenes import photographs


def shards(place, photos, names):
    folder = place.with_suffix(".photos")
    folder.mkdir()
    for name in names:
        Image.fromarray(photos.read(name)).save(folder / f"{name}.png")
    write_shards(str(folder), str(place), options=ShardOptions(samples=8), run=partial(in_processes, workers=1))
    return str(place)


def check(pairs):
    looked = []
    return check_leaks(pairs, planned=looked.append, progress=lambda images: None), looked


def test_test_images_in_the_training_set_are_found_once_and_remembered(tmp_path):
    photos = photographs(6, size=64)
    train = shards(tmp_path / "train", photos, photos.ids[:4])
    leaking = shards(tmp_path / "leaking", photos, photos.ids[3:])
    clean = shards(tmp_path / "clean", photos, photos.ids[4:])
    found, looked = check([(train, leaking), (train, clean)])
    assert set(found.found) == {(train, leaking)}
    assert found.found[train, leaking].startswith(f"1 of 3 images of {leaking} are in {train}")
    assert found.clean == {(train, clean)}
    assert len(looked) == 2
    again, looked = check([(train, leaking), (train, clean)])
    assert again == found
    assert looked == []  # both answers were kept


def test_a_set_that_cannot_be_read_is_said_to_be_unchecked(tmp_path):
    found, _ = check([("s3-is-far-away", str(tmp_path))])
    assert "leaks not checked: s3-is-far-away is not a shard set" in next(iter(found.unknown.values()))
