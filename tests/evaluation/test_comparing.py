from __future__ import annotations

import pytest

from inpaint.config.evaluation import EvaluationRequest
from inpaint.errors import EvaluationError
from inpaint.evaluation.collection import results_of, results_of_root
from inpaint.evaluation.comparing import compare
from inpaint.evaluation.job import run_job
from tests.evaluation.test_job import folder

FILLS = ("one-shot", "one-shot")


def found(tmp_path, **values):
    settings = {"data": folder(tmp_path / "photos", count=4), "size": 32, "device": "cpu"} | values
    job, _ = run_job(EvaluationRequest(**settings, root=str(tmp_path / "root")))
    return results_of(job.url)[0]


def test_results_of_one_stamp_are_compared_pair_by_pair(tmp_path):
    smooth = found(tmp_path, subject="baseline:biharmonic")
    mean = found(tmp_path, subject="baseline:mean-colour")
    (item,) = compare(smooth, mean, fills=FILLS, force=False)
    cell = item.difference["30-40"]["psnr"]
    assert cell.mean == pytest.approx(item.ours["30-40"]["psnr"].mean - item.theirs["30-40"]["psnr"].mean)
    assert cell.mean > 0
    assert (cell.n, item.marks) == (4, ())
    assert len(results_of_root(str(tmp_path / "root"))) == 2


def test_other_conditions_are_refused_by_name_and_force_marks_the_table(tmp_path):
    one = found(tmp_path, subject="baseline:biharmonic")
    other = found(tmp_path, subject="baseline:mean-colour", limit=3, seed=5)
    with pytest.raises(EvaluationError, match=r"inp-v1: .* differ in images: .* seed of pairs: 0 and 5.* give --force"):
        compare(one, other, fills=FILLS, force=False)
    (item,) = compare(one, other, fills=FILLS, force=True)
    assert item.difference == {}
    assert "n of 10-20: 4 and 3" in item.marks


def test_no_protocol_in_common_or_a_fill_that_is_not_there_is_refused(tmp_path):
    one = found(tmp_path, subject="baseline:mean-colour")
    other = found(tmp_path, subject="baseline:mean-colour", protocols=("mmagic",))
    with pytest.raises(EvaluationError, match="no protocol in common: inp-v1 and mmagic"):
        compare(one, other, fills=FILLS, force=False)
    with pytest.raises(EvaluationError, match="nothing was filled progressive here; there is one-shot"):
        compare(one, one, fills=("one-shot", "progressive"), force=False)
