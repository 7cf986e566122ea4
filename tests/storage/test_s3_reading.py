"""Reading from S3 over a bad network: the right bytes of one version, or an error."""

import hashlib
import os
import time

import pytest

from inpaint import storage
from inpaint.errors import StorageError
from inpaint.storage import s3_client
from tests.faulty_s3 import altered, cut_after, drip, silent


@pytest.mark.parametrize(
    "faults",
    [[500, 503], [503] * 5, [520, 529], ["no answer"] * 5, [cut_after(700_000), cut_after(100), 500], [silent]],
)
def test_a_read_survives_what_passes(store, faults, monkeypatch):
    if silent in faults:  # the client learns how long to wait when it is made
        monkeypatch.setattr(s3_client, "SILENCE_SECONDS", 0.3)
        monkeypatch.setattr(s3_client, "_clients", {})
    data = store.objects["big"] = os.urandom(2_000_000)
    store.fail("big", *faults)

    before = storage.traffic()
    assert storage.read_bytes("s3://lab/big") == data
    assert storage.traffic()["retries"] - before["retries"] == len(faults)


def test_ranges_of_any_length_arrive_whole_over_one_connection(store, monkeypatch):
    monkeypatch.setattr(s3_client, "_clients", {})
    data = store.objects["big"] = os.urandom(300_000)
    for length in (1, 2, 8191, 8192, 8193, 65_535, 65_536, 65_537, 131_073, 299_990):
        assert storage.read_range("s3://lab/big", 7, length) == data[7 : 7 + length]
    assert storage.read_bytes("s3://lab/big") == data
    assert store.connections == 1


def test_a_body_that_falls_silent_in_the_middle_is_continued(store, monkeypatch):
    monkeypatch.setattr(s3_client, "SILENCE_SECONDS", 0.3)

    def half(handler, body):
        handler.wfile.write(body[: len(body) // 2])
        silent(handler, body)

    data = store.objects["big"] = os.urandom(2_000_000)
    store.fail("big", half)

    assert storage.read_bytes("s3://lab/big") == data
    assert store.requests[1][2] == "bytes=1000000-1999999"


def test_a_cut_body_is_continued_at_the_byte_where_it_was_cut(store):
    data = store.objects["big"] = os.urandom(2_000_000)
    store.fail("big", cut_after(1_500_000))
    before = storage.traffic()["bytes_read"]

    assert storage.read_range("s3://lab/big", 100, 1_900_000) == data[100:1_900_100]

    assert store.requests[0][2] == "bytes=100-1900099"
    assert store.requests[1][2] == "bytes=1500100-1900099"
    assert storage.traffic()["bytes_read"] - before == 1_900_000


@pytest.mark.parametrize("fault", ["no range", "shifted range"])
@pytest.mark.parametrize("start", [0, 100])
def test_bytes_of_another_range_are_never_taken(store, monkeypatch, fault, start):
    data = store.objects["object"] = os.urandom(1000)
    store.fail("object", fault)
    assert storage.read_range("s3://lab/object", start, 500) == data[start : start + 500]

    store.always["object"] = fault
    with pytest.raises(StorageError, match=r"6 attempts.*must support ranges"):
        storage.read_range("s3://lab/object", start, 500)


def test_a_part_is_never_taken_for_the_whole(store):
    store.objects["object"] = b"0123456789"
    store.fail("object", "part")
    assert storage.read_bytes("s3://lab/object") == b"0123456789"

    store.always["object"] = "part"
    with pytest.raises(StorageError, match="answered with bytes 0-4/10 when asked for the whole"):
        storage.read_bytes("s3://lab/object")


def test_a_listing_that_says_nothing_is_not_taken_for_an_empty_folder(store):
    """By an empty listing of its checkpoints a run would begin anew."""
    store.objects["root/1"] = b""
    store.fail("list root/", "empty")
    with pytest.raises(StorageError, match="s3://lab/root: cannot list it: the server's answer has no IsTruncated"):
        list(storage.list_objects("s3://lab/root"))


def test_a_dripping_body_is_asked_for_again(store, monkeypatch):
    monkeypatch.setattr(s3_client, "SILENCE_SECONDS", 0.3)
    data = store.objects["object"] = os.urandom(1000)
    store.fail("object", drip)

    began = time.monotonic()
    assert storage.read_bytes("s3://lab/object") == data
    assert time.monotonic() - began < 5  # 50 s at the speed of the first answer


def test_an_object_that_is_replaced_during_a_read_is_never_mixed(store):
    store.objects["object"] = b"a" * 1_000_000

    def replace(handler, body):
        store.objects["object"] = b"b" * 1_000_000
        cut_after(500_000)(handler, body)

    store.fail("object", replace)
    with pytest.raises(storage.ChangedMeanwhile, match="replaced while it was being read"):
        storage.read_bytes("s3://lab/object")


@pytest.mark.parametrize("action", [storage.stat, storage.read_bytes, lambda url: storage.read_range(url, 0, 3)])
def test_an_answer_that_does_not_say_how_long_it_is_is_refused_in_plain_words(store, action):
    store.objects["object"] = b"123"
    store.always["object"] = "no length"
    with pytest.raises(StorageError, match="s3://lab/object: cannot read it: the server's answer has no ContentLength"):
        action("s3://lab/object")


def test_a_listing_that_cannot_go_on_is_not_taken_for_the_whole(store):
    store.objects |= {f"root/{number}": b"" for number in range(5)}
    store.fail("list root/", "no token")
    with pytest.raises(StorageError, match="s3://lab/root: the listing breaks off"):
        list(storage.list_objects("s3://lab/root"))


def test_a_download_goes_on_where_an_earlier_one_stopped(store, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WINDOW_BYTES", 1_000_000)
    data = store.objects["big"] = os.urandom(3_500_000)

    def stop(done):
        if sum(seen) + done > 2_000_000:
            raise KeyboardInterrupt
        seen.append(done)

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        storage.download("s3://lab/big", tmp_path / "big", progress=stop)
    assert not (tmp_path / "big").exists()
    before = storage.traffic()["bytes_read"]
    storage.download("s3://lab/big", tmp_path / "big", sha256=hashlib.sha256(data).hexdigest())

    assert (tmp_path / "big").read_bytes() == data
    assert storage.traffic()["bytes_read"] - before == 500_000  # the three whole windows were kept


def test_a_download_whose_bytes_were_altered_on_the_way_is_fetched_again(store, tmp_path):
    data = store.objects["object"] = os.urandom(5000)
    store.fail("object", 500, altered)  # HEAD, GET

    storage.download("s3://lab/object", tmp_path / "file", sha256=hashlib.sha256(data).hexdigest())
    assert (tmp_path / "file").read_bytes() == data


def test_an_object_that_is_replaced_during_a_download_is_fetched_anew(store, tmp_path, monkeypatch):
    """As by a copy of the same set that is sent up again in the middle of an epoch."""
    monkeypatch.setattr(storage, "WINDOW_BYTES", 1000)
    old, new = os.urandom(5000), os.urandom(4000)
    store.objects["object"] = old

    def replaced(done):
        store.objects["object"] = new

    storage.download("s3://lab/object", tmp_path / "file", progress=replaced)

    assert (tmp_path / "file").read_bytes() == new
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_object_that_is_replaced_again_and_again_is_an_error(store, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WINDOW_BYTES", 1000)
    store.objects["object"] = os.urandom(5000)

    def replaced(done):
        store.objects["object"] = os.urandom(5000)

    with pytest.raises(storage.ChangedMeanwhile, match="s3://lab/object: was replaced while it was being read"):
        storage.download("s3://lab/object", tmp_path / "file", progress=replaced)
    assert list(tmp_path.iterdir()) == []
