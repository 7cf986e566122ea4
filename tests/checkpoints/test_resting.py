"""A network that a stage leaves as it is: written once for all checkpoints that have it."""

import pytest
import torch

from inpaint import checkpoints, storage
from inpaint.checkpoints import CheckpointWriter
from inpaint.config import load_run
from inpaint.errors import CheckpointError
from inpaint.methods import build_method
from inpaint.training import Trainer
from ray_jobs.toy import toy_run
from tests.methods.test_context_encoder import batch


@pytest.fixture
def run(tmp_path):
    return toy_run(tmp_path, "a", "checkpoints.keep_last=2", "checkpoints.keep_best=0")


def state(step, prior=1.0):
    networks = {"prior": {"weight": torch.full((100,), prior)}, "refiner": {"weight": torch.full((3,), float(step))}}
    return {"networks": networks, "resting": ("prior",), "trainer": {"step": step}}


def save(run, *states):
    writer = CheckpointWriter(run, inference_networks=("prior", "refiner"))
    for given in states:
        writer.save(given["trainer"]["step"], given, {})
        writer.close()


def kept(run):
    return sorted(path.name for path in (storage.local_path(run.url) / "resting").iterdir())


def test_checkpoints_share_one_file_of_it_and_each_comes_back_whole(run):
    save(run, state(1), state(2))
    found = checkpoints.list_checkpoints(run.url)

    assert [info.step for info in found] == [1, 2]
    assert len(kept(run)) == 1
    assert kept(run)[0].startswith(f"prior-{found[0].files['networks/prior.safetensors']['sha256'][:16]}")
    assert not (storage.local_path(found[1].url) / "networks" / "prior.safetensors").exists()
    for info in found:
        networks = checkpoints.load_state(info.url)["networks"]
        assert torch.equal(networks["prior"]["weight"], torch.ones(100))
        assert torch.equal(networks["refiner"]["weight"], torch.full((3,), float(info.step)))


def test_it_goes_with_the_last_checkpoint_that_needs_it(run):
    save(run, state(1, prior=1.0), state(2, prior=2.0), state(3, prior=2.0))

    assert [info.step for info in checkpoints.list_checkpoints(run.url)] == [2, 3]
    assert len(kept(run)) == 1


def test_a_pulled_checkpoint_has_everything_in_its_own_folder(run, tmp_path):
    save(run, state(1))
    folder = checkpoints.pull(run.url, tmp_path / "model", everything=True)
    storage.delete_tree(run.url)

    assert torch.equal(checkpoints.load_state(str(folder))["networks"]["prior"]["weight"], torch.ones(100))


def test_without_it_a_checkpoint_is_not_whole_and_damage_is_found(run):
    save(run, state(1))
    path = storage.local_path(run.url) / "resting" / kept(run)[0]
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"resting/prior-.* is missing or not what its manifest says"):
        checkpoints.load_state(run.url)

    path.unlink()
    assert checkpoints.latest(run.url) is None


def test_what_rests_is_what_the_stage_of_the_last_step_does_not_train():
    stages = [f"stages.{name}.steps=1" for name in ("reconstruct", "local", "global")]
    run = load_run("context-encoder-tiny", assignments=stages)
    trainer = Trainer(build_method(run), run.training, seed=0)
    resting = [trainer.state_dict()["resting"] for _ in trainer.steps([batch()] * 3)]

    assert resting == [("local_discriminator", "global_discriminator"), ("global_discriminator",), ()]
