"""Pulling a checkpoint: only what is needed, checked, and continued after an interruption."""

import pytest
import torch
from typer.testing import CliRunner

from inpaint import checkpoints, storage
from inpaint.checkpoints import CheckpointWriter
from inpaint.cli import app
from inpaint.config import load_run
from inpaint.errors import CheckpointError, ConfigError, StorageError
from inpaint.methods import build_method
from ray_jobs.toy import toy_run


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint of its freshly initialised method."""
    run = toy_run(tmp_path, "a")
    method = build_method(run)
    writer = CheckpointWriter(run, inference_networks=method.inference_networks())
    networks = {name: network.state_dict() for name, network in method.networks().items()}
    writer.save(5, {"networks": networks, "trainer": {"step": 5}}, {"psnr": 20.0})
    writer.close()
    return run


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_pull_brings_what_filling_needs_and_no_more(run, tmp_path):
    folder = checkpoints.pull(run.url, tmp_path / "model")

    assert files_in(folder) == ["manifest.json", "metrics.json", "networks/generator.safetensors", "run.yaml"]


def test_a_pull_of_everything_can_be_trained_on(run, tmp_path):
    folder = checkpoints.pull(run.url, tmp_path / "model", everything=True)

    assert set(checkpoints.load_state(str(folder))["networks"]) == {"generator", "discriminator"}


def test_a_pulled_checkpoint_fills_as_the_trained_method_does(run, tmp_path):
    image, mask = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)

    pulled = checkpoints.load_method(checkpoints.pull(run.url, tmp_path / "model"))
    stored = checkpoints.load_method(run.url)

    with torch.no_grad():
        assert torch.equal(pulled.inpaint(image, mask), stored.inpaint(image, mask))
    assert not pulled.training


def test_a_checkpoint_before_the_stage_that_trains_what_fills_is_loaded_with_a_warning(tmp_path, caplog):
    run = load_run("edge-texture-tiny", root=str(tmp_path))
    writer = CheckpointWriter(run, inference_networks=("edge_generator", "texture_generator"))
    networks = {name: network.state_dict() for name, network in build_method(run).networks().items()}
    writer.save(1, {"networks": networks, "trainer": {"step": 1}}, {})
    writer.close()

    checkpoints.load_method(run.url)

    assert "nothing has trained texture_generator yet" in caplog.text


def test_loading_a_method_leaves_the_random_numbers_alone(run):
    before = torch.get_rng_state()

    checkpoints.load_method(run.url)

    assert torch.equal(torch.get_rng_state(), before)


def test_progress_ends_at_the_whole(run, tmp_path):
    seen = []
    checkpoints.pull(run.url, tmp_path / "model", progress=lambda done, total: seen.append((done, total)))

    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_broken_off_pull_over_another_checkpoint_is_not_taken_for_that_one(run, tmp_path, monkeypatch):
    folder = checkpoints.pull(run.url, tmp_path / "model")
    method = build_method(toy_run(tmp_path, "b", "seed=1"))
    networks = {name: network.state_dict() for name, network in method.networks().items()}
    writer = CheckpointWriter(run, inference_networks=method.inference_networks())
    writer.save(6, {"networks": networks, "trainer": {"step": 6}}, {})
    writer.close()
    monkeypatch.setattr(storage, "download", lambda *_, **__: (_ for _ in ()).throw(StorageError("connection lost")))

    with pytest.raises(StorageError, match="connection lost"):
        checkpoints.pull(run.url, folder)

    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoints.load_method(folder)


def test_a_checkpoint_may_be_pulled_into_its_own_folder(run, tmp_path):
    folder = checkpoints.pull(run.url, tmp_path / "model")

    checkpoints.pull(str(folder), folder)

    checkpoints.load_method(folder)


def test_a_broken_off_pull_is_not_taken_for_whole_and_goes_on_where_it_was(run, tmp_path, monkeypatch):
    download, fetched, faults = storage.download, [], ["connection lost"]

    def breaking(url, path, **options):
        if url.endswith(".safetensors") and faults:
            raise StorageError(faults.pop())
        fetched.append(storage.name_of(url))
        download(url, path, **options)

    monkeypatch.setattr(storage, "download", breaking)
    with pytest.raises(StorageError, match="connection lost"):
        checkpoints.pull(run.url, tmp_path / "model")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoints.load_method(tmp_path / "model")
    fetched.clear()
    checkpoints.pull(run.url, tmp_path / "model")

    assert "generator.safetensors" in fetched
    assert "metrics.json" not in fetched  # it was there and whole


def test_a_damaged_file_in_the_folder_is_fetched_again(run, tmp_path):
    folder = checkpoints.pull(run.url, tmp_path / "model")
    weights = folder / "networks" / "generator.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\x00")

    checkpoints.pull(run.url, folder)

    assert weights.read_bytes() == whole


def test_a_file_that_is_not_what_the_manifest_says_is_refused(run, tmp_path):
    path = storage.local_path(checkpoints.latest(run.url).url) / "networks" / "generator.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises((CheckpointError, StorageError), match="generator.safetensors"):
        checkpoints.pull(run.url, tmp_path / "model")
    assert not (tmp_path / "model" / "manifest.json").exists()


def test_settings_that_were_altered_beside_the_weights_are_refused(run, tmp_path):
    folder = checkpoints.pull(run.url, tmp_path / "model")
    settings = (folder / "run.yaml").read_text()
    (folder / "run.yaml").write_text(settings.replace("\n  width: 4\n", "\n  width: 8\n"))

    with pytest.raises(CheckpointError, match="run.yaml is missing or not what its manifest says"):
        checkpoints.load_method(folder)


def test_a_file_in_the_place_of_the_folder_is_refused(run, tmp_path):
    (tmp_path / "model").write_text("mine")

    with pytest.raises(ConfigError, match="model is a file; a checkpoint needs a folder"):
        CliRunner().invoke(app, ["pull", run.url, "-o", str(tmp_path / "model")], catch_exceptions=False)
