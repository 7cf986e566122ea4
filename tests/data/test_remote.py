"""A set in S3: fetched once, cached within bounds, mended or refused when damaged, whatever the network does."""

import errno
import fcntl
import logging
import os
import shutil
import time

import pytest

from inpaint import storage
from inpaint.data import fetching
from inpaint.data.cache import Busy, ShardCache
from inpaint.data.fetching import Fetcher
from inpaint.data.index import index_set, load_index
from inpaint.data.reading import Reader
from inpaint.errors import DataError, StorageError
from inpaint.storage import retries
from tests.data.sets import make_set, open_set, take
from tests.faulty_s3 import altered, cut_after, shared_server


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(retries, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(fetching, "PATIENCE_SECONDS", 0)
    server = shared_server().forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    return server


@pytest.fixture
def remote(store, tmp_path):
    """23 samples in five shards at s3://lab/toy, and the same on disk."""
    local = make_set(tmp_path / "set", [7, 1, 6, 4, 5])
    for path in (tmp_path / "set").iterdir():
        store.objects[f"toy/{path.name}"] = path.read_bytes()
    return load_index("s3://lab/toy"), local


def open_remote(index, tmp_path, **settings):
    return open_set(index, cache_dir=str(tmp_path / "cache"), **settings)


def batches_of(index, tmp_path, count=10, **settings):
    stream = open_remote(index, tmp_path, **settings)
    return take(stream, count), stream.stats()


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys == other.keys
        assert one.image.equal(other.image)
        assert one.mask.equal(other.mask)


def shard_bytes(store):
    return sum(len(body) for key, body in store.objects.items() if key.endswith(".tar"))


@pytest.mark.parametrize("shuffle", ["global", "window"])
def test_a_remote_set_gives_the_batches_of_a_local_one_and_is_read_once(store, remote, tmp_path, shuffle):
    index, local = remote
    store.requests.clear()
    got, stats = batches_of(index, tmp_path, shuffle=shuffle, window_shards=2)
    assert_same(got, take(open_set(local, shuffle=shuffle, window_shards=2), 10))

    assert stats["bytes_read"] == shard_bytes(store)
    store.requests.clear()
    again, stats = batches_of(index, tmp_path, shuffle=shuffle, window_shards=2)
    assert_same(got, again)
    assert stats["cache_hit_share"] == 1
    assert store.requests == []


def test_no_thread_asks_for_a_sample_before_its_shard_stands_in_the_line(store, remote, tmp_path, monkeypatch):
    """Several batches are planned at once at the start; a sample read alone there would be read twice."""
    index, _ = remote
    want = Fetcher.want

    def slow(self, shards):
        time.sleep(0.05)
        want(self, shards)

    monkeypatch.setattr(Fetcher, "want", slow)
    _, stats = batches_of(index, tmp_path, decode_threads=4, prefetch_batches=3)
    assert stats["read_alone"] == 0
    assert stats["bytes_read"] == shard_bytes(store)


def test_a_set_in_s3_can_be_indexed_where_it_is(store, remote):
    index, _ = remote
    for name in ("index.json", "samples.parquet"):
        del store.objects[f"toy/{name}"]
    with pytest.raises(DataError, match="inpaint shards index s3://lab/toy"):
        load_index("s3://lab/toy")
    assert index_set("s3://lab/toy").digest == index.digest
    assert load_index("s3://lab/toy").digest == index.digest


def test_a_bad_network_changes_nothing_but_the_retries(store, remote, tmp_path):
    index, local = remote
    store.fail("toy/000000.tar", 503, 500, cut_after(700), 503)
    store.fail("toy/000002.tar", 500, 500, cut_after(10), cut_after(2000))
    got, stats = batches_of(index, tmp_path)
    assert_same(got, take(open_set(local), 10))
    assert stats["retries"] == 8


@pytest.mark.parametrize("cache_gib", [1, 1e-9])
def test_a_store_that_is_away_for_a_while_delays_the_stream_and_no_more(
    store, remote, tmp_path, monkeypatch, caplog, cache_gib
):
    """As during the restart of a store, or a minute's outage; once with shards that are cached, once without room."""
    monkeypatch.setattr(fetching, "PATIENCE_SECONDS", 30)
    index, local = remote
    for name in ("toy/000000.tar", "toy/000002.tar"):
        store.fail(name, *[503, "no answer"] * 20)
    got, _ = batches_of(index, tmp_path, cache_gib=cache_gib)

    assert_same(got, take(open_set(local), 10))
    assert "could not read it in 6 attempts" in caplog.text


def test_a_shard_that_could_not_be_fetched_ahead_is_asked_for_again_when_it_is_needed(store, remote, tmp_path):
    index, _ = remote
    store.always["toy/000003.tar"] = 503
    reader = Reader(index, ShardCache(tmp_path / "cache", 2**30))
    fetcher, sample = Fetcher(reader, threads=1), int(index.first[3])
    try:
        fetcher.want([3])
        wait_until(lambda: not fetcher._ahead)  # given up, and nobody waited
        del store.always["toy/000003.tar"]
        answers = []
        fetcher.call_when_here([sample], lambda alone, error: answers.append((alone, error)))
        wait_until(lambda: answers)
        assert answers[0][1] is None
        wait_until(lambda: 3 in fetcher._present)
    finally:
        fetcher.close()


def wait_until(holds):
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_shard_altered_on_the_way_is_fetched_again(store, remote, tmp_path):
    index, local = remote
    answers = iter([None, altered])
    store.always["toy/000003.tar"] = lambda handler, body: (next(answers, None) or whole)(handler, body)
    got, _ = batches_of(index, tmp_path)
    assert_same(got, take(open_set(local), 10))


def whole(handler, body):
    handler.wfile.write(body)


@pytest.mark.parametrize("damage", ["altered", "truncated"])
def test_a_shard_damaged_in_the_store_is_an_error_that_names_it(store, remote, tmp_path, damage):
    index, _ = remote
    data = store.objects["toy/000002.tar"]
    at = int(index.offset[index.first[2]]) + 9
    other = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    store.objects["toy/000002.tar"] = data[:-100] if damage == "truncated" else other
    with pytest.raises(StorageError, match=r"s3://lab/toy/000002\.tar: .*(altered or truncated|truncated)"):
        batches_of(index, tmp_path)


@pytest.mark.parametrize(
    ("status", "said"), [(403, "403"), (404, "no such object"), (500, "500 Internal"), (503, "503 Service")]
)
def test_a_shard_that_cannot_be_had_is_an_error_with_advice(store, remote, tmp_path, status, said):
    index, _ = remote
    store.always["toy/000002.tar"] = status
    with pytest.raises(StorageError, match=rf"s3://lab/toy/000002\.tar: .*{said}"):
        batches_of(index, tmp_path)


def test_a_listing_that_is_refused_is_an_error_with_advice(store, remote):
    store.always["list toy/"] = 403
    with pytest.raises(StorageError, match="s3://lab/toy.*refuses to list"):
        load_index("s3://lab/toy")


def test_a_cached_shard_that_went_bad_on_disk_is_fetched_again(store, remote, tmp_path):
    index, local = remote
    batches_of(index, tmp_path)
    for name, damage in ((2, b"\xff" * 2000), (3, None)):
        path = tmp_path / "cache" / "shards" / f"{index.shards[name].sha256}.tar"
        if damage:
            path.write_bytes(damage + path.read_bytes()[len(damage) :])
        else:
            os.truncate(path, 100)
    got, stats = batches_of(index, tmp_path)
    assert_same(got, take(open_set(local), 10))
    assert stats["refetched_shards"] == 1  # the cut one is not even taken for whole
    assert stats["bytes_read"] == index.shards[2].bytes + index.shards[3].bytes


def test_a_shard_that_is_gone_again_as_soon_as_it_was_fetched_anew_is_read_sample_by_sample(
    store, remote, tmp_path, monkeypatch
):
    """Another run on the node may need the room at once."""
    index, local = remote
    batches_of(index, tmp_path)
    path = tmp_path / "cache" / "shards" / f"{index.shards[2].sha256}.tar"
    path.write_bytes(b"\xff" * path.stat().st_size)
    monkeypatch.setattr(Reader, "_fetch_again", lambda self, shard: True)

    got, _ = batches_of(index, tmp_path)
    assert_same(got, take(open_set(local), 10))


def test_a_cache_too_small_for_the_set_stays_within_its_bound_and_says_so(store, remote, tmp_path, caplog):
    index, local = remote
    limit = 2 * max(shard.bytes for shard in index.shards)
    with caplog.at_level(logging.WARNING):
        got, stats = batches_of(index, tmp_path, cache_gib=limit / 2**30)
    assert_same(got, take(open_set(local), 10))
    assert stats["read_alone"] > 0
    assert "raise data.cache_gib" in caplog.text
    assert cached_bytes(tmp_path) <= limit


def cached_bytes(tmp_path):
    return sum(path.stat().st_size for path in (tmp_path / "cache" / "shards").glob("*.tar"))


def test_windows_pass_through_a_cache_smaller_than_the_set(store, tmp_path):
    local = make_set(tmp_path / "set", [4] * 12)
    for path in (tmp_path / "set").iterdir():
        store.objects[f"toy/{path.name}"] = path.read_bytes()
    limit = 4 * local.shards[0].bytes + 100
    settings = {"shuffle": "window", "window_shards": 2}
    got, stats = batches_of(load_index("s3://lab/toy"), tmp_path, 24, cache_gib=limit / 2**30, **settings)
    assert_same(got, take(open_set(local, **settings), 24))
    assert cached_bytes(tmp_path) <= limit
    assert stats["read_alone"] < 24  # of 96: shards are fetched before they are needed


def test_a_full_disk_costs_speed_and_not_the_run(store, remote, tmp_path, monkeypatch, caplog):
    index, local = remote

    def full(*args, **kwargs):
        raise storage.OutOfSpace("the disk is full")

    monkeypatch.setattr(storage, "download", full)
    got, stats = batches_of(index, tmp_path)
    assert_same(got, take(open_set(local), 10))
    assert stats["read_alone"] >= 40
    assert "disk under" in caplog.text
    assert "is full" in caplog.text


def test_a_disk_that_holds_two_shards_keeps_them_and_reads_the_others_alone(store, remote, tmp_path, monkeypatch):
    """Shards that are all needed must not push each other out."""
    index, local = remote
    download = storage.download

    def small_disk(url, path, **options):
        folder = tmp_path / "cache" / "shards"
        if len(list(folder.glob("*.tar"))) == 2:
            raise storage.OutOfSpace("the disk is full")
        download(url, path, **options)

    monkeypatch.setattr(storage, "download", small_disk)
    store.requests.clear()
    got, stats = batches_of(index, tmp_path, count=20, fetch_threads=1)
    assert_same(got, take(open_set(local), 20))
    whole = [key for method, key, asked in store.requests if method == "GET" and asked.startswith("bytes=0-")]
    assert len(whole) == 2  # fetched once each, never again
    assert stats["cache_hit_share"] > 0


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(store, remote):
    with pytest.raises(StorageError, match=r"data\.cache_dir /proc/nowhere"):
        open_set(remote[0], cache_dir="/proc/nowhere")


def test_two_ranks_of_a_node_fetch_each_shard_once(store, remote, tmp_path):
    index, _ = remote
    store.requests.clear()
    ranks = [open_remote(index, tmp_path, rank=rank, world_size=2) for rank in (0, 1)]
    for _ in range(10):
        for stream in ranks:
            next(stream)
    for stream in ranks:
        stream.close()
    assert [store.count("GET", f"toy/{shard.name}") for shard in index.shards] == [1] * 5


def test_resuming_needs_only_the_shards_that_are_still_to_come(store, tmp_path):
    make_set(tmp_path / "set", [4] * 20)
    for path in (tmp_path / "set").iterdir():
        store.objects[f"toy/{path.name}"] = path.read_bytes()
    index = load_index("s3://lab/toy")
    store.requests.clear()
    stream = open_remote(index, tmp_path, start=15, shuffle="window", window_shards=2, prefetch_batches=1)
    next(stream)
    asked = {key for method, key, _ in store.requests if method == "GET"}
    stream.close()
    assert 1 <= len(asked) <= 6  # of 20: the windows of three batches, and the one after them


# ---- the cache by itself ----


@pytest.fixture
def objects(store):
    """Objects of 1000 bytes, each all of one letter, and their digests."""
    import hashlib

    bodies = {letter: letter.encode() * 1000 for letter in "abcdef"}
    store.objects.update(bodies)
    return {letter: hashlib.sha256(body).hexdigest() for letter, body in bodies.items()}


def test_the_least_recently_used_shard_makes_room(store, objects, tmp_path):
    cache = ShardCache(tmp_path, 3000)
    for age, letter in ((400, "a"), (300, "b"), (200, "c")):
        assert cache.fetch(f"s3://lab/{letter}", objects[letter], 1000)
        moment = cache.path(objects[letter]).stat().st_mtime - age
        os.utime(cache.path(objects[letter]), (moment, moment))
    assert cache.has(objects["a"], 1000)  # used again
    assert cache.fetch("s3://lab/d", objects["d"], 1000)
    assert {letter for letter in "abcd" if cache.path(objects[letter]).exists()} == {"a", "c", "d"}


def test_equal_names_of_two_sets_never_serve_each_other(store, objects, tmp_path):
    store.objects["other/a"] = b"z" * 1000
    cache = ShardCache(tmp_path, 10_000)
    cache.fetch("s3://lab/a", objects["a"], 1000)
    with pytest.raises(StorageError, match="sha256"):
        cache.fetch("s3://lab/other/a", objects["b"], 1000)
    assert not cache.has(objects["b"], 1000)


def test_a_shard_larger_than_the_cache_is_not_kept(store, objects, tmp_path):
    cache = ShardCache(tmp_path, 999)
    assert not cache.fetch("s3://lab/a", objects["a"], 1000)
    assert store.requests == []


def test_a_shard_that_another_process_is_fetching_is_left_to_it(store, objects, tmp_path):
    cache = ShardCache(tmp_path, 2500)
    with open(cache.folder / f"{objects['a']}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(b"1000")
        lock.flush()
        with pytest.raises(Busy):
            cache.fetch("s3://lab/a", objects["a"], 1000)
        assert cache.fetch("s3://lab/b", objects["b"], 1000)
        assert not cache.fetch("s3://lab/c", objects["c"], 2000)  # 1000 of the room are spoken for
    assert cache.fetch("s3://lab/a", objects["a"], 1000)  # the kernel drops a dead process's lock


def test_a_disk_that_fills_up_gives_back_older_shards_first(store, objects, tmp_path, monkeypatch):
    cache = ShardCache(tmp_path, 10_000)
    cache.fetch("s3://lab/a", objects["a"], 1000)
    download, full = storage.download, [True]

    def full_once(*args, **kwargs):
        if full.pop() if full else False:
            raise storage.OutOfSpace("the disk is full")
        return download(*args, **kwargs)

    monkeypatch.setattr(storage, "download", full_once)
    assert cache.fetch("s3://lab/b", objects["b"], 1000)
    assert not cache.has(objects["a"], 1000)


def test_a_disk_without_room_for_a_note_is_full_and_no_crash(store, objects, tmp_path, monkeypatch, caplog):
    cache = ShardCache(tmp_path, 10_000)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert cache.fetch("s3://lab/a", objects["a"], 1000)  # the note is for others; the shard still fits
    monkeypatch.setattr(os, "ftruncate", full)
    assert not cache.fetch("s3://lab/b", objects["b"], 1000)
    assert "is full" in caplog.text


def test_a_shard_that_does_not_fit_on_the_disk_is_not_even_begun(store, objects, tmp_path, monkeypatch):
    cache = ShardCache(tmp_path, 10_000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=999))
    assert not cache.fetch("s3://lab/a", objects["a"], 1000)
    assert store.requests == []
