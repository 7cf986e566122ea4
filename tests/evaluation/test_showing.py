"""What stands on the terminal: differences with their sign, and one filler under every protocol."""

from __future__ import annotations

import pytest
from rich.console import Console

from inpaint.evaluation.baselines import mean_colour
from inpaint.evaluation.evaluate import evaluate_fillers
from inpaint.evaluation.protocols import PROTOCOLS
from inpaint.evaluation.showing import interval_text, mean_text, spread_tables
from inpaint.evaluation.statistics import Estimate
from tests.evaluation.scenes import photographs


@pytest.mark.parametrize(
    ("mean", "alone", "difference"),
    [(0.0061, "0.01", "+0.006"), (-0.0456, "-0.05", "-0.046"), (-0.0001, "-0.00", "+0.000")],
)
def test_a_paired_difference_has_its_sign_and_one_digit_more_than_a_mean(mean, alone, difference):
    cell = Estimate(mean, mean, mean, n=16)
    assert mean_text(PROTOCOLS["inp-v1"], "psnr", cell) == alone
    assert mean_text(PROTOCOLS["inp-v1"], "psnr", cell, paired=True) == difference
    assert interval_text(PROTOCOLS["inp-v1"], "psnr", cell, paired=True) == f"[{difference}, {difference}]"


def test_the_spread_has_a_row_for_every_protocol_that_measures_the_score():
    result = evaluate_fillers({"mean": mean_colour}, photographs(2), protocols=["all"], size=64, limit=2)
    psnr, ssim, error = spread_tables(result)
    without_psnr = {"lama-2021"}
    without_error = {"lama-2021", "dina-2024", "ce-128"}
    for grid, missing in ((psnr, without_psnr), (ssim, set()), (error, without_error)):
        assert list(grid.columns[0].cells) == [name for name in PROTOCOLS if name not in missing]
    console = Console(width=120)
    with console.capture() as printed:
        console.print(psnr)
    row = next(line for line in printed.get().splitlines() if "mat-2022" in line)
    found = result.tables["mean"]["mat-2022"]["all"]["psnr"].mean
    assert [cell.strip() for cell in row.split("│")[3:-1]] == ["-", "-", "-", "-", f"{found:.2f}"]
