"""A method's own scores stand beside PSNR in the scores during training."""

import numpy as np
import pytest
import torch
from PIL import Image

from inpaint.config import load_run
from inpaint.evaluation import TrainingEvaluator
from inpaint.methods import build_method
from tests.evaluation.scenes import photographs


@pytest.fixture
def held_out(tmp_path):
    pictures = photographs(count=12, size=64)
    for number, name in enumerate(pictures.ids):
        pixels = pictures.read(name).copy()
        pixels[10:50, 20 + number : 24 + number] = 255 * (np.arange(40) % 2)[:, None, None]  # something with edges
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def evaluator(held_out):
    given = [f"data.held_out={held_out}", "data.image_size=64", "evaluation.images=12"]
    run = load_run("edge-texture-tiny", assignments=given)
    torch.manual_seed(0)
    return TrainingEvaluator(run, "cpu"), build_method(run)


def test_edge_precision_and_recall_are_means_of_the_methods_scores_on_the_true_images(held_out):
    score, method = evaluator(held_out)
    seen = []

    def scores(image, mask):
        seen.append(image)
        values = torch.full((len(image),), 0.25)
        return {"edge_precision": values, "edge_recall": values * float("nan")}

    method.scores = scores
    found = score(method, 0, 1)

    assert found["edge_precision"] == 0.25
    assert "edge_recall" not in found  # no image had a value
    assert "psnr" in found
    truths = {np.asarray(Image.open(path)).tobytes() for path in held_out.glob("*.png")}
    for image in torch.cat(seen):  # what is scored is the whole photograph, not its holed version
        assert (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().tobytes() in truths


def test_a_freshly_drawn_edge_generator_has_a_precision_and_a_recall(held_out):
    score, method = evaluator(held_out)
    found = score(method, 0, 1)

    assert 0 <= found["edge_precision"] <= 1
    assert 0 <= found["edge_recall"] <= 1
