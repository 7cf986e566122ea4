import shutil

import pytest

from inpaint.data.checking import list_sets, verify_set
from inpaint.data.index import load_index
from inpaint.errors import DataError
from tests.data.test_shards import Interrupted, photos, stop_after, write


@pytest.fixture
def shards(tmp_path):
    write(photos(tmp_path / "photos", 10), tmp_path / "set")
    return tmp_path / "set"


def faults(folder, **options):
    return {(fault.place, fault.problem) for fault in verify_set(str(folder), **options).faults}


def change(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def test_a_whole_set_has_no_faults_and_everything_was_read(shards):
    done = []
    verdict = verify_set(str(shards), decode=True, progress=done.append)
    assert verdict.faults == ()
    assert (verdict.shards, verdict.samples) == (3, 10)
    assert verdict.bytes == sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert sum(done) == 10


def test_one_changed_byte_names_the_shard_and_the_sample(shards):
    index = load_index(str(shards))
    change(shards / "000001.tar", int(index.offset[5]) + 100)  # sample 5 is the second of shard 1
    assert faults(shards) == {
        ("000001.tar", "its SHA-256 is not the one in the index"),
        ("000001.tar 005", "its CRC-32 is not the one in the index"),
    }


def test_a_change_beside_the_images_is_found_too(shards):
    index = load_index(str(shards))
    json_member = int(index.offset[4]) + -(-int(index.length[4]) // 512) * 512 + 512
    change(shards / "000001.tar", json_member + 3)
    assert faults(shards) == {("000001.tar", "its SHA-256 is not the one in the index")}


def test_missing_cut_and_foreign_shards_are_all_named_at_once(shards):
    (shards / "000000.tar").unlink()
    cut = shards / "000001.tar"
    cut.write_bytes(cut.read_bytes()[: load_index_length(shards)])
    shutil.copy(shards / "000002.tar", shards / "extra.tar")
    found = faults(shards)
    assert ("000000.tar", "missing") in found
    assert ("extra.tar", "not in the index") in found
    assert any(place == "000001.tar" and "bytes; the index says" in problem for place, problem in found)
    assert ("000001.tar 007", "cut off") in found
    assert not any(place.startswith("000002") for place, _ in found)


def load_index_length(shards):
    """Bytes of shard 1 up to the middle of its last image."""
    from inpaint.data.index import read_index

    index = read_index(str(shards))
    return int(index.offset[7] + index.length[7] // 2)


def test_an_image_that_was_damaged_before_it_was_indexed_is_found_by_decoding(tmp_path):
    import webdataset

    from inpaint.data.index import index_set
    from tests.data.gallery import damaged_inside

    (tmp_path / "set").mkdir()
    with webdataset.TarWriter(str(tmp_path / "set" / "000000.tar")) as tar:
        tar.write({"__key__": "bad", "jpg": damaged_inside()})
    index_set(str(tmp_path / "set"))
    assert faults(tmp_path / "set") == set()
    ((place, problem),) = faults(tmp_path / "set", decode=True)
    assert place == "000000.tar bad"
    assert "corrupt" in problem


def test_without_an_index_there_is_nothing_to_compare_with(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.tar shards here"):
        verify_set(str(tmp_path))


def test_list_finds_sets_wherever_they_lie_and_says_which_are_not_whole(tmp_path):
    source = photos(tmp_path / "photos", 6)
    root = tmp_path / "root"
    write(source, root / "places2" / "train")
    write(source, root / "places2" / "test", limit=3)
    with pytest.raises(Interrupted):
        write(source, root / "half", run=stop_after(1))
    write(source, root / "short")
    (root / "short" / "000001.tar").unlink()
    half, test, train, short = list_sets(str(root))
    assert [s.url.rpartition("/")[2] for s in (half, test, train, short)] == ["half", "test", "train", "short"]
    assert (train.samples, train.shards, train.source, train.problem) == (6, 2, "photos", "")
    assert (test.samples, test.shards) == (3, 1)
    assert half.problem == "being written, or interrupted: no index yet"
    assert "the index knows 2 shards" in short.problem
    with pytest.raises(DataError, match="no shard sets here"):
        list_sets(str(source))
