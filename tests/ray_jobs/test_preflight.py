"""What a dry run finds before anything is trained: one line with what, where and what to do."""

import json

import pytest

from inpaint import storage
from inpaint.checkpoints.records import record
from inpaint.errors import CheckpointError, ConfigError, DataError, StorageError, WeightsError
from ray_jobs import preflight as module
from ray_jobs.preflight import preflight
from ray_jobs.toy import toy_run


@pytest.fixture(autouse=True)
def _two_cpus(monkeypatch):
    monkeypatch.setattr(module, "machine", lambda: {"cpus": 2.0, "gpus": 0.0})


def test_a_sound_run_is_described_and_nothing_is_written(root):
    before = sorted(root.rglob("*"))

    found = preflight(toy_run(root, "sound"), local=True)

    assert found["samples"] == {"train": 24, "held_out": 6}
    assert found["epochs"] == pytest.approx(12 * 4 / 24)
    assert found["continues_at"] is None
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["resources.num_workers=4"], ConfigError, r"4 workers need 4 CPUs, this machine has 2; use fewer --workers"),
        (["resources.gpus_per_worker=1"], ConfigError, r"1 workers need 1 GPUs, this machine has 0"),
        (["data.train=nowhere/shards"], DataError, r"nowhere/shards: no shards with an index here"),
        (["training.global_batch=32"], DataError, r"24 samples do not fill a batch of 32"),
        (["method.weights.style=1", "feature_weights.vgg19=gone.pth"], WeightsError, r"vgg19 weights: gone.pth"),
        (["stages.gan.from=never-trained"], CheckpointError, r"never-trained: no checkpoint here"),
        (["holes={kind: set, url: no-masks, hole: white}"], DataError, r"holes.url: nothing in no-masks"),
        (["tracking.mode=online"], ConfigError, r"needs WANDB_API_KEY"),
        (["holes={kind: strokes, ratio: [0, 0]}"], ConfigError, r"holes: no hole of whole pixels in .*; widen the bin"),
        (["evaluation.protocol=nope"], ConfigError, r"evaluation.protocol: nope is not a protocol; known: inp-v1"),
        (["checkpoints.metric=psrn"], ConfigError, r"checkpoints.metric: the run logs no psrn; did you mean psnr"),
        (["checkpoints.metric=psnr@31-40"], ConfigError, r"the run logs no psnr@31-40; did you mean psnr@.0-.0\?"),
        (["checkpoints.metric=l1"], ConfigError, r"checkpoints.mode max would keep the worst by l1; set it to min"),
        (["health.stop_when={psrn: {below: 3}}"], ConfigError, r"health.stop_when.psrn: the run logs no psrn"),
        (["health={every: 5, stop_when: {health/seam: {above: 1}}}"], ConfigError, r"no health/seam; did you mean"),
        (["health.stop_when={generator/l2: {above: 1}}"], ConfigError, r"no generator/l2; did you mean generator/l1"),
        (["health.stop_when={generator/gradient_norm: {above: 1}}"], ConfigError, r"no generator/gradient_norm"),
        (
            ["health={every: 5, stop_when: {health/score/generator/real: {above: 1}}}"],
            ConfigError,
            r"no health/score/generator/real; did you mean",
        ),
        (["checkpoints.metric=health/seam_error", "health.every=5"], ConfigError, r"worst by health/seam_error"),
        (["checkpoints.metric=mae", "evaluation.protocol=mmagic"], ConfigError, r"the worst by mae; set it to min"),
        (["evaluation.lpips={alex: gone.pth}"], WeightsError, r"--set evaluation.lpips.alex=gone.pth is not a file"),
    ],
)
def test_what_would_stop_a_run_is_said_before_it_starts(root, settings, error, message, monkeypatch):
    monkeypatch.setenv("HOME", str(root))

    with pytest.raises(error, match=message):
        preflight(toy_run(root, "doomed", *settings), local=True)
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    "settings",
    [
        ["checkpoints.metric=anything", "checkpoints.keep_best=0"],
        ["checkpoints.metric=l1@30-40", "checkpoints.mode=min"],
        ["checkpoints.metric=lpips_alex", "checkpoints.mode=min", "evaluation.lpips={alex: present}"],
        ["health={every: 5, stop_when: {health/score/discriminator/real: {above: 9}, generator/l1: {above: 9}}}"],
    ],
)
def test_scores_and_losses_that_a_run_logs_may_choose_checkpoints_and_end_it(root, settings):
    preflight(toy_run(root, "sound", *settings), local=True)


def test_workers_of_a_cluster_need_not_fit_on_this_machine(root):
    preflight(toy_run(root, "wide", "resources.num_workers=4"), local=False)


def test_a_root_below_a_file_cannot_be_written(root):
    (root / "file").write_text("")

    with pytest.raises(StorageError, match="is a file; choose another --root"):
        preflight(toy_run(root / "file", "lost"), local=True)


def test_an_index_that_is_none_is_refused(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "index.json").write_text(json.dumps(["not", "ours"]))

    with pytest.raises(DataError, match="is not an index of shards"):
        preflight(toy_run(root, "foreign", f"data.train={folder}"), local=True)


def test_a_taken_name_is_refused_before_training(root):
    record(toy_run(root, "taken"))

    with pytest.raises(ConfigError, match=r"seed is 0 there and 3 here"):
        preflight(toy_run(root, "taken", "seed=3"), local=True)


def test_a_run_that_goes_on_says_from_where(root):
    run = toy_run(root, "again")
    record(run)
    manifest = {"format": 1, "step": 8, "metrics": {}, "files": {}, "inference_networks": []}
    place = storage.join(run.url, "checkpoints", "0000000008", "manifest.json")
    storage.write_bytes(place, json.dumps(manifest).encode())

    assert preflight(run, local=True)["continues_at"] == 8
