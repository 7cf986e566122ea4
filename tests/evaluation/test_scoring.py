from __future__ import annotations

import numpy as np
import pytest
import torch

from inpaint.errors import EvaluationError
from inpaint.evaluation.baselines import mean_colour
from inpaint.evaluation.evaluate import evaluate_fillers
from inpaint.evaluation.holes import HoleSource
from inpaint.evaluation.metrics import METRICS, Comparison
from inpaint.evaluation.plan import make_plan
from inpaint.evaluation.protocols import PROTOCOLS
from inpaint.evaluation.scoring import anonymous, score_images
from inpaint.evaluation.stamp import check_comparable
from inpaint.imaging import composite
from tests.evaluation.scenes import photographs

PIXEL_PROTOCOLS = [name for name in PROTOCOLS if name != "ce-128"]


def dark(image, mask):
    return torch.full_like(image, 0.25)


def test_all_protocols_are_scored_in_one_pass_and_each_distinct_hole_is_filled_once():
    filled = []

    def fill(image, mask):
        filled.extend((image[i].sum().item(), mask[i].sum().item()) for i in range(len(image)))
        return dark(image, mask)

    result = evaluate_fillers({"dark": fill}, photographs(2), protocols=PIXEL_PROTOCOLS, size=64, limit=2)
    assert len(filled) == 2 * 6  # two photographs under one hole of each of six bins, whatever the protocols
    assert len(set(filled)) == 12
    assert set(result.tables["dark"]) == set(PIXEL_PROTOCOLS)
    assert list(result.tables["dark"]["isnet-2022-test"]) == ["10-20", "20-30", "30-40", "40-50", "all"]


def test_a_score_equals_its_metric_on_the_composite_worked_out_here():
    photos = photographs(1)
    result = evaluate_fillers({"dark": dark}, photos, protocols=["inp-v1", "isnet-2022-test"], size=64, limit=1)
    holes = HoleSource().open(loading="nearest", size=64)
    from inpaint.evaluation.pairs import make_pairs

    (pair,) = [p for p in make_pairs(PROTOCOLS["inp-v1"], photos.ids, holes, seed=0) if p.bin == "20-30"]
    truth = torch.from_numpy(photos.read(pair.image).copy()).permute(2, 0, 1)[None] / 255
    mask = torch.from_numpy(holes.read(pair.mask))[None, None].float()
    filled = composite(truth, torch.full_like(truth, 64 / 255), mask)  # 0.25 × 255 = 63.75 rounds to 64
    expected = METRICS["psnr_rgb"].compute(Comparison(filled, truth, mask)).item()
    assert result.tables["dark"]["inp-v1"]["20-30"]["psnr"].mean == pytest.approx(expected, abs=1e-5)
    truncated = composite(truth, torch.full_like(truth, 63 / 255), mask)
    expected = METRICS["psnr_rgb"].compute(Comparison(truncated, truth, mask)).item()
    assert result.tables["dark"]["isnet-2022-test"]["20-30"]["psnr"].mean == pytest.approx(expected, abs=1e-5)


def test_the_features_of_a_truth_are_computed_once_however_many_holes_and_fillers_it_has():
    """Three photographs under six holes, filled in two ways: 3 truths and 36 fills, in calls of at most eight."""
    photos, calls = photographs(3), []
    plan = make_plan(
        [PROTOCOLS["inp-v1"], PROTOCOLS["edgeconnect-2019"]], photos, HoleSource(), size=64, dataset="", limit=3,
        seed=0, batch=8, present={}, absent={},
    )  # fmt: skip

    def means(images, resize):
        calls.append(len(images))
        return images.mean(dim=(2, 3))

    fillers = {"dark": anonymous(dark), "mean": anonymous(mean_colour)}
    arrays = {name: photos.read(name) for name in photos.ids}
    part = score_images(plan, arrays, fillers, inceptions={"tf-port": means})
    assert sum(calls) == 3 + 2 * 18
    assert max(calls) <= 8
    assert len(part.features["dark", "inp-v1"]) == len(part.features["mean", "inp-v1"]) == 18
    truths = part.features["", "inp-v1"]
    assert {image for image, _ in truths} == set(photos.ids)
    for name in photos.ids:
        assert truths[name, ""] == pytest.approx(arrays[name].mean(axis=(0, 1)) / 255, abs=1e-6)


def test_the_filler_never_sees_the_truth_in_the_hole():
    def look(image, mask):
        assert (image * mask).abs().max() == 0
        return image

    evaluate_fillers({"look": look}, photographs(1), size=64)


def test_unions_hold_the_pairs_of_both_bins_and_all_holds_every_pair():
    table = evaluate_fillers({"dark": dark}, photographs(3), size=64).tables["dark"]["inp-v1"]
    assert [table[row]["psnr"].n for row in ("20-30", "20-40", "40-60", "all")] == [3, 6, 6, 18]
    both = (table["20-30"]["l1"].mean + table["30-40"]["l1"].mean) / 2
    assert table["20-40"]["l1"].mean == pytest.approx(both)


def test_raw_and_hole_scores_stand_beside_the_composite():
    cells = evaluate_fillers({"dark": dark}, photographs(2), size=64).tables["dark"]["inp-v1"]["10-20"]
    assert cells["psnr@raw"].mean < cells["psnr"].mean
    assert cells["psnr@hole"].mean < cells["psnr"].mean


def test_a_perfect_fill_is_capped_by_inp_v1_zero_by_isnets_code_and_infinite_by_mmagic():
    photos = photographs(1)
    truth = torch.from_numpy(photos.read("photo-00").copy()).permute(2, 0, 1)[None] / 255
    result = evaluate_fillers(
        {"truth": lambda image, mask: truth.expand_as(image)},
        photos, protocols=["inp-v1", "isnet-2022-test", "mmagic"], size=64, limit=1,
    )  # fmt: skip
    psnr = {name: table["10-20"]["psnr"] for name, table in result.tables["truth"].items()}
    assert {name: cell.mean for name, cell in psnr.items()} == {
        "inp-v1": 100, "isnet-2022-test": 0, "mmagic": float("inf"),
    }  # fmt: skip
    assert all(cell.perfect == 1 for cell in psnr.values())


def test_a_fill_that_is_not_finite_or_of_another_size_is_refused_by_image():
    def broken(image, mask):
        return torch.where(mask > 0, torch.nan, image)

    with pytest.raises(EvaluationError, match="broken: the fill of photo-00 has values that are not finite"):
        evaluate_fillers({"broken": broken}, photographs(1), size=64)
    with pytest.raises(EvaluationError, match=r"small: filled .* images as"):
        evaluate_fillers({"small": lambda image, mask: image[..., :32]}, photographs(1), size=64)


def test_fewer_images_than_a_protocol_demands_is_refused_unless_a_limit_accepts_it():
    with pytest.raises(EvaluationError, match="isnet-2022-test scores 5,000 images and photographs has 3; --limit 3"):
        evaluate_fillers({"dark": dark}, photographs(3), protocols=["isnet-2022-test"], size=64)
    result = evaluate_fillers({"dark": dark}, photographs(3), protocols=["isnet-2022-test"], size=64, limit=3)
    assert any("3 images; published with 10,000 of places2" in mark for mark in result.marks["isnet-2022-test"])


def test_a_limit_draws_the_same_images_whatever_its_order_and_smaller_draws_are_inside_larger():
    five = evaluate_fillers({"dark": dark}, photographs(8), size=64, limit=5).stamp
    again = evaluate_fillers({"mean": mean_colour}, photographs(8), size=64, limit=5).stamp
    check_comparable(five, again, "inp-v1")


def test_results_of_other_images_holes_or_sizes_cannot_be_compared_and_the_difference_is_named():
    one = evaluate_fillers({"dark": dark}, photographs(2), size=64).stamp
    other = {
        "images": evaluate_fillers({"dark": dark}, photographs(2, seed=1), size=64).stamp,
        "masks": evaluate_fillers({"dark": dark}, photographs(2), size=64, holes=HoleSource(seed=9)).stamp,
        "n of 10-20: 2 and 3": evaluate_fillers({"dark": dark}, photographs(3), size=64).stamp,
        "size: 64 and 48": evaluate_fillers({"dark": dark}, photographs(2), size=48).stamp,
        "seed of pairs: 0 and 1": evaluate_fillers({"dark": dark}, photographs(2), size=64, seed=1).stamp,
    }
    for difference, stamp in other.items():
        with pytest.raises(EvaluationError, match=difference):
            check_comparable(one, stamp, "inp-v1")


def test_the_sum_over_parts_is_the_same_to_the_last_digit_in_any_order():
    from inpaint.evaluation import plan as planning
    from inpaint.evaluation.evaluate import assemble, score_parts
    from inpaint.evaluation.perceptual import Networks
    from inpaint.evaluation.scoring import anonymous

    photos, nothing = photographs(40, size=32), Networks({}, {})
    plan = planning.make_plan(
        [PROTOCOLS["inp-v1"]], photos, HoleSource(), size=32, dataset="", limit=None, seed=0, batch=8,
        present={}, absent={},
    )  # fmt: skip
    assert [len(group) for group in plan.parts()] == [16, 16, 8]
    fillers = {"mean": anonymous(mean_colour)}

    def result(groups):
        parts = list(score_parts(plan, groups, fillers, device="cpu", perceptual=nothing))
        return assemble(plan, parts, {"mean": {}}, perceptual=nothing, dataset="").to_dict()

    assert result(plan.parts()) == result(plan.parts()[::-1])


def test_parts_scored_at_a_time_come_in_order_with_the_digits_of_one_after_the_other():
    from inpaint.evaluation.evaluate import score_parts
    from inpaint.evaluation.perceptual import Networks
    from inpaint.evaluation.plan import make_plan
    from inpaint.evaluation.scoring import anonymous

    plan = make_plan(
        [PROTOCOLS["inp-v1"], PROTOCOLS["isnet-2022-script"]], photographs(17, size=64), HoleSource(), size=64,
        dataset="", limit=17, seed=0, batch=5, present={}, absent={},
    )  # fmt: skip
    threads = torch.get_num_threads()

    def scores(at_a_time):
        fillers = {"mean": anonymous(mean_colour)}
        parts = score_parts(
            plan, plan.parts(), fillers, device="cpu", perceptual=Networks({}, {}), threads=at_a_time
        )  # fmt: skip
        return [part.scores for part in parts]

    assert scores(0) == scores(1) == scores(3)
    assert torch.get_num_threads() == threads


def test_photographs_are_cropped_to_the_centre_and_brought_to_the_size():
    from inpaint.evaluation.pictures import square

    photo = np.zeros((40, 60, 3), np.uint8)
    photo[:, 10:50] = 200
    assert (square(photo, size=40, resize="lanczos") == 200).all()
    assert square(photo, size=16, resize="bilinear").shape == (16, 16, 3)


@pytest.mark.parametrize(("protocol", "level"), [("inp-v1", 64), ("edgeconnect-2019", 63), ("lama-2021", 63)])
def test_a_feature_network_sees_fills_on_the_levels_that_the_published_code_saves(protocol, level):
    """0.25 × 255 = 63.75: rounded 64, truncated 63."""
    seen = []

    def look(images, resize):
        seen.append(images)
        return images.flatten(1)[:, :2]

    how, photos = PROTOCOLS[protocol], photographs(1)
    plan = make_plan(
        [how], photos, HoleSource(), size=64, dataset="", limit=1, seed=0, batch=8, present={}, absent={}
    )  # fmt: skip
    score_images(
        plan,
        {name: photos.read(name) for name in photos.ids},
        {"dark": anonymous(dark)},
        inceptions={how.set_scores.weights: look},
    )
    truths, fills = seen
    filled = (fills != truths).all(dim=1)
    assert (fills[:, 0][filled] * 255).unique().tolist() == [level]
