"""One door to objects: the same behaviour on disk and in S3."""

import hashlib
import os
import threading

import pytest

from inpaint import storage
from inpaint.errors import StorageError


def test_what_is_written_is_read_back_whole_and_in_part(root):
    url = storage.join(root, "a", "b.bin")
    storage.write_bytes(url, b"0123456789")

    assert storage.read_bytes(url) == b"0123456789"
    assert storage.read_range(url, 3, 4) == b"3456"
    assert storage.stat(url).size == 10
    assert storage.exists(url)
    assert not storage.exists(storage.join(root, "a"))


def test_a_range_past_the_end_is_refused(root):
    url = storage.join(root, "short")
    storage.write_bytes(url, b"12345")

    with pytest.raises(StorageError, match="ends at byte 5, expected 9"):
        storage.read_range(url, 3, 6)
    with pytest.raises(StorageError, match="truncated"):
        storage.read_range(url, 7, 2)


def test_a_listing_is_recursive_sorted_and_complete_over_several_pages(root):
    for name in ("b/2", "a", "b/1", "c/d/e", "b/3", "f"):
        storage.write_bytes(storage.join(root, name), b"x" * len(name))

    found = list(storage.list_objects(root))

    assert [info.url.removeprefix(root) for info in found] == ["/a", "/b/1", "/b/2", "/b/3", "/c/d/e", "/f"]
    assert [info.size for info in found] == [1, 3, 3, 3, 5, 1]
    assert storage.list_folders(root) == ["b", "c"]
    assert list(storage.list_objects(storage.join(root, "nothing"))) == []
    assert storage.list_folders(storage.join(root, "nothing")) == []


def test_a_folder_whose_name_begins_alike_is_not_listed(root):
    storage.write_bytes(storage.join(root, "train/1"), b"")
    storage.write_bytes(storage.join(root, "training/2"), b"")

    assert [storage.name_of(info.url) for info in storage.list_objects(storage.join(root, "train"))] == ["1"]


def test_only_the_first_writer_of_an_absent_object_wins(root):
    url = storage.join(root, "lease")
    storage.write_bytes(url, b"first", if_absent=True)

    with pytest.raises(storage.AlreadyExists, match="lease"):
        storage.write_bytes(url, b"second", if_absent=True)
    assert storage.read_bytes(url) == b"first"


def test_a_write_that_expects_a_version_refuses_any_other(root):
    url = storage.join(root, "lease")
    first = storage.write_bytes(url, b"one")
    second = storage.write_if_match(url, b"two", first)

    assert storage.stat(url).etag == second
    with pytest.raises(storage.ChangedMeanwhile):
        storage.write_if_match(url, b"three", first)
    with pytest.raises(storage.ChangedMeanwhile):
        storage.write_if_match(storage.join(root, "gone", "lease"), b"three", first)
    assert storage.read_bytes(url) == b"two"


def test_only_one_of_many_threads_replaces_a_version_on_disk(tmp_path):
    url = str(tmp_path / "lease")
    etag, won = storage.write_bytes(url, b"start"), []

    def attempt(number):
        try:
            storage.write_if_match(url, f"{number}".encode(), etag)
            won.append(number)
        except storage.ChangedMeanwhile:
            pass

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(won) == 1
    assert storage.read_bytes(url) == f"{won[0]}".encode()


def test_delete_takes_one_object_and_delete_tree_everything_below(root):
    for name in ("keep", "tree/1", "tree/2/3"):
        storage.write_bytes(storage.join(root, name), b"")
    storage.delete(storage.join(root, "never was"))
    storage.delete_tree(storage.join(root, "tree"))

    assert [storage.name_of(info.url) for info in storage.list_objects(root)] == ["keep"]


def test_upload_and_download_carry_a_file_and_report_every_byte(root, tmp_path):
    data, up, down = os.urandom(3_000_000), [], []
    (tmp_path / "source").write_bytes(data)
    storage.upload(tmp_path / "source", storage.join(root, "copy"), progress=up.append)
    digest = hashlib.sha256(data).hexdigest()
    storage.download(storage.join(root, "copy"), tmp_path / "back", sha256=digest, progress=down.append)

    assert (tmp_path / "back").read_bytes() == data
    assert sum(up) == sum(down) == len(data)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_a_download_with_another_checksum_never_appears(root, tmp_path):
    storage.write_bytes(storage.join(root, "object"), b"other bytes")

    with pytest.raises(StorageError, match="sha256"):
        storage.download(storage.join(root, "object"), tmp_path / "file", sha256="0" * 64)
    assert not (tmp_path / "file").exists()


def test_a_missing_object_is_said_to_be_missing(root, tmp_path):
    url = storage.join(root, "none")
    for action in (storage.read_bytes, storage.stat, lambda url: storage.download(url, tmp_path / "x")):
        with pytest.raises(storage.MissingObject, match="none"):
            action(url)


def test_check_writable_leaves_nothing_behind(root):
    storage.check_writable(root)
    assert list(storage.list_objects(root)) == []


def test_check_writable_says_why_a_folder_cannot_be_written():
    with pytest.raises(StorageError, match="/proc"):
        storage.check_writable("/proc/inpaint")


def test_another_scheme_is_refused_and_file_urls_are_local(tmp_path):
    with pytest.raises(StorageError, match="gs://"):
        storage.read_bytes("gs://bucket/key")


def test_an_s3_url_without_a_bucket_never_becomes_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in (storage.join("s3://", "runs", "one"), "s3:/lab/one", "s3:///one"):
        with pytest.raises(StorageError, match="names no bucket; expected s3://bucket/key"):
            storage.write_bytes(url, b"lost")
    assert not list(tmp_path.iterdir())
    storage.write_bytes(f"file://{tmp_path}/a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_a_full_disk_is_said_to_be_full(monkeypatch, tmp_path):
    import errno

    storage.write_bytes(str(tmp_path / "object"), b"1")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(storage.OutOfSpace, match="disk is full"):
        storage.write_bytes(str(tmp_path / "other"), b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["object"]


def test_nothing_lies_below_a_file(tmp_path):
    """An archive is asked for the index of a shard set like a folder."""
    (tmp_path / "photos.zip").write_bytes(b"x")
    assert not storage.exists(str(tmp_path / "photos.zip" / "index.json"))
