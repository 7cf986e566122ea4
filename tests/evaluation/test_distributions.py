from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from inpaint.errors import EvaluationError, WeightsError
from inpaint.evaluation.distributions import (
    discriminability,
    frechet_distance,
    kernel_distance,
    separating_line,
    set_scores,
)
from inpaint.evaluation.evaluate import evaluate_fillers
from inpaint.evaluation.inception import _architecture, load_feature_networks
from inpaint.evaluation.protocols import PROTOCOLS


def clouds(n=60, width=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)), rng.normal(0.3, 1.4, size=(n + 15, width))


def test_fid_of_a_shifted_copy_is_the_squared_length_of_the_shift():
    a, _ = clouds()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(12 * 0.25)


def test_fid_of_a_scaled_copy_is_the_variance_of_the_difference_of_deviations():
    """For commuting covariances Σ and 4 Σ the trace term is tr Σ (1 - 2)²."""
    a, _ = clouds()
    centred = a - a.mean(axis=0)
    trace = np.cov(centred, rowvar=False).trace()
    assert frechet_distance(centred, 2 * centred) == pytest.approx(trace)


class Flat(nn.Module):
    """Features that are the pixels themselves, as torchmetrics wants a feature network."""

    def forward(self, images):
        return images.flatten(1).double()


def as_images(features):
    return torch.from_numpy(features)[:, :, None, None]


def test_fid_equals_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = clouds()
    theirs = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(12, 1, 1))
    theirs.set_dtype(torch.float64)
    theirs.update(as_images(a), real=True)
    theirs.update(as_images(b), real=False)
    assert frechet_distance(a, b) == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_fid_of_fewer_images_than_features_is_exact_too():
    """Against the definition, with the root taken by eigenvalues of the full product."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(8, 20)), rng.normal(0.2, 2, size=(9, 20))
    sa, sb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.clip(np.linalg.eigvals(sa @ sb).real, 0, None)).sum()
    shift = a.mean(0) - b.mean(0)
    assert frechet_distance(a, b) == pytest.approx(shift @ shift + sa.trace() + sb.trace() - 2 * root, rel=1e-6)


def test_fid_with_population_covariances_is_the_trace_of_the_root_that_scipy_takes():
    """Raw moments divided by n, as MAT's evaluation forms them, and scipy's matrix root."""
    from scipy.linalg import sqrtm

    a, b = clouds(40, 6)
    sa, sb = (x.T @ x / len(x) - np.outer(x.mean(0), x.mean(0)) for x in (a, b))
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(sa + sb - 2 * sqrtm(sa @ sb).real)
    assert frechet_distance(a, b, "population") == pytest.approx(expected)
    assert frechet_distance(a, b) != pytest.approx(expected, rel=1e-3)
    assert PROTOCOLS["mat-2022"].set_scores.covariances == "population"


def test_kid_equals_torchmetrics_when_the_subset_is_the_set():
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = clouds()
    b = b[:60]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = KernelInceptionDistance(feature=Flat(), subsets=2, subset_size=60, normalize=True)
    theirs.update(as_images(a), real=True)
    theirs.update(as_images(b), real=False)
    mean, deviation = kernel_distance(a, b, seed=0)
    assert mean == pytest.approx(theirs.compute()[0].item(), rel=1e-4)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_a_line_that_tells_every_fill_gives_0_and_two_equal_sets_give_a_half_at_most():
    a, _ = clouds(40, 3)
    paired, unpaired = discriminability(a, a + 50)
    assert (paired, unpaired) == (0, 0)
    paired, unpaired = discriminability(a, a)
    assert paired == 0  # equal heights are not higher
    assert unpaired == pytest.approx(0.5)


def test_the_line_is_the_optimum_of_the_squared_hinge():
    """One feature, truths at +1, fills at -1: by symmetry b = 0, and w minimises w² / 2 + 2n (1 - w)²."""
    truth, filled = np.ones((5, 1)), -np.ones((5, 1))
    sides = np.array([1.0] * 5 + [-1.0] * 5)
    assert separating_line(np.concatenate([truth, filled]), sides) == pytest.approx([20 / 21, 0], abs=1e-4)
    one_too_good = np.concatenate([filled[:4], [[1.2]]])  # higher than its own truth, and on the truths' side
    assert discriminability(truth, one_too_good) == (0.2, 0.1)


@pytest.mark.parametrize(("n", "width", "expected"), [(200, 20, (0.22, 0.3825)), (400, 10, (0.31, 0.41875))])
def test_discriminability_is_that_of_scikit_learns_linear_svm(n, width, expected):
    """LinearSVC(dual=False, tol=1e-8) of scikit-learn 1.9.1 on the same numbers, as MAT's evaluation calls it."""
    rng = np.random.default_rng(n)
    truth = rng.normal(size=(n, width))
    assert discriminability(truth, truth + rng.normal(0.15, 1, size=(n, width))) == expected


def test_a_set_below_what_the_protocol_needs_is_marked_with_its_number():
    a, b = clouds()
    found = set_scores(a, b, names=("fid", "kid"), needs=100, seed=0)
    assert {name: score.mark for name, score in found.items()} == {"fid": "fid@60", "kid": "kid@60"}
    assert set_scores(a, b, names=("fid",), needs=60, seed=0)["fid"].mark == ""


def script(path):
    class Colours(nn.Module):
        def forward(self, x):
            return F.adaptive_avg_pool2d(x, 2).flatten(1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Colours()).save(str(path))
    return str(path)


def test_a_pluggable_network_gives_fid_and_kid_in_a_result_with_its_digest_in_the_stamp(tmp_path):
    from PIL import Image

    from inpaint.config.evaluation import EvaluationRequest
    from inpaint.evaluation.baselines import mean_colour
    from inpaint.evaluation.holes import HoleSource
    from inpaint.evaluation.job import finish, prepare, score_missing
    from tests.evaluation.scenes import photographs

    photos = photographs(4, size=32)
    for name in photos.ids:
        Image.fromarray(photos.read(name)).save(tmp_path / f"{name}.png")
    request = EvaluationRequest(
        subject="baseline:mean-colour", data=str(tmp_path), size=32, root=str(tmp_path / "root"), device="cpu",
        features={"tf-port": script(tmp_path / "colours.pt")},
    )  # fmt: skip
    job = prepare(request)
    score_missing(job)
    result = finish(job)
    scores = result.sets["one-shot"]["inp-v1"]
    assert scores["fid"].mark == "fid@4"
    assert result.stamp.protocols["inp-v1"]["metrics"] == {"tf-port": job.inceptions["tf-port"].sha256}
    assert "fid, kid" not in result.absent["inp-v1"]
    without = evaluate_fillers({"mean": mean_colour}, photos, size=32, holes=HoleSource())
    assert without.sets == {"mean": {}}
    assert "--features tf-port=PATH" in without.absent["inp-v1"]["fid, kid"]
    assert scores["fid"].value > 0.001
    assert scores["fid"].value == pytest.approx(_by_hand(photos), rel=1e-4)


def _by_hand(photos):
    """The same FID from fills made here: means of quarters, antialiased to 299 pixels as the protocol says."""
    from inpaint.evaluation.baselines import mean_colour
    from inpaint.evaluation.holes import HoleSource
    from inpaint.evaluation.pairs import make_pairs
    from inpaint.imaging import composite

    holes = HoleSource().open(loading="nearest", size=32)
    truths = {name: torch.from_numpy(photos.read(name).copy()).permute(2, 0, 1)[None] / 255 for name in photos.ids}

    def features(image):
        image = (image * 255).round() / 255
        image = F.interpolate(image, size=(299, 299), mode="bicubic", antialias=True)
        return F.adaptive_avg_pool2d(image, 2).flatten(1)[0].numpy()

    fills = []
    for pair in make_pairs(PROTOCOLS["inp-v1"], photos.ids, holes, seed=0):
        mask = torch.from_numpy(holes.read(pair.mask).copy())[None, None].float()
        truth = truths[pair.image]
        fills.append(features(composite(truth, mean_colour(truth * (1 - mask), mask), mask)))
    return frechet_distance(np.stack([features(truth) for truth in truths.values()]), np.stack(fills))


def test_the_tensorflow_port_averages_over_what_lies_inside_and_ends_with_a_maximum():
    """Against the two pools written out, on the blocks' own convolutions."""
    model = _architecture("tf-port").eval()
    x = torch.rand(1, 192, 6, 6, generator=torch.Generator().manual_seed(0))
    block = model.Mixed_5b
    inside = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    for part in (block.branch_pool.conv, block.branch_pool.bn):
        inside = part(inside)
    assert torch.allclose(block(x)[:, -32:], F.relu(inside), atol=1e-6)
    x = torch.rand(1, 2048, 3, 3, generator=torch.Generator().manual_seed(1))
    block = model.Mixed_7c
    assert torch.allclose(block(x)[:, -192:], block.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1)), atol=1e-6)


@pytest.mark.parametrize(
    ("source", "sha256", "message"),
    [
        ("/nowhere/i.pth", {}, "^--features tf-port=/nowhere/i.pth is not a file; give --features tf-port=SOURCE, "),
        ("torchvision", {}, "^--features tf-port=torchvision: torchvision has none; give --features tf-port="),
        ("random", {"tf-port": "00ff"}, "^--features tf-port=random: .* sha256 00ff has no effect; leave it out"),
    ],
)
def test_a_source_that_cannot_be_used_is_named_as_it_was_given(source, sha256, message):
    with pytest.raises(WeightsError, match=message):
        load_feature_networks({"tf-port": source}, device="cpu", sha256=sha256)


def test_fid_of_one_image_is_refused_before_anything_is_scored(tmp_path):
    from PIL import Image

    from inpaint.config.evaluation import EvaluationRequest
    from inpaint.evaluation.job import prepare

    Image.new("RGB", (32, 32)).save(tmp_path / "only.png")
    sources = {"tf-port": script(tmp_path / "colours.pt")}
    root = tmp_path / "root"
    asked = {"subject": "baseline:mean-colour", "data": str(tmp_path), "size": 32, "root": str(root), "device": "cpu"}
    with pytest.raises(EvaluationError, match=r"inp-v1: fid, kid of 1 image; a set has at least 2"):
        prepare(EvaluationRequest(**asked, features=sources))
    assert not root.exists()


def test_wrong_feature_files_are_refused_by_name(tmp_path):
    with pytest.raises(EvaluationError, match="known: torchvision, tf-port, nvidia"):
        load_feature_networks({"inception": "x"}, device="cpu")
    path = script(tmp_path / "colours.pt")
    with pytest.raises(WeightsError, match="expected 00ff"):
        load_feature_networks({"tf-port": path}, device="cpu", sha256={"tf-port": "00ff"})
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="has no Conv2d_1a_3x3"):
        load_feature_networks({"tf-port": str(tmp_path / "other.pth")}, device="cpu")
    with pytest.raises(WeightsError, match="not TorchScript"):
        load_feature_networks({"nvidia": str(tmp_path / "other.pth")}, device="cpu")
