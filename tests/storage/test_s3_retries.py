"""Calls to S3 that fail: what is tried again, for how long, and what is said in the end."""

import pytest
from botocore.exceptions import ClientError

from inpaint import storage
from inpaint.errors import StorageError
from inpaint.storage import retries, s3_client


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
