"""A worker in plain Python: it resumes exactly, stops when asked, goes back when a loss is not finite."""

import json
import logging

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from inpaint import checkpoints, storage
from inpaint.checkpoints import CheckpointWriter
from inpaint.config import RunConfig, load_run
from inpaint.errors import CheckpointError, ConfigError, DataError, UnhealthyError
from inpaint.methods import build_method
from inpaint.training import NotFiniteError, Trainer
from ray_jobs import stopping
from ray_jobs.resuming import resume, warm_start
from ray_jobs.session import PlainSession
from ray_jobs.toy import toy_run
from ray_jobs.verdict import MENDABLE
from ray_jobs.worker import _Worker, train
from tests.faulty_s3 import shared_server


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    """History and weight checksums of a toy run that nothing happens to."""
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "shards").symlink_to(shards / "shards")
    run = toy_run(root, "calm")
    train(run, PlainSession())
    return outcome(run.url)


def outcome(url):
    """What must not depend on how often a run was killed: its history file and its last weights."""
    last = checkpoints.latest(url)
    weights = {name: entry["sha256"] for name, entry in last.files.items() if name.startswith("networks/")}
    return storage.read_bytes(storage.join(url, "history.jsonl")), last.step, weights


class Asks:
    """Asks a run to stop at the n-th question."""

    def __init__(self, at, reason="stopped"):
        self.left, self.reason = at, reason

    def __call__(self):
        self.left -= 1
        return self.reason if self.left == 0 else None


@pytest.fixture
def _asked_every_step(monkeypatch):
    monkeypatch.setattr(stopping, "ASK_EVERY_SECONDS", 0.0)


def test_a_run_trains_to_its_end_and_keeps_its_scores(undisturbed):
    history, step, weights = undisturbed
    rows = [json.loads(line) for line in history.splitlines()]

    assert step == 12
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows if "psnr" in row] == [4, 8, 12]
    assert set(weights) == {"networks/generator.safetensors", "networks/discriminator.safetensors"}


@pytest.mark.usefixtures("_asked_every_step")
@pytest.mark.parametrize("reason", ["stopped", "preempted"])
def test_a_run_stopped_between_checkpoints_goes_on_bit_for_bit(root, undisturbed, reason):
    run = toy_run(root, "halted")

    first = train(run, PlainSession(stop=Asks(6, reason)))
    second = train(run, PlainSession())

    assert (first["reason"], first["step"]) == (reason, 7)
    assert second["reason"] == "finished"
    assert outcome(run.url) == undisturbed


@pytest.mark.usefixtures("_asked_every_step")
def test_the_stop_mark_in_the_store_stops_a_run_with_a_checkpoint(root, monkeypatch):
    run = toy_run(root, "marked", "stages.gan.steps=100000")
    monkeypatch.setattr("ray_jobs.worker.StopMark", lambda url: stopping.StopMark(url, every_seconds=0.02))
    storage.write_bytes(storage.join(run.url, "stop"), b"{}")

    result = train(run, PlainSession())

    assert result["reason"] == "stopped"
    assert checkpoints.latest(run.url).step == result["step"] < 1000


def test_two_starts_are_two_entries_in_the_provenance(root):
    run = toy_run(root, "twice")
    train(run, PlainSession(), provenance={"inpaint": "x"})
    train(run, PlainSession(), provenance={"inpaint": "x"})

    starts = json.loads(storage.read_bytes(storage.join(run.url, "provenance.json")))["starts"]

    assert [start["from_step"] for start in starts] == [0, 12]


def test_a_name_is_refused_to_a_run_with_other_settings_and_says_which(root):
    train(toy_run(root, "taken"), PlainSession())

    with pytest.raises(ConfigError, match=r"seed is 0 there and 1 here.*--name"):
        train(toy_run(root, "taken", "seed=1"), PlainSession())


def test_what_does_not_change_the_result_may_change_when_a_run_goes_on(root):
    train(toy_run(root, "free"), PlainSession())

    again = train(toy_run(root, "free", "data.decode_threads=1", "checkpoints.keep_best=0"), PlainSession())

    assert again["step"] == 12


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(root, undisturbed, caplog):
    run = toy_run(root, "damaged", "checkpoints.keep_last=3")
    train(run, PlainSession())
    newest = checkpoints.latest(run.url)
    weights = storage.local_path(storage.join(newest.url, "networks", "generator.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")

    train(run, PlainSession())

    assert "is missing or not what its manifest says" in caplog.text
    assert outcome(run.url) == undisturbed


def test_what_one_rank_cannot_read_all_ranks_pass_over(root, monkeypatch):
    run = toy_run(root, "two-ranks", "checkpoints.keep_last=3", "evaluation.every=1000")
    train(run, PlainSession())
    steps = [info.step for info in checkpoints.list_checkpoints(run.url)]
    answers = iter([0, 1])  # of the other rank, which misses the newest one

    monkeypatch.setattr(dist, "all_reduce", lambda held: held.add_(next(answers)))
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box, **_: None)
    trainer = Trainer(build_method(run), run.training, seed=run.seed, device=torch.device("cpu"))
    position, passed_over = resume(run, trainer, PlainSession(world_size=2))

    assert position is not None
    assert trainer.step == steps[-2] < steps[-1]
    assert passed_over == {checkpoints.latest(run.url).url}


def test_checkpoints_that_a_store_did_not_show_at_the_start_are_not_replaced(root, monkeypatch):
    run = toy_run(root, "unseen")
    train(run, PlainSession())
    before = outcome(run.url)

    with monkeypatch.context() as blind:
        blind.setattr(checkpoints, "list_checkpoints", lambda url: [])
        with pytest.raises(CheckpointError, match=r"was not to be seen when this run began, .* start it again") as seen:
            train(run, PlainSession())
    assert isinstance(seen.value, MENDABLE)  # KubeRay's next cluster starts it again

    assert outcome(run.url) == before
    assert train(run, PlainSession())["step"] == 12


def test_nothing_is_trained_over_checkpoints_that_cannot_be_read(root):
    run = toy_run(root, "ruined", "stages.gan.steps=4")
    train(run, PlainSession())
    weights = storage.local_path(storage.join(checkpoints.latest(run.url).url, "trainer.pt"))
    weights.write_bytes(b"x" * weights.stat().st_size)

    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        train(run, PlainSession())


def test_a_run_does_not_go_on_with_other_shards(root, tmp_path_factory):
    run = toy_run(root, "moved")
    train(run, PlainSession())
    other = tmp_path_factory.mktemp("other")
    from ray_jobs.toy import write_toy_shards

    write_toy_shards(other, train=20)

    with pytest.raises(DataError, match="the shards are others"):
        train(toy_run(root, "moved", f"data.train={other}/shards/toy/train"), PlainSession())


def test_training_goes_on_while_the_object_store_is_away_and_nothing_is_lost(shards, undisturbed, monkeypatch, caplog):
    store, sent, back = shared_server().forget(), [], []
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    monkeypatch.setattr("inpaint.storage.retries.BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr("inpaint.checkpoints.writing.PAUSE_SECONDS", (0.01, 0.05))
    data = f"{shards}/shards/toy"
    run = toy_run("s3://lab/x", "away", f"data.train={data}/train", f"data.held_out={data}/test")

    def answer():
        sent.append(1)
        return 503 if len(sent) > 4 and not back else None  # run.yaml, provenance, two files of the first checkpoint

    def returns(metrics):
        if metrics["step"] == 10:
            back.append(1)

    store.on_put = answer
    train(run, PlainSession(on_report=returns))

    assert "checkpoint at step 4: s3://lab/x/runs/away/checkpoints/0000000004" in caplog.text  # and then tried again
    assert outcome(run.url) == undisturbed


class Poison:
    """Makes the loss of chosen batches not a number, by the number of the step that would see them first."""

    def __init__(self, monkeypatch, *, at):
        from inpaint.data import stream

        opened = stream.open_stream

        def open_stream(run, *, start, **options):
            inner = opened(run, start=start, **options)
            inner.numbers = iter(range(start + 1, 10**9))
            return Poisoned(inner, at)

        monkeypatch.setattr("ray_jobs.worker.open_stream", open_stream)


class Poisoned:
    def __init__(self, inner, at):
        self.inner, self.at = inner, at

    def __iter__(self):
        from dataclasses import replace

        for number, batch in zip(self.inner.numbers, self.inner, strict=False):
            yield replace(batch, image=batch.image * torch.nan) if number in self.at else batch

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint_whole(root, monkeypatch):
    Poison(monkeypatch, at={6})
    run = toy_run(root, "stops")

    message = r"step 6: stage gan, update discriminator: \w+ is not finite; .* or set training.not_finite: rollback"
    with pytest.raises(NotFiniteError, match=message):
        train(run, PlainSession())

    assert checkpoints.latest(run.url).step == 4
    assert all(t.isfinite().all() for n in checkpoints.load_state(run.url)["networks"].values() for t in n.values())


def test_a_rollback_goes_back_and_passes_over_the_bad_batch(root, monkeypatch):
    Poison(monkeypatch, at={6})
    run = toy_run(root, "rolls", "training.not_finite=rollback")

    result = train(run, PlainSession())

    state = checkpoints.load_state(run.url)
    assert result["step"] == 12
    assert (state["position"]["skipped"], state["position"]["rollbacks"]) == (2, 1)  # batches 5 and 6 after step 4
    steps = [row["step"] for row in checkpoints.read_history(run.url)]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_bad_batches_before_the_next_checkpoint_are_passed_over_one_after_the_other(root, monkeypatch):
    Poison(monkeypatch, at={6, 8})
    run = toy_run(root, "twice-back", "training.not_finite=rollback", "training.max_rollbacks=2")

    train(run, PlainSession())

    position = checkpoints.load_state(run.url)["position"]
    assert (position["skipped"], position["rollbacks"]) == (4, 2)  # batches 5 to 8, from the checkpoint at step 4


def test_a_run_killed_right_after_a_rollback_remembers_it(root, monkeypatch, caplog):
    Poison(monkeypatch, at={6})
    settings = ("training.not_finite=rollback", "training.max_rollbacks=1")
    undisturbed = toy_run(root, "went-back", *settings)
    train(undisturbed, PlainSession())
    run = toy_run(root, "killed-then", *settings)
    warn = logging.Logger.warning

    def die(self, text, *arguments, **options):
        if "passing over" in text:  # the last word of a rollback
            raise KeyboardInterrupt
        warn(self, text, *arguments, **options)

    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(logging.Logger, "warning", die)
        with pytest.raises(KeyboardInterrupt):
            train(run, PlainSession())
    assert checkpoints.latest(run.url).step == 4

    train(run, PlainSession())

    assert "passing over" not in caplog.text  # the bad batch is not seen again
    assert json.loads(storage.read_bytes(storage.join(run.url, "rollback.json")))["rollbacks"] == 1
    assert outcome(run.url) == outcome(undisturbed.url)
    position = checkpoints.load_state(run.url)["position"]
    assert (position["skipped"], position["rollbacks"]) == (2, 1)


def test_more_rollbacks_than_allowed_end_the_run_which_says_how_often_it_went_back(root, monkeypatch):
    Poison(monkeypatch, at={6, 8, 10})
    run = toy_run(root, "gives-up", "training.not_finite=rollback", "training.max_rollbacks=2")

    with pytest.raises(NotFiniteError, match=r"is not finite; the run went back 2 times \(training.max_") as caught:
        train(run, PlainSession())
    assert "not_finite: rollback" not in str(caught.value)  # that is what it did


def test_a_run_that_cannot_go_back_yet_says_so(root, monkeypatch):
    Poison(monkeypatch, at={3})  # the first checkpoint comes after step 4
    run = toy_run(root, "too-early", "training.not_finite=rollback")

    with pytest.raises(NotFiniteError, match=r"is not finite; there is no checkpoint to go back to yet; ") as caught:
        train(run, PlainSession())
    assert "not_finite: rollback" not in str(caught.value)
    assert caught.value.step == 3


@pytest.mark.usefixtures("_asked_every_step")
def test_a_checkpoint_is_on_its_way_before_samples_are_drawn(root, monkeypatch):
    """A node that goes away may leave no time for both."""
    seen = []
    save, show = CheckpointWriter.save, _Worker._show
    monkeypatch.setattr(CheckpointWriter, "save", lambda *a, **k: seen.append(("saved", a[1])) or save(*a, **k))
    monkeypatch.setattr(_Worker, "_show", lambda worker, step: seen.append(("shown", step)) or show(worker, step))

    train(toy_run(root, "going", "tracking.images_every=1"), PlainSession(stop=Asks(2, "preempted")))

    assert [step for what, step in seen if what == "shown"] == [1, 2, 3]
    assert seen[-2:] == [("saved", 3), ("shown", 3)]


def test_a_stage_starts_from_another_runs_weights_and_says_so(root):
    source = toy_run(root, "source", "stages.gan.steps=4")
    train(source, PlainSession())
    run = toy_run(root, "target", "stages.gan.from=source", "stages.gan.steps=1", "checkpoints.every=1")
    seen = {}
    original = Trainer.steps

    def steps(self, batches):
        seen.update({k: v.clone() for k, v in self.method.networks()["generator"].state_dict().items()})
        yield from original(self, batches)

    Trainer.steps = steps
    try:
        train(run, PlainSession())
    finally:
        Trainer.steps = original

    expected = checkpoints.load_state(source.url)["networks"]["generator"]
    assert all(torch.equal(seen[name], tensor) for name, tensor in expected.items())
    (start,) = json.loads(storage.read_bytes(storage.join(run.url, "provenance.json")))["starts"]
    assert start["warm_start"]["generator"] == checkpoints.latest(source.url).url


def test_ranks_start_from_the_one_checkpoint_that_rank_0_found_although_the_source_trains_on(root, monkeypatch):
    source = toy_run(root, "source", "checkpoints.keep_last=3")
    train(source, PlainSession())
    older, newest = checkpoints.list_checkpoints(source.url)[-2:]
    run = toy_run(root, "target", "stages.gan.from=source")
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box, **_: box.__setitem__(0, {"source": older}))

    method = build_method(run)
    loaded = warm_start(run, method, PlainSession(rank=1, world_size=2))

    expected = checkpoints.load_state(older.url)["networks"]["generator"]
    found = method.networks()["generator"].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert loaded["generator"] == older.url != newest.url


def test_a_start_from_another_runs_weights_reads_no_optimizer_state(root):
    source = toy_run(root, "source", "stages.gan.steps=4")
    train(source, PlainSession())
    rest = storage.local_path(storage.join(checkpoints.latest(source.url).url, "trainer.pt"))
    rest.write_bytes(b"x" * rest.stat().st_size)  # nobody looks at it
    run = toy_run(root, "target", "stages.gan.from=source")

    assert warm_start(run, build_method(run), PlainSession())["generator"] == checkpoints.latest(source.url).url


def test_a_stage_that_starts_from_a_run_of_another_width_is_refused(root):
    train(toy_run(root, "narrow", "stages.gan.steps=4"), PlainSession())

    with pytest.raises(CheckpointError, match="generator does not fit"):
        train(toy_run(root, "wide", "stages.gan.from=narrow", "method.width=8"), PlainSession())


def test_health_is_logged_on_request_and_changes_no_weight(root, undisturbed):
    run = toy_run(root, "looked-at", "health.every=4")
    train(run, PlainSession())

    rows = checkpoints.read_history(run.url)

    assert [row["step"] for row in rows if "health/seam_error" in row] == [4, 8, 12]
    assert outcome(run.url)[1:] == undisturbed[1:]


def _rank(rank, rendezvous, run):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    train(RunConfig.model_validate(run), PlainSession(rank=rank, world_size=2))
    dist.destroy_process_group()


def test_a_look_at_health_takes_the_batch_statistics_of_all_ranks(root, tmp_path):
    """The context encoder's batch norm adds up over ranks: one that looked alone would wait for the others."""
    run = load_run("context-encoder-tiny", assignments=[
        "name=together", f"root={root}", "data.dataset=toy", "resources.num_workers=2", "health.every=2",
        "stages.reconstruct.steps=2", "stages.local.steps=2", "stages.global.steps=2", "training.global_batch=4",
        "evaluation.every=100", "checkpoints.every=100", "training.log_every=1", "tracking.mode=disabled",
    ])  # fmt: skip

    mp.spawn(_rank, args=(str(tmp_path / "rendezvous"), run.to_dict()), nprocs=2)

    rows = checkpoints.read_history(run.url)
    assert [row["step"] for row in rows if "health/hole_error" in row] == [2, 4, 6]


def test_a_value_beyond_its_bound_so_many_times_ends_the_run(root):
    rule = "health.stop_when={health/hole_error: {above: 0.0, times: 2}}"
    run = toy_run(root, "unwell", "health.every=2", rule)

    message = r"step 4: health/hole_error was 0\.\d+, outside -inf to 0, 2 times in a row"
    with pytest.raises(UnhealthyError, match=message):
        train(run, PlainSession())


def test_a_bound_on_what_only_a_later_stage_logs_waits_for_that_stage(root):
    run = load_run("context-encoder-tiny", assignments=[
        "name=later", f"root={root}", "data.dataset=toy", "training.global_batch=4", "tracking.mode=disabled",
        "stages.reconstruct.steps=2", "stages.local.steps=2", "stages.global.steps=0", "training.log_every=1",
        "evaluation.every=1", "checkpoints.every=100", "health.stop_when={generator/local: {below: 1000, times: 2}}",
    ])  # fmt: skip

    with pytest.raises(UnhealthyError, match=r"step 4: generator/local was .*, outside 1000 to inf, 2 times in a row"):
        train(run, PlainSession())


def test_keeping_the_best_by_a_score_that_is_never_computed_is_an_error(root):
    with pytest.raises(ConfigError, match=r"checkpoints.metric: psnrr is not scored; did you mean psnr\?"):
        train(toy_run(root, "unscored", "checkpoints.metric=psnrr"), PlainSession())
