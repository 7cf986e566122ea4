"""Scoring while training: fixed pairs, the same number on one rank and on two, the method left as it was."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from PIL import Image

from inpaint.config import load_run
from inpaint.errors import DataError, EvaluationError
from inpaint.evaluation import TrainingEvaluator
from inpaint.evaluation.evaluate import evaluate_fillers
from inpaint.evaluation.pictures import open_pictures
from inpaint.methods import build_method
from tests.evaluation.scenes import photographs

SETTINGS = ("data.image_size=32", "method.width=4", "method.discriminator_width=4", "resources.num_workers=1")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held-out")
    photos = photographs(20, size=40)
    for name in photos.ids:
        Image.fromarray(photos.read(name)).save(folder / f"{name}.png")
    return str(folder)


def run_of(held_out, *more):
    return load_run("tiny", assignments=[*SETTINGS, f"data.held_out={held_out}", "evaluation.images=18", *more])


def method_of(run):
    torch.manual_seed(3)
    return build_method(run)


def test_scores_are_those_of_the_evaluation_of_the_same_pairs_by_bin(held_out):
    run = run_of(held_out)
    method = method_of(run)
    scores = TrainingEvaluator(run, "cpu")(method, 0, 1)
    bins = ("1-10", "10-20", "20-30", "30-40", "40-50", "50-60", "20-40", "40-60")
    assert set(scores) == {f"{c}{b}" for c in ("psnr", "ssim", "l1") for b in ("", *(f"@{name}" for name in bins))}
    method.eval()
    whole = evaluate_fillers({"": method.inpaint}, open_pictures(held_out), size=32, limit=18)
    table = whole.tables[""]["inp-v1"]
    assert scores["psnr"] == table["all"]["psnr"].mean
    assert scores["l1@30-40"] == table["30-40"]["l1"].mean


def test_the_method_is_scored_in_evaluation_mode_and_given_back_as_it_came_with_the_same_random_state(held_out):
    run = run_of(held_out)
    method, evaluator = method_of(run), TrainingEvaluator(run, "cpu")
    before = {name: value.clone() for name, value in method.state_dict().items()}
    state = torch.get_rng_state()
    method.train()
    first, second = evaluator(method, 0, 1), evaluator(method, 0, 1)
    assert first == second
    assert method.training
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def _rank(rank, world_size, folder, held_out, answers):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    run = run_of(held_out)
    answers.put(TrainingEvaluator(run, "cpu")(method_of(run), rank, world_size))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_share_the_work_and_both_get_the_scores_of_one_to_the_last_digit(held_out, tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    os.environ["OMP_NUM_THREADS"] = "1"
    ranks = [context.Process(target=_rank, args=(r, 2, str(tmp_path), held_out, answers)) for r in range(2)]
    for rank in ranks:
        rank.start()
    scores = [answers.get(timeout=120) for _ in ranks]
    for rank in ranks:
        rank.join()
    run = run_of(held_out)
    alone = TrainingEvaluator(run, "cpu")(method_of(run), 0, 1)
    assert scores == [alone, alone]


@pytest.mark.parametrize(("share", "low", "high"), [(0.5, 8, 24), (0.25, 12, 20)])
def test_a_run_of_centred_squares_is_scored_under_its_own(held_out, share, low, high):
    holes = f"holes={{kind: centre, share: {share}}}"
    run = load_run("tiny", assignments=[*SETTINGS, f"data.held_out={held_out}", "evaluation.images=3", holes])
    evaluator, seen = TrainingEvaluator(run, "cpu"), []
    method = method_of(run)
    inpaint = method.inpaint
    method.inpaint = lambda image, mask: seen.append(mask) or inpaint(image, mask)
    scores = evaluator(method, 0, 1)
    assert set(scores) == {"psnr", "ssim", "l1"}
    assert all(mask[:, :, low:high, low:high].all() and mask.mean() == share**2 for mask in seen)


def test_no_held_out_set_or_no_such_protocol_stops_before_training(held_out):
    with pytest.raises((DataError, EvaluationError), match="no such folder|no .*here"):
        TrainingEvaluator(run_of(held_out, "data.held_out=/nowhere/at/all"), "cpu")
    with pytest.raises(EvaluationError, match="inp-v2 is not a protocol; did you mean inp-v1"):
        TrainingEvaluator(run_of(held_out, "evaluation.protocol=inp-v2"), "cpu")


def test_lpips_is_scored_where_its_weights_are_and_true_images_are_looked_at_once(held_out, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))  # where torchvision has left nothing
    run = run_of(held_out, "evaluation.lpips={squeeze: random, alex: present}")
    method, evaluator = method_of(run), TrainingEvaluator(run, "cpu")
    network = evaluator.networks.present["lpips_squeeze"]
    seen = []
    network.model.net.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    first = evaluator(method, 0, 1)
    images = sum(seen)
    second = evaluator(method, 0, 1)
    assert first["lpips_squeeze"] > 0
    assert first == second
    assert "lpips_alex" not in first
    assert sum(seen) - images == 18 * 6  # the fills of six bins alone

    method.eval()
    whole = evaluate_fillers(
        {"": method.inpaint}, open_pictures(held_out), size=32, limit=18, lpips={"squeeze": "random"}
    )
    assert first["lpips_squeeze"] == pytest.approx(whole.tables[""]["inp-v1"]["all"]["lpips_squeeze"].mean, rel=1e-6)
