from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from inpaint.errors import EvaluationError
from inpaint.evaluation.collection import Found
from inpaint.evaluation.evaluate import evaluate_fillers
from inpaint.evaluation.holes import HoleSource
from inpaint.evaluation.published import find_tables, published_tables
from inpaint.evaluation.results import Result
from inpaint.evaluation.tables import beside, doubt_marks
from tests.evaluation.scenes import photographs

TABLES = published_tables()


def number(table, label, bin_name, metric):
    return TABLES[table].rows(bin_name)[label][metric]


@pytest.mark.parametrize(
    ("table", "label", "bin_name", "metric", "printed"),
    [
        ("isnet_table1", "weights 7", "all", "psnr", "23.88"),
        ("isnet_table2", "weights 7", "all", "l1", "0.101"),
        ("isnet_table5", "ISNet Eq. (5) + PRA", "40-50", "psnr", "21.92"),
        ("isnet_table6", "EdgeConnect", "10-20", "ssim", "0.961"),
        ("isnet_table7", "UNet-like", "all", "l1", "2.51"),
        ("isnet_table8", "4 residual blocks", "all", "psnr", "28.53"),
        ("hdc_table6", "RFR", "all", "l1", "4.54"),
        ("hdc_table8", "Ours", "all", "ssim", "0.673"),
        ("dina_table1", "Ours", "1-10", "psnr", "36.94"),
        ("dina_table2", "Ours", "50-60", "ssim", "0.841"),
        ("isfrnet_table2", "EC", "40-60", "lpips_alex", "0.126"),
    ],
)
def test_published_numbers_stand_as_they_are_printed(table, label, bin_name, metric, printed):
    assert number(table, label, bin_name, metric).printed == printed


def test_every_table_names_its_source_and_rows_and_cells_are_complete():
    assert len(TABLES) == 15
    for table in TABLES.values():
        assert "Table" in table.source
        for bin_name in table.bins:
            rows = table.rows(bin_name)
            assert all(set(row) == set(table.metrics) for row in rows.values()), table.name
    assert len(TABLES["isnet_table5"].numbers) == 4 * 11 * 3
    assert [len(TABLES[f"dina_table{i}"].numbers) for i in (1, 2)] == [48, 48]


def test_misprints_are_shown_as_printed_and_flagged():
    table = TABLES["isfrnet_table1"]
    misprint = number("isfrnet_table1", "full", "40-60", "psnr")
    assert misprint.printed == "13.31"
    assert "23.31" in misprint.note
    assert doubt_marks(table, misprint) == "***"
    assert doubt_marks(table, number("isfrnet_table1", "full", "20-40", "psnr")) == ""
    assert any("20-40 % and in LPIPS in both" in note for note in TABLES["isfrnet_table2"].notes)
    repeated = [number("isnet_table8", f"{n} residual blocks", "all", "psnr") for n in (2, 3)]
    assert [n.printed for n in repeated] == ["28.47", "28.47"]
    assert all("the same scores throughout" in n.note for n in repeated)


def test_facts_of_the_papers_hold_in_the_data():
    """ISNet: Eq. (5) beats Eq. (4) in PSNR in all bins, and progressive never gains there."""
    gains, steps = [], []
    for bin_name, rows in ((b, TABLES["isnet_table5"].rows(b)) for b in TABLES["isnet_table5"].bins):
        assert bin_name in ("10-20", "20-30", "30-40", "40-50")
        steps.append(rows["ISNet Eq. (5)"]["psnr"].value - rows["ISNet Eq. (4)"]["psnr"].value)
        gains.append(rows["ISNet Eq. (5) + PRA"]["psnr"].value - rows["ISNet Eq. (5)"]["psnr"].value)
    assert min(steps) > 0
    assert gains == pytest.approx([0, -0.02, -0.04, -0.09])


def test_an_unknown_table_is_answered_with_the_nearest():
    with pytest.raises(EvaluationError, match="isnet_tabel5 is not a published table; did you mean isnet_table5"):
        find_tables(["isnet_tabel5"])
    assert len(find_tables([])) == 15


def grey(image, mask):
    return image * 0 + 0.5


def ours(protocols, *, holes=None, **about):
    result = evaluate_fillers({"one-shot": grey}, photographs(3), protocols=protocols, size=64, limit=3, holes=holes)
    described = {"kind": "checkpoint", "method": "isnet", "run": "first", "step": 400, "dataset": "demo"}
    described |= {"scored_on": "demo", "global_batch": 8, "size": 256} | about
    subjects = {"one-shot": {**described, "fill": "one-shot"}}
    return Found("store/first", dataclasses.replace(result, subjects=subjects), 0.0)


def test_ours_stand_under_each_bin_with_a_mark_for_everything_that_differs():
    found = ours(["isnet-2022-test", "inp-v1"])
    laid = beside(TABLES["isnet_table5"], [found])
    assert [row.bin for row in laid.ours] == ["10-20", "20-30", "30-40", "40-50"]
    row = laid.ours[0]
    expected = found.result.tables["one-shot"]["isnet-2022-test"]["10-20"]
    assert row.cells == {"psnr": expected["psnr"], "ssim": expected["ssim"], "l1": expected["l1"]}
    assert row.marks == "PMDB"
    assert row.why == (
        "scored at 64 pixels, not 256",
        "drawn strokes, not 12,000 irregular test masks of NVIDIA",
        "3 images of demo, not 10,000 of places2; trained on demo, not places2",
        "400 steps of 8 images; the paper gives no number",
    )


def mark_of(letter, table, found):
    """The sentence of a mark, the same in all rows of a result; None without."""
    (said,) = {tuple(zip(row.marks, row.why, strict=True)) for row in beside(TABLES[table], [found]).ours}
    return dict(said).get(letter)


def test_a_result_of_a_network_that_was_not_trained_yet_is_marked():
    assert mark_of("U", "isnet_table5", ours(["isnet-2022-test"])) is None
    found = ours(["isnet-2022-test"], untrained=["texture_generator"])
    assert mark_of("U", "isnet_table5", found) == "texture_generator not trained yet"


@pytest.mark.parametrize(
    ("steps", "batch", "why"),
    [
        (32_000, 8, None),  # 256,000 samples, as Table 1's search
        (16_000, 16, None),
        (32_000, 2, "32,000 steps of 2 images, not 32,000 of 8"),
        (3_200, 8, "3,200 steps of 8 images, not 32,000 of 8"),
        (32_000, None, "32,000 steps of an unknown number of images, not 32,000 of 8"),
    ],
)
def test_the_budget_is_counted_in_images_seen(steps, batch, why):
    found = ours(["isnet-2022-test"], step=steps, global_batch=batch)
    assert mark_of("B", "isnet_table1", found) == why


def test_the_size_of_the_training_is_marked_beside_that_of_the_scoring():
    found = ours(["isnet-2022-test"], size=64)
    assert mark_of("P", "isnet_table5", found) == "scored at 64 pixels, not 256; trained at 64 pixels, not 256"
    found = ours(["ce-128"], method="context_encoder", size=128)
    assert mark_of("P", "context_encoder_table6", found) == "scored at 64 pixels, not 128"


def test_masks_are_marked_unless_they_are_sure_to_be_the_papers(tmp_path):
    nvidia = "12,000 irregular test masks of NVIDIA"
    for side in (40, 50, 58, 66):  # holes of 16, 25, 34 and 44 percent
        mask = np.zeros((100, 100), np.uint8)
        mask[10 : 10 + side, 10 : 10 + side] = 255
        Image.fromarray(mask).save(tmp_path / f"{side}.png")
    files = ours(["isnet-2022-test"], holes=HoleSource(url=str(tmp_path), hole="white"))
    assert mark_of("M", "isnet_table5", files) == f"files of {tmp_path.name}, not verified to be {nvidia}"
    assert f"files of {tmp_path.name}, not verified to be {nvidia}" in files.result.marks["isnet-2022-test"]
    centred = ours(["hdc-gated"], method="gated_two_stage", holes=HoleSource(centre=0.6))
    assert mark_of("M", "hdc_table6", centred) == f"centred square, not {nvidia}"
    stand_in = ours(["inp-v1"])  # whose own masks may be any
    assert mark_of("M", "isnet_table5", stand_in) == f"drawn strokes, not {nvidia}"
    assert mark_of("M", "context_encoder_table6", ours(["ce-128"], method="context_encoder")) is None


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"scored_on": "paris-streetview", "dataset": "paris-streetview"}, "3 images of .*, not 100 of paris-str"),
        ({"scored_on": "paris-streetview", "dataset": "demo"}, ".*; trained on demo, not paris-streetview"),
        ({"scored_on": "places2", "dataset": "paris-streetview"}, "3 images of places2, not 100 of paris-streetview$"),
    ],
)
def test_what_was_scored_and_what_was_trained_on_are_marked_apart(about, why):
    laid = beside(TABLES["dina_table1"], [ours(["dina-2024"], method="edge_texture", **about)])
    marks = dict(zip(laid.ours[0].marks, laid.ours[0].why, strict=True))
    assert re.match(why, marks["D"])


def test_a_run_on_the_papers_own_images_has_no_mark_of_data():
    found = ours(["dina-2024"], method="edge_texture", scored_on="paris-streetview", dataset="paris-streetview")
    conditions = found.result.stamp.protocols["dina-2024"] | {"n of images": 100}
    stamp = dataclasses.replace(found.result.stamp, protocols={"dina-2024": conditions})
    found = dataclasses.replace(found, result=dataclasses.replace(found.result, stamp=stamp))
    assert "D" not in beside(TABLES["dina_table1"], [found]).ours[0].marks


def test_another_protocol_stands_in_and_is_marked_and_another_method_does_not():
    laid = beside(TABLES["isnet_table5"], [ours(["inp-v1"])])
    assert laid.ours[0].why[0] == "scored by inp-v1, not isnet-2022-test; scored at 64 pixels, not 256"
    assert beside(TABLES["dina_table1"], [ours(["inp-v1"])]).ours == ()


def test_only_the_last_step_of_a_run_is_shown_and_a_leak_is_marked():
    early, late = ours(["isnet-2022-test"]), ours(["isnet-2022-test"], step=255_000)
    laid = beside(TABLES["isnet_table2"], [late, early], leaks={"store/first": "2 of 3 images of test are in train"})
    assert [row.label for row in laid.ours] == ["first step 255000"]
    assert laid.ours[0].marks == "PMDL"  # the budget is Table 2's
    assert "2 of 3 images of test are in train" in laid.ours[0].why


def test_a_table_beside_ours_is_plain_data_for_programs():
    import json

    values = json.loads(json.dumps(beside(TABLES["isnet_table6"], [ours(["isnet-2022-test"])]).to_dict()))
    assert values["published"][0]["printed"] == "25.32"
    assert values["ours"][0]["scores"]["psnr"]["n"] == 3


def test_a_result_survives_its_file_form():
    result = ours(["inp-v1", "mmagic"]).result
    import json

    again = Result.of(json.loads(json.dumps(result.to_dict())), place="here")
    assert again.to_dict() == result.to_dict()
    assert again.tables == result.tables
    with pytest.raises(EvaluationError, match="not a result that this version reads"):
        Result.of({"format": 0}, place="here")
