from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from inpaint import storage
from inpaint.config import load_run
from inpaint.config.evaluation import EvaluationRequest
from inpaint.errors import EvaluationError
from inpaint.evaluation import gallery as galleries
from inpaint.evaluation import html
from inpaint.evaluation.collection import results_of
from inpaint.evaluation.gallery import gallery
from inpaint.evaluation.health import read_health
from inpaint.evaluation.job import run_job
from inpaint.evaluation.report import curves, report_run
from tests.evaluation.test_job import folder

HISTORY = [
    {"step": step, "discriminator/real": 1.0, "discriminator/filled": 0.9, "discriminator/loss": 1.9,
     "generator/adversarial": 0.1, "generator/loss": 2.0 / step, "generator/learning_rate": 1e-4, "psnr": 10.0 + step,
     "psnr@10-20": 12.0 + step}
    for step in (1, 2, 3, 4, 5)
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run with a history and one evaluation (of a baseline, which needs no training)."""
    settings = load_run("tiny", root=str(tmp_path / "root"), name="first")
    url = settings.url
    import yaml

    storage.write_bytes(storage.join(url, "run.yaml"), yaml.safe_dump(settings.to_dict()).encode())
    storage.write_bytes(storage.join(url, "provenance.json"), json.dumps({"commit": "abc <script>"}).encode())
    storage.write_bytes(storage.join(url, "history.jsonl"), "\n".join(map(json.dumps, HISTORY)).encode())
    request = EvaluationRequest(
        subject="baseline:mean-colour", data=folder(tmp_path / "photos", count=4), size=32, device="cpu",
        root=str(tmp_path / "root"), out=storage.join(url, "evaluations"),
    )  # fmt: skip
    run_job(request)
    return url


def test_a_page_holds_settings_curves_health_tables_and_pictures_and_fetches_nothing(run):
    page = report_run(run).html
    for heading in ("Summary", "Curves", "Health of the GAN", "Scores", "Pictures", "Settings and provenance"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count('class="slider"') == 6 * 3
    assert page.count("<img") == 6 * 3 * 3
    assert "held-out psnr" in page
    assert set(re.findall(r'(?:src|href)="([^"]{0,12})', page)) <= {"data:image/j", *(f"#part-{i}" for i in range(9))}
    assert "://" not in re.sub(r"s3://\.\.\.", "", page)
    assert "abc &lt;script&gt;" in page


def test_markdown_says_the_same_in_tables(run):
    text = report_run(run, leaks=["3 images are in both"]).markdown
    assert text.startswith("# first\n")
    assert "- method: isnet" in text
    assert "- **3 images are in both**" in text
    assert "| hole % | n | PSNR dB |" in text
    cell = results_of(run)[0].result.tables["one-shot"]["inp-v1"]["10-20"]["psnr"]
    assert f"| 10-20 | 4 | {cell.mean:.2f} [{cell.low:.2f}, {cell.high:.2f}] |" in text


def test_the_pictures_are_the_best_the_median_and_the_worst_of_each_bin(run):
    found = results_of(run)[0]
    shown = [item for item in gallery(found, subject="one-shot") if item.bin == "30-40"]
    assert [item.rank for item in shown] == ["best", "median", "worst"]
    assert [item.psnr for item in shown] == sorted((item.psnr for item in shown), reverse=True)
    for item in shown:
        error = (item.filled.astype(float) - item.truth) ** 2
        assert 10 * np.log10(255**2 / error.mean()) == pytest.approx(item.psnr, abs=1e-3)
        hole = (item.masked != item.truth).any(axis=2)
        assert np.array_equal(item.filled[~hole], item.truth[~hole])


def test_a_run_that_was_not_evaluated_has_a_page_too_and_no_run_is_an_error(run, tmp_path):
    storage.delete_tree(storage.join(run, "evaluations"))
    assert "not evaluated yet" in report_run(run).html
    with pytest.raises(EvaluationError, match="no run here"):
        report_run(str(tmp_path / "root" / "runs" / "nobody"))


def test_pictures_that_cannot_be_made_again_leave_the_rest_of_the_page(run, monkeypatch):
    def gone(request, **options):
        raise EvaluationError("the checkpoint is gone")

    monkeypatch.setattr(galleries, "prepare", gone)
    page = report_run(run).html
    assert "no pictures: the checkpoint is gone" in page
    assert "<h2>Scores</h2>" in page


def test_pictures_of_photographs_that_were_replaced_or_renamed_are_not_shown(run, tmp_path):
    photo = tmp_path / "photos" / "photo-02.png"
    photo.rename(photo.with_name("other.png"))
    assert "no pictures: " + f"{tmp_path}/photos: photo-02 was scored and is not there any more" in report_run(run).html
    (tmp_path / "photos" / "other.png").rename(photo)
    assert report_run(run).html.count('class="slider"') == 6 * 3
    for path in (tmp_path / "photos").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    page = report_run(run).html
    assert "is not the picture that was scored; evaluate anew" in page
    assert 'class="slider"' not in page


def test_pictures_need_no_scoring_networks(tmp_path):
    """They were given by a path of the machine that scored, which no other machine has."""
    torch.manual_seed(0)
    weights = tmp_path / "squeeze.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), weights)
    request = EvaluationRequest(
        subject="baseline:mean-colour", data=folder(tmp_path / "photos", count=2, size=64), size=64, device="cpu",
        root=str(tmp_path / "root"), lpips={"squeeze": str(weights)}, sha256={},
    )  # fmt: skip
    job, _ = run_job(request)
    expected = gallery(results_of(job.url)[0], subject="one-shot")
    weights.unlink()
    shown = gallery(results_of(job.url)[0], subject="one-shot")
    assert [item.psnr for item in shown] == [item.psnr for item in expected] != []


def test_curves_are_grouped_by_update_rates_and_scores():
    found = curves(HISTORY)
    assert set(found["generator: loss and its terms"]) == {"generator/adversarial", "generator/loss"}
    assert found["held-out psnr"]["psnr@10-20"] == [(float(s), 12.0 + s) for s in range(1, 6)]
    assert set(found["learning rates"]) == {"generator/learning_rate"}
    assert "weights of terms that are ramped" not in found


def test_a_ramped_weight_has_a_curve_of_its_own():
    found = curves([{"step": s, "generator/local": 0.7, "generator/local_weight": s / 4} for s in range(3)])
    assert set(found["generator: loss and its terms"]) == {"generator/local"}
    assert found["weights of terms that are ramped"]["generator/local_weight"] == [(0, 0), (1, 0.25), (2, 0.5)]


def test_health_names_a_discriminator_that_always_wins_and_numbers_that_are_not_finite():
    calm = read_health(HISTORY)
    assert calm.alarms == []
    assert calm.readings["discriminator, real + filled"].startswith("1.9 ")
    won = read_health([{"step": 1, "discriminator/real": 0.01, "discriminator/filled": 0.02}])
    assert won.alarms == ["discriminator tells every fill from the truth (its terms sum to 0.03)"]
    broken = read_health([*HISTORY, {"step": 6, "generator/loss": float("nan")}])
    assert "generator/loss is nan at step 6" in broken.alarms
    stuck = read_health([{"step": 1, "generator/gradient_norm": 0.0}])
    assert stuck.alarms == ["generator/gradient_norm is 0: that network does not learn"]


def test_a_plot_draws_its_points_where_its_axes_say():
    drawn = html.line_plot("loss", {"a": [(0, 0.0), (10, 1.0)]}, width=520, height=250)
    (path,) = re.findall(r'points="([^"]+)"', drawn)
    (x0, y0), (x1, y1) = [tuple(map(float, point.split(","))) for point in path.split()]
    assert (x0, x1) == (60, 506)
    assert y0 > y1
    assert "<script" not in html.line_plot("<script>", {"a": [(0, 0.0)]})
    assert html.line_plot("empty", {"a": [(0, float("nan"))]}) == ""


def test_a_value_that_is_not_finite_breaks_the_line_and_a_point_between_two_breaks_is_a_dot():
    gap = float("nan")
    drawn = html.line_plot("loss", {"a": [(0, 1.0), (1, 2.0), (2, gap), (3, 2.0), (4, gap), (5, 1.0), (6, 1.0)]})
    assert [len(path.split()) for path in re.findall(r'points="([^"]+)"', drawn)] == [2, 1, 2]
    assert drawn.count("<circle") == 1
    assert drawn.count("<rect") == 1  # one line in the legend


def test_pages_escape_what_comes_from_outside():
    assert html.text("<b>&") == "&lt;b&gt;&amp;"
    page = html.page("<x>", "y", [html.Section("<z>", html.facts({"a": "<b>"}))])
    assert "<x>" not in page
    assert "<td class=\"text\">&lt;b&gt;</td>" in page
