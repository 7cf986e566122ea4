"""Indexing sets that any WebDataset writer made, and refusing indexes that do not belong to their shards."""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from inpaint.data.index import index_set, index_tar, load_index
from inpaint.errors import DataError
from tests.data.sets import make_set, picture, write_shards, write_tar


def test_a_set_of_plain_webdataset_is_indexed_to_the_byte(tmp_path):
    with webdataset.ShardWriter(f"{tmp_path}/%06d.tar", maxcount=4, verbose=0) as writer:
        for i in range(10):
            writer.write({"__key__": f"folder/photo{i}", "jpg": picture(i), "cls": i, "note.txt": "x" * i})

    index = index_set(str(tmp_path))

    assert len(index) == 10
    assert [shard.samples for shard in index.shards] == [4, 4, 2]
    assert index.key(7) == "folder/photo7"
    for i in range(10):
        with open(tmp_path / index.shards[index.shard[i]].name, "rb") as file:
            file.seek(index.offset[i])
            assert file.read(index.length[i]) == picture(i)
    assert webdataset_keys(tmp_path) == [index.key(i) for i in range(10)]


def webdataset_keys(folder):
    """Keys in the order in which WebDataset's own reader meets them."""
    keys = []
    for path in sorted(folder.glob("*.tar")):
        with open(path, "rb") as stream:
            source = [{"url": str(path), "stream": stream}]
            keys += [sample["__key__"] for sample in group_by_keys(tar_file_expander(source))]
    return keys


def test_long_and_foreign_names_survive(tmp_path):
    keys = ["ü" * 60, "a" * 150, "deep/" * 30 + "x"]
    write_tar(tmp_path / "0.tar", [{"__key__": key, "png": picture(i, kind="PNG")} for i, key in enumerate(keys)])
    assert index_tar(tmp_path / "0.tar").keys == tuple(keys)


@pytest.mark.parametrize("extra", [{"mask.png": b"m"}, {"json": b"{}", "thumb.jpg": b"t"}])
def test_the_plainest_name_is_the_image(tmp_path, extra):
    write_tar(tmp_path / "0.tar", [{"__key__": "a", **extra, "jpg": picture(1)}])
    record = index_tar(tmp_path / "0.tar")
    assert record.exts == ("jpg",)
    assert record.lengths[0] == len(picture(1))


def test_a_loaded_index_equals_the_written_one(tmp_path):
    written, loaded = make_set(tmp_path, [3, 2]), load_index(str(tmp_path))
    assert loaded.digest == written.digest
    assert [loaded.key(i) for i in range(5)] == ["k0000", "k0001", "k0002", "k0003", "k0004"]
    for name in ("first", "shard", "offset", "length", "crc32"):
        assert np.array_equal(getattr(loaded, name), getattr(written, name))


def test_the_digest_follows_the_content_and_not_the_place(tmp_path):
    one = make_set(tmp_path / "one", [3, 2])
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    other = make_set(tmp_path / "other", [3, 2], offset=1)

    assert load_index(str(tmp_path / "copy")).digest == one.digest
    assert other.digest != one.digest


def test_an_empty_folder_and_empty_shards_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.tar shards here"):
        load_index(str(tmp_path))
    with pytest.raises(DataError, match=r"no \*\.tar shards here"):
        index_set(str(tmp_path))
    write_tar(tmp_path / "0.tar", [])
    with pytest.raises(DataError, match="the set is empty"):
        index_set(str(tmp_path))


def test_a_missing_index_says_how_to_write_one(tmp_path):
    write_shards(tmp_path, [2])
    with pytest.raises(DataError, match="inpaint shards index"):
        load_index(str(tmp_path))


FOREIGN = [
    json.dumps({"version": 2, "shards": [{"format": "mds", "samples": 3}]}),  # MosaicML Streaming
    json.dumps({"chunks": [], "config": {}}),  # litdata
    "[]",
    "not json",
]


@pytest.mark.parametrize("text", FOREIGN)
def test_another_programs_index_is_refused(tmp_path, text):
    make_set(tmp_path, [2])
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match="inpaint shards index"):
        load_index(str(tmp_path))


def test_an_index_of_another_version_is_refused(tmp_path):
    make_set(tmp_path, [2])
    header = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(header | {"version": 99}))
    with pytest.raises(DataError, match="99"):
        load_index(str(tmp_path))


def test_samples_of_another_set_are_refused(tmp_path):
    make_set(tmp_path / "a", [2])
    make_set(tmp_path / "b", [2], offset=5)
    shutil.copy(tmp_path / "b" / "samples.parquet", tmp_path / "a")
    with pytest.raises(DataError, match=r"samples\.parquet"):
        load_index(str(tmp_path / "a"))
    (tmp_path / "a" / "samples.parquet").unlink()
    with pytest.raises(DataError, match=r"samples\.parquet"):
        load_index(str(tmp_path / "a"))


def test_an_index_older_than_its_shards_is_refused(tmp_path):
    make_set(tmp_path, [3, 3])
    write_tar(tmp_path / "000002.tar", [{"__key__": "late", "jpg": picture(99)}])
    with pytest.raises(DataError, match=r"older than its shards: 000002\.tar"):
        load_index(str(tmp_path))
    (tmp_path / "000002.tar").unlink()
    (tmp_path / "000001.tar").unlink()
    with pytest.raises(DataError, match=r"000001\.tar of the index is missing"):
        load_index(str(tmp_path))


def test_a_shard_rewritten_at_the_same_size_is_noticed(tmp_path):
    index = make_set(tmp_path, [3, 3])
    data = bytearray((tmp_path / "000001.tar").read_bytes())
    data[index.offset[3] + 10] ^= 1
    (tmp_path / "000001.tar").write_bytes(data)
    os.utime(tmp_path / "000001.tar", (2**31, 2**31))
    with pytest.raises(DataError, match=r"older than its shards: 000001\.tar has other content"):
        load_index(str(tmp_path))


def test_a_copied_set_is_not_taken_for_a_stale_one(tmp_path):
    make_set(tmp_path, [3, 3])
    for path in tmp_path.glob("*.tar"):
        os.utime(path, (2**31, 2**31))
    assert len(load_index(str(tmp_path))) == 6


def test_a_sample_without_an_image_is_named(tmp_path):
    write_tar(tmp_path / "0.tar", [{"__key__": "whole", "jpg": picture(1)}, {"__key__": "bare", "json": {}, "txt": ""}])
    with pytest.raises(DataError, match=r"0\.tar: sample bare has no image \(members: json, txt\)"):
        index_set(str(tmp_path))


def test_a_sample_with_two_images_that_could_be_meant_is_named(tmp_path):
    write_tar(tmp_path / "0.tar", [{"__key__": "a", "left.jpg": picture(1), "right.jpg": picture(2)}])
    with pytest.raises(DataError, match="several images"):
        index_set(str(tmp_path))


def test_duplicate_keys_are_named_with_their_shards(tmp_path):
    write_tar(tmp_path / "0.tar", [{"__key__": "a", "jpg": picture(1)}])
    write_tar(tmp_path / "1.tar", [{"__key__": "b", "jpg": picture(2)}, {"__key__": "a", "jpg": picture(3)}])
    with pytest.raises(DataError, match=r"key a is twice in the set, in 0\.tar and 1\.tar"):
        index_set(str(tmp_path))
    order = ["a", "b", "a"]
    write_tar(tmp_path / "1.tar", [{"__key__": key, "jpg": picture(i)} for i, key in enumerate(order)])
    with pytest.raises(DataError, match=r"1\.tar: key a comes twice"):
        index_set(str(tmp_path))


@pytest.mark.parametrize("where", ["inside an image", "between two members", "in the first header"])
def test_a_truncated_tar_never_passes_as_complete(tmp_path, where):
    write_shards(tmp_path, [4])
    path = tmp_path / "000000.tar"
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    inside, between = members[4].offset_data + 10, members[4].offset
    cut = {"inside an image": inside, "between two members": between, "in the first header": 100}[where]
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"000000\.tar.*(cut off|not a whole tar)"):
        index_set(str(tmp_path))
