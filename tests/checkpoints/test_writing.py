"""A checkpoint is whole or it is not there, whatever the store does meanwhile."""

import errno
import json
import os
import tempfile
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from inpaint import checkpoints, storage
from inpaint.checkpoints import CheckpointWriter, writing
from inpaint.errors import CheckpointError, StorageError
from inpaint.storage import disk
from ray_jobs.toy import toy_run
from tests.faulty_s3 import altered, shared_server


def state(step=1, size=3):
    """A small state with everything a trainer's may hold."""
    values = torch.arange(2.0 * size * 4 * 5).reshape(2, size, 4, 5) + step
    weights = {"conv.weight": values.to(memory_format=torch.channels_last), "count": torch.tensor(step)}
    moments = {0: {"step": torch.tensor(float(step)), "exp_avg": -values}}
    return {
        "networks": {"generator": weights, "discriminator": {"bias": values[0, 0].bfloat16()}},
        "trainer": {"step": step, "optimizers": {"generator": {"state": moments, "groups": [{"betas": (0.0, 0.9)}]}}},
        "position": {"skipped": 0},
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.fixture
def run(tmp_path):
    return toy_run(tmp_path, "a", "checkpoints.keep_last=2", "checkpoints.keep_best=1")


@pytest.fixture
def writer(run):
    return CheckpointWriter(run, inference_networks=("generator",), patience_seconds=5)


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr(writing, "PAUSE_SECONDS", (0.05, 0.1))


def save(writer, step, metrics=None, **options):
    """Save and wait; whether it was taken on."""
    taken = writer.save(step, state(step), metrics or {}, **options)
    writer.close()
    return taken


def test_a_state_comes_back_as_it_was_given(run, writer):
    given = state(7)
    writer.save(7, given, {"psnr": 20.0})
    given["networks"]["generator"]["conv.weight"].zero_()  # training goes on while it is written
    writer.close()

    assert same(checkpoints.load_state(run.url), state(7))


def test_weights_are_files_that_the_safetensors_library_reads(run, writer):
    save(writer, 7)

    folder = storage.local_path(checkpoints.latest(run.url).url) / "networks"

    assert same(load_file(folder / "generator.safetensors"), state(7)["networks"]["generator"])
    assert same(load_file(folder / "discriminator.safetensors"), state(7)["networks"]["discriminator"])


def test_training_state_loads_without_running_code(run, writer):
    save(writer, 7)

    path = storage.local_path(checkpoints.latest(run.url).url) / "trainer.pt"

    assert torch.load(path, weights_only=True)["trainer"]["step"] == 7


def test_the_manifest_is_written_last_and_names_size_and_checksum_of_every_file(run, writer, monkeypatch):
    written = []
    for name in ("upload", "write_bytes"):
        monkeypatch.setattr(disk, name, noting(getattr(disk, name), written, place=1 if name == "upload" else 0))

    save(writer, 7, history=b"{}\n")

    info = checkpoints.latest(run.url)
    assert written[-1] == storage.join(info.url, "manifest.json")
    assert set(info.files) == {
        "networks/generator.safetensors", "networks/discriminator.safetensors", "trainer.pt", "run.yaml", "metrics.json"
    }  # fmt: skip
    for name, entry in info.files.items():
        path = storage.local_path(info.url) / name
        assert (entry["bytes"], entry["sha256"]) == (path.stat().st_size, storage.sha256_file(path))


def noting(function, seen, *, place):
    def noted(*arguments, **options):
        seen.append(str(arguments[place]))
        return function(*arguments, **options)

    return noted


@pytest.mark.parametrize("harm", ["no manifest", "a file missing", "a file cut"])
def test_a_half_written_checkpoint_is_never_listed(run, writer, harm):
    save(writer, 7)
    save(writer, 8)
    folder = storage.local_path(checkpoints.latest(run.url).url)
    if harm == "no manifest":
        (folder / "manifest.json").unlink()
    elif harm == "a file missing":
        (folder / "trainer.pt").unlink()
    else:
        with (folder / "trainer.pt").open("r+b") as file:
            file.truncate(10)

    assert [info.step for info in checkpoints.list_checkpoints(run.url)] == [7]


def test_a_file_altered_in_place_is_found_when_it_is_loaded(run, writer):
    save(writer, 7)
    path = storage.local_path(checkpoints.latest(run.url).url) / "networks" / "generator.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match="generator.safetensors is missing or not what its manifest says"):
        checkpoints.load_state(run.url)


def test_a_file_altered_on_its_way_from_the_store_is_fetched_again(monkeypatch):
    store = shared_server().forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    run = toy_run("s3://lab/root", "a")
    save(CheckpointWriter(run, inference_networks=("generator",)), 1)
    place = checkpoints.latest(run.url).place("networks/generator.safetensors").removeprefix("s3://lab/")

    store.fail(place, altered)
    assert same(checkpoints.load_state(run.url), state(1))
    store.always[place] = altered
    with pytest.raises(CheckpointError, match="generator.safetensors is missing or not what its manifest says"):
        checkpoints.load_state(run.url)


def test_the_newest_and_the_best_are_kept_and_the_remains_of_others_removed(run, writer):
    for step, psnr in ((1, 21.0), (2, 25.0), (3, 22.0), (4, 20.0), (5, None)):
        save(writer, step, {} if psnr is None else {"psnr": psnr})

    assert [info.step for info in checkpoints.list_checkpoints(run.url)] == [2, 4, 5]
    assert storage.list_folders(storage.join(run.url, "checkpoints")) == ["0000000002", "0000000004", "0000000005"]
    assert checkpoints.best(run.url, "psnr").step == 2


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "psnr", "kept"),
    [
        (1, 3, [20, 21], [1, 2]),  # fewer than may be kept
        (1, 3, [20, 21, 22, 23, 24], [3, 4, 5]),  # of a run that gets better all the time
        (1, 3, [24, 23, 22, 21, 20], [1, 2, 3, 5]),
        (2, 2, [20, None, None, 21, None, None], [1, 4, 5, 6]),
        (1, 0, [20, 21, 22], [3]),
    ],
)
def test_as_many_of_the_best_are_kept_as_asked_for(tmp_path, keep_last, keep_best, psnr, kept):
    run = toy_run(tmp_path, "a", f"checkpoints.keep_last={keep_last}", f"checkpoints.keep_best={keep_best}")
    writer = CheckpointWriter(run)
    for step, score in enumerate(psnr, start=1):
        save(writer, step, {} if score is None else {"psnr": score})

    assert [info.step for info in checkpoints.list_checkpoints(run.url)] == kept


@pytest.mark.parametrize("fails", ["delete", "delete_tree"])
def test_a_checkpoint_stays_valid_when_an_old_one_cannot_be_deleted(tmp_path, monkeypatch, caplog, fails):
    run = toy_run(tmp_path, "a", "checkpoints.keep_last=1", "checkpoints.keep_best=0")
    writer = CheckpointWriter(run)
    save(writer, 1)
    works, gone = getattr(disk, fails), []

    def refuse(url):
        if "0000000001" in url and not gone:
            assert [info.step for info in checkpoints.list_checkpoints(run.url)][-1:] == [2]
            gone.append(url)
            raise StorageError("away for a moment")
        works(url)

    monkeypatch.setattr(disk, fails, refuse)
    save(writer, 2)

    assert gone
    assert "old checkpoints wait for the next one to be deleted" in caplog.text
    assert checkpoints.latest(run.url).step == 2
    save(writer, 3)
    assert storage.list_folders(storage.join(run.url, "checkpoints")) == ["0000000003"]


def test_where_lower_is_better_the_lowest_is_kept_and_found(tmp_path):
    run = toy_run(tmp_path, "a", "checkpoints.keep_best=1", "checkpoints.metric=l1", "checkpoints.mode=min")
    writer = CheckpointWriter(run)
    for step, l1 in ((1, 3.0), (2, 1.0), (3, 2.0)):
        save(writer, step, {"l1": l1})

    assert [info.step for info in checkpoints.list_checkpoints(run.url)] == [2, 3]
    assert checkpoints.best(run.url, "l1").step == 2


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("psnr@20-30", "max"), ("ssim_grey", "max"), ("edge_precision", "max"),
        ("mae", "min"), ("lpips_vgg@10-20", "min"), ("health/seam_error", "min"), ("generator/l1", "min"),
        ("generator/loss", "min"),
    ],
)  # fmt: skip
def test_the_best_is_the_better_end_of_each_score(run, metric, better):
    writer = CheckpointWriter(run)
    for step, value in ((1, 2.0), (2, 1.0)):
        save(writer, step, {metric: value})

    assert checkpoints.best(run.url, metric).step == {"max": 1, "min": 2}[better]


@pytest.mark.parametrize("metric", ["generator/adversarial", "health/score/discriminator/real", "health/share/g/l1"])
def test_where_no_end_is_known_to_be_better_none_is_guessed(run, writer, metric):
    save(writer, 1, {metric: 20.0})

    with pytest.raises(CheckpointError, match=f"whether more or less {metric} is better is not known; choose a score"):
        checkpoints.best(run.url, metric)
    assert checkpoints.best(run.url, metric, "min").step == 1


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(run, writer, monkeypatch):
    save(writer, 1)

    def stale(folder):
        raise OSError(errno.ESTALE, "Stale file handle", folder)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(StorageError, match=r"checkpoints: cannot be listed \(Stale file handle\)"):
        checkpoints.list_checkpoints(run.url)


def test_the_best_by_an_unknown_score_says_which_scores_there_are(run, writer):
    save(writer, 1, {"psnr": 20.0, "ssim": 0.5})

    with pytest.raises(CheckpointError, match="no checkpoint has lpips; scores there: psnr, ssim"):
        checkpoints.best(run.url, "lpips")


def test_a_folder_of_a_runs_name_does_not_stand_for_the_run(tmp_path, monkeypatch):
    (tmp_path / "here" / "one").mkdir(parents=True)
    (tmp_path / "here" / "pulled").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("INPAINT_ROOT", raising=False)
    storage.write_bytes(str(tmp_path / "here/inpaint-root/runs/one/run.yaml"), b"")

    assert checkpoints.run_url("one", root="/store") == "one"
    assert checkpoints.run_url("one", root="inpaint-root") == "inpaint-root/runs/one"
    assert checkpoints.run_url("one") == "inpaint-root/runs/one"
    assert checkpoints.run_url("pulled") == "pulled"
    assert checkpoints.run_url("absent") == "inpaint-root/runs/absent"


def test_files_that_a_killed_writer_left_in_the_temporary_folder_are_removed_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    killed, other = toy_run(tmp_path, "killed"), toy_run(tmp_path, "other")
    monkeypatch.setattr(tempfile.TemporaryDirectory, "__exit__", lambda *_: None)  # as if it were killed before
    monkeypatch.setattr(tempfile.TemporaryDirectory, "__init__", _kept)
    for run in (killed, other):
        save(CheckpointWriter(run), 1)

    CheckpointWriter(killed)

    (left,) = (tmp_path / "tmp").iterdir()
    assert (left / "run.yaml").read_text().startswith("name: other")


def _kept(self, prefix):
    """A temporary directory that nothing removes."""
    self.name = tempfile.mkdtemp(prefix=prefix)


class Away:
    """A store in which nothing can be written until it is back."""

    def __init__(self, monkeypatch, error=None):
        self.away, self.tries = True, 0
        self.error = error or StorageError("the store does not answer")
        for name in ("upload", "write_bytes"):
            monkeypatch.setattr(disk, name, self.refusing(getattr(disk, name)))

    def refusing(self, function):
        def refused(*arguments, **options):
            if self.away:
                self.tries += 1
                raise self.error
            return function(*arguments, **options)

        return refused


@pytest.mark.usefixtures("_quick")
def test_training_goes_on_while_the_store_is_away_and_the_upload_is_repeated(run, writer, monkeypatch, caplog):
    save(writer, 1)
    store = Away(monkeypatch)

    began = time.monotonic()
    assert writer.save(2, state(2), {})
    while store.tries < 3:
        time.sleep(0.01)
    assert not writer.save(3, state(3), {})  # left out, and said so: step 2 still waits
    assert time.monotonic() - began < 2
    store.away = False
    writer.close()

    assert same(checkpoints.load_state(run.url), state(2))
    assert "checkpoint at step 3 left out" in caplog.text
    assert save(writer, 4)


@pytest.mark.usefixtures("_quick")
def test_a_write_that_begins_to_fail_while_it_is_waited_for_holds_training_up_no_longer(run, writer, monkeypatch):
    store = Away(monkeypatch)
    asked = threading.Event()
    monkeypatch.setattr(disk, "delete", lambda url: asked.wait(10))  # the first thing a write asks of the store
    assert writer.save(1, state(1), {})
    threading.Timer(0.2, asked.set).start()

    assert not writer.save(2, state(2), {})
    store.away = False
    writer.close()

    assert same(checkpoints.load_state(run.url), state(1))


@pytest.mark.usefixtures("_quick")
def test_a_checkpoint_of_which_the_store_kept_only_a_part_is_written_again(run, writer, monkeypatch, caplog):
    upload, shortened = disk.upload, []

    def keep_a_part(source, url, progress):
        upload(source, url, progress)
        if url.endswith("generator.safetensors") and not shortened:
            os.truncate(url, 100)
            shortened.append(url)

    monkeypatch.setattr(disk, "upload", keep_a_part)
    save(writer, 1)

    assert "was written, but the store does not have it whole" in caplog.text
    assert same(checkpoints.load_state(run.url), state(1))


@pytest.mark.usefixtures("_quick")
def test_a_listing_that_lacks_what_was_just_written_deletes_nothing(run, writer, monkeypatch, caplog):
    """As that of a store which shows new objects late; by it every checkpoint would look like remains."""
    save(writer, 1)
    listed, late = disk.list_objects, iter([True])
    monkeypatch.setattr(disk, "list_objects", lambda url: iter(()) if next(late, False) else listed(url))
    save(writer, 2)

    assert "0000000002: was written, but the store does not have it whole" in caplog.text
    assert [info.step for info in checkpoints.list_checkpoints(run.url)] == [1, 2]


@pytest.mark.usefixtures("_quick")
def test_the_last_checkpoint_waits_for_the_store_instead_of_being_left_out(run, writer, monkeypatch):
    store = Away(monkeypatch)
    writer.save(2, state(2), {})
    while store.tries < 2:
        time.sleep(0.01)
    threading.Timer(0.3, lambda: setattr(store, "away", False)).start()

    assert writer.save(3, state(3), {}, may_leave_out=False)
    writer.close()

    assert [info.step for info in checkpoints.list_checkpoints(run.url)] == [2, 3]


def test_in_a_hurry_a_failing_write_is_given_up_soon_whatever_its_patience(run, monkeypatch):
    monkeypatch.setattr(writing, "PAUSE_SECONDS", (0.1, 30.0))
    writer = CheckpointWriter(run, patience_seconds=600)
    store = Away(monkeypatch)
    writer.save(2, state(2), {})
    while store.tries < 5:  # the pause is 1.6 s by now
        time.sleep(0.01)
    began = time.monotonic()
    writer.hurry(0.5)

    with pytest.raises(CheckpointError, match="the store does not answer"):
        writer.close()

    assert time.monotonic() - began < 1.5
    assert store.tries > 6  # tried again at once, and on


@pytest.mark.usefixtures("_quick")
def test_a_store_that_stays_away_ends_the_run_with_its_last_checkpoint_intact(run, monkeypatch):
    writer = CheckpointWriter(run, patience_seconds=0.3)
    save(writer, 1)
    Away(monkeypatch)

    writer.save(2, state(2), {})
    with pytest.raises(CheckpointError, match=r"step 2 could not be written for \d+ s: the store does not answer"):
        writer.close()

    assert same(checkpoints.load_state(run.url), state(1))


@pytest.mark.usefixtures("_quick")
def test_a_full_disk_ends_the_run_with_a_clear_error_and_the_last_checkpoint_intact(run, monkeypatch):
    writer = CheckpointWriter(run, patience_seconds=0.1)
    save(writer, 1)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    writer.save(2, state(2), {})
    with pytest.raises(CheckpointError, match=r"No space left on device.*free space under .* or set TMPDIR"):
        writer.close()

    assert same(checkpoints.load_state(run.url), state(1))


def test_a_process_that_lost_the_run_leaves_no_valid_checkpoint(run):
    rights = iter([None, CheckpointError("taken over")])

    def may_write():
        if error := next(rights):
            raise error

    writer = CheckpointWriter(run, may_write=may_write)
    writer.save(1, state(), {})
    with pytest.raises(CheckpointError, match="taken over"):
        writer.close()

    assert checkpoints.list_checkpoints(run.url) == []


def test_a_checkpoint_written_again_at_the_same_step_replaces_the_first(run, writer):
    save(writer, 1, {"psnr": 1.0})
    save(writer, 1, {"psnr": 2.0})

    (info,) = checkpoints.list_checkpoints(run.url)
    assert info.metrics == {"psnr": 2.0}
    assert json.loads(storage.read_bytes(storage.join(info.url, "metrics.json"))) == {"psnr": 2.0}


def test_an_unknown_format_is_refused_with_what_to_do(run, writer):
    save(writer, 1)
    place = storage.join(checkpoints.latest(run.url).url, "manifest.json")
    storage.write_bytes(place, json.dumps(json.loads(storage.read_bytes(place)) | {"format": 2}).encode())

    with pytest.raises(CheckpointError, match="format 2, this version reads 1; update inpaint"):
        checkpoints.list_checkpoints(run.url)


def test_a_manifest_without_the_sums_of_its_pieces_is_refused_in_plain_words(run, writer):
    save(writer, 1)
    found = checkpoints.latest(run.url)
    place = storage.join(found.url, "manifest.json")
    manifest = json.loads(storage.read_bytes(place))
    for entry in manifest["files"].values():
        del entry["crc32"]
    storage.write_bytes(place, json.dumps(manifest).encode())
    with pytest.raises(CheckpointError, match="not what its manifest says; take another checkpoint"):
        checkpoints.load_state(checkpoints.latest(run.url).url)
