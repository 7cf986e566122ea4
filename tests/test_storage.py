"""One door to objects: the same behaviour on disk and in S3, and what a bad network does to it."""

import hashlib
import os
import threading
import time

import pytest
from botocore.exceptions import ClientError

from inpaint import storage
from inpaint.errors import StorageError
from inpaint.storage import retries, s3, s3_client
from tests.faulty_s3 import altered, cut_after, drip, shared_server, silent


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(retries, "BACKOFF_SECONDS", 0.001)
    server = shared_server().forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    return server


@pytest.fixture(params=["disk", "s3"])
def root(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "root")
    request.getfixturevalue("store")
    return "s3://lab/root"


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


@pytest.mark.parametrize(
    ("status", "said", "asked"),
    [(403, "403", 1), (404, "no such object", 1), (500, "6 attempts", 6), (503, "SlowDown", 6)],
)
def test_a_lasting_failure_is_one_clear_line(store, status, said, asked):
    store.always["object"] = status

    with pytest.raises(StorageError, match=said) as caught:
        storage.read_bytes("s3://lab/object")
    assert str(caught.value).startswith("s3://lab/object: ")
    assert "\n" not in str(caught.value)
    assert store.count("GET", "object") == asked


def test_waits_between_attempts_grow_and_are_jittered(monkeypatch):
    waits = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    attempts = retries.Retries("s3://lab/object", "read", on_retry=lambda: None)
    for _ in range(retries.ATTEMPTS - 1):
        attempts.failed(ConnectionError("cut"))

    ceilings = [0.2, 0.4, 0.8, 1.6, 3.2]
    assert all(ceiling / 2 <= wait <= ceiling for wait, ceiling in zip(waits, ceilings, strict=True))
    assert len({wait / ceiling for wait, ceiling in zip(waits, ceilings, strict=True)}) == 5


@pytest.mark.parametrize(("asked", "waited"), [("7", 7), ("3600", 10), ("Thu, 01 Jan 2026 00:00:00 GMT", 0.2)])
def test_a_busy_store_is_left_alone_for_as_long_as_it_asks(monkeypatch, asked, waited):
    waits = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    answer = {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": asked}}
    busy = ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": answer}, "GetObject")
    retries.Retries("s3://lab/object", "read", on_retry=lambda: None).failed(busy)

    assert waited / 2 <= waits[0] <= waited


def test_an_unreachable_service_is_named_with_the_setting(monkeypatch):
    monkeypatch.setattr(retries, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        storage.read_bytes("s3://lab/object")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("AWS_ENDPOINT_URL", "storage:9000", "Invalid endpoint: storage:9000"), ("AWS_PROFILE", "nobody", "nobody")],
)
def test_settings_of_which_no_client_can_be_made_are_named(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=f"no S3 client can be made: .*{said}.*AWS_PROFILE"):
        storage.read_bytes("s3://lab/object")


def test_a_service_without_tls_is_named_with_the_setting_of_the_certificates(store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url.replace("http:", "https:"))
    with pytest.raises(StorageError, match="AWS_CA_BUNDLE.*AWS_ENDPOINT_URL the right port"):
        storage.read_bytes("s3://lab/object")


@pytest.mark.parametrize("whole_bucket", [False, True])
def test_a_server_that_sends_elsewhere_is_named_with_the_settings(store, whole_bucket):
    """A proxy that wants https answers everything so, also the question where the bucket is."""
    store.always["object"] = 301
    if whole_bucket:
        store.always[""] = 301
    for depth in (0, 7, 20, 50):  # of the stack, which decides where in the AWS client it is full
        with pytest.raises(StorageError, match="s3://lab/object: the server sends to another place .*AWS_ENDPOINT_URL"):
            deeper(depth, lambda: storage.read_bytes("s3://lab/object"))


def deeper(calls, function):
    return deeper(calls - 1, function) if calls else function()


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


def test_a_write_whose_answer_was_lost_is_not_taken_for_somebody_elses(store):
    store.fail("lease", "lost answer")
    storage.write_bytes("s3://lab/lease", b"mine", if_absent=True)
    assert store.objects["lease"] == b"mine"


def test_a_write_goes_on_when_a_connection_ends_without_an_answer(store):
    """As the lease is renewed while the store restarts."""
    etag = storage.write_bytes("s3://lab/lease", b"first")
    store.fail("lease", "no answer", "no answer", 503)

    storage.write_if_match("s3://lab/lease", b"second", etag)

    assert store.objects["lease"] == b"second"


def test_expired_credentials_are_looked_up_again(store, monkeypatch):
    monkeypatch.setattr(s3_client, "_clients", {})
    store.objects["object"] = b"1"
    assert storage.read_bytes("s3://lab/object") == b"1"
    store.refused_keys.add("testing")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")

    assert storage.read_bytes("s3://lab/object") == b"1"


def test_expired_credentials_are_looked_up_again_when_only_a_size_was_asked_for(store, monkeypatch):
    """The answer to a HEAD has no body that could say what is wrong."""
    monkeypatch.setattr(s3_client, "_clients", {})
    store.objects["object"] = b"123"
    assert storage.stat("s3://lab/object").size == 3
    store.refused_keys.add("testing")
    with pytest.raises(StorageError, match=r"refuses to read it \(400 Bad Request\).*whose credentials"):
        storage.stat("s3://lab/object")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")

    assert storage.stat("s3://lab/object").size == 3


def test_credentials_that_stay_expired_are_named(store, monkeypatch):
    monkeypatch.setattr(retries, "ATTEMPTS", 2)
    monkeypatch.setattr(s3_client, "_clients", {})
    store.refused_keys.add("testing")
    store.objects["object"] = b"1"
    with pytest.raises(StorageError, match="expired"):
        storage.read_bytes("s3://lab/object")


def test_a_multipart_upload_arrives_whole(tmp_path, moto_endpoint):
    data = os.urandom(20_000_000)
    (tmp_path / "big").write_bytes(data)
    done = []
    storage.upload(tmp_path / "big", "s3://parts/big", progress=done.append)

    assert sum(done) == len(data)
    assert storage.read_bytes("s3://parts/big") == data
    with pytest.raises(storage.AlreadyExists):
        storage.write_bytes("s3://parts/big", b"", if_absent=True)


@pytest.fixture
def parts(store, monkeypatch, tmp_path):
    """A file of three parts that is being uploaded to s3://lab/big."""
    monkeypatch.setattr(s3, "PART_BYTES", 1000)
    (tmp_path / "big").write_bytes(os.urandom(2500))
    return tmp_path / "big"


def test_an_upload_whose_last_answer_was_lost_is_there(store, parts):
    store.fail("join big", "lost answer")
    storage.upload(parts, "s3://lab/big")
    assert store.objects["big"] == parts.read_bytes()


@pytest.mark.parametrize("when", ["part", "join"])
def test_an_upload_that_the_store_forgot_is_not_taken_for_what_was_there_before(store, parts, when):
    store.objects["big"] = b"before"
    store.fail(f"{when} big", "no upload")
    with pytest.raises(StorageError, match="s3://lab/big: the store forgot this upload before its end; upload it"):
        storage.upload(parts, "s3://lab/big")


def test_an_upload_that_fails_says_why_even_if_its_parts_cannot_be_removed(store, parts):
    store.fail("join big", *[503] * retries.ATTEMPTS)
    store.uploads = Forgetful()
    with pytest.raises(StorageError, match="could not write it in 6 attempts, the last one said: 503 SlowDown"):
        storage.upload(parts, "s3://lab/big")


class Forgetful(dict):
    def pop(self, key, default=None):
        return default


@pytest.fixture
def moto_endpoint(monkeypatch):
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    import boto3

    boto3.client("s3").create_bucket(Bucket="parts")
    yield
    server.stop()


def test_a_full_disk_is_said_to_be_full(monkeypatch, tmp_path):
    import errno

    storage.write_bytes(str(tmp_path / "object"), b"1")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(storage.OutOfSpace, match="disk is full"):
        storage.write_bytes(str(tmp_path / "other"), b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["object"]
