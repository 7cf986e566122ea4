"""Epochs after the first come from decoded planes, and nothing but the cost changes."""

import pytest

from inpaint.data.planes import PlanesCache
from tests.data.sets import make_set, open_set, take


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("toy"), [6, 6])


def open_cached(index, folder, **settings):
    return open_set(index, cache_dir=str(folder), **{"decoded_cache_gib": 0.01} | settings)


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys == other.keys
        assert one.image.equal(other.image)
        assert one.mask.equal(other.mask)


def test_batches_are_bit_for_bit_the_same_with_a_cold_a_warm_and_a_shared_cache(toy, tmp_path):
    cold = take(open_cached(toy, tmp_path / "one"), 9)
    stream = open_cached(toy, tmp_path / "one")
    warm = take(stream, 9)

    assert stream.stats()["decoded_hit_share"] == 1
    assert_same(cold, warm)
    ranks = [take(open_cached(toy, tmp_path / "one", rank=rank, world_size=2), 9) for rank in (0, 1)]
    assert [one.keys + other.keys for one, other in zip(*ranks, strict=True)] == [batch.keys for batch in cold]


def test_a_cache_for_a_third_of_the_samples_changes_nothing_but_the_hits(toy, tmp_path):
    places = 4 * (16 * 16 * 3 // 2 + 5)
    first = take(open_cached(toy, tmp_path / "full"), 9)
    stream = open_cached(toy, tmp_path / "third", decoded_cache_gib=places / 2**30)
    assert_same(first, take(stream, 9))
    assert 0 < stream.stats()["decoded_hit_share"] < 0.34


def test_another_size_or_way_of_decoding_is_another_cache(toy, tmp_path):
    take(open_cached(toy, tmp_path), 3)
    for settings in ({"image_size": 8}, {"decode": "exact"}, {"dct_scaling": False}, {"crop": "random"}):
        with open_cached(toy, tmp_path, **settings) as stream:
            next(stream)
            assert stream.stats()["decoded_hit_share"] == 0


def test_samples_whose_crop_moves_are_decoded_anew(tmp_path):
    index = make_set(tmp_path / "wide", [8], width=40, height=16)
    settings = {"crop": "random", "flip": False}
    stream = open_cached(index, tmp_path / "cache", **settings)
    batches = take(stream, 6)

    assert stream.stats()["decoded_hit_share"] == 0
    crops = {dict(zip(batch.keys, batch.image, strict=True))["k0003"].numpy().tobytes()
             for batch in batches if "k0003" in batch.keys}  # fmt: skip
    assert len(crops) >= 2  # of three epochs; two may happen to agree among 25 places


def test_files_of_other_bounds_and_other_decoding_make_room_and_count_while_they_are_open(tmp_path):
    def open_planes(name, places):
        return PlanesCache(tmp_path, name, samples=100, size=16, limit_bytes=places * (16 * 16 * 3 // 2 + 5))

    def kept():
        return sorted(path.name for path in (tmp_path / "planes").glob("*.planes"))

    for places in (50, 20, 40):
        planes = open_planes("set-16-fast", places)
        assert planes.slots == places
        planes.close()
    assert kept() == ["set-16-fast-40.planes"]

    scaled = open_planes("set-16-fast-scaled", 60)
    assert (scaled.slots, kept()) == (60, ["set-16-fast-scaled-60.planes"])
    plain = open_planes("set-16-fast", 70)
    more = open_planes("set-16-fast-scaled", 90)
    assert (plain.slots, more.slots) == (10, 20)
