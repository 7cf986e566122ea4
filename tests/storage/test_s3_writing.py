"""Writing to S3: a lost answer is neither a loss nor somebody else's write."""

import os

import pytest

from inpaint import storage
from inpaint.errors import StorageError
from inpaint.storage import retries, s3


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
