"""An evaluation over Ray workers, on a Ray of this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from inpaint import storage
from inpaint.config.evaluation import EvaluationRequest
from inpaint.errors import ClusterError, EvaluationError, StorageError
from inpaint.evaluation.parts import kept_parts
from tests.evaluation.scenes import photographs


def request(tmp_path, out, **values):
    photos = tmp_path / "photos"
    if not photos.exists():
        photos.mkdir()
        pictures = photographs(36, size=48)
        for name in pictures.ids:
            Image.fromarray(pictures.read(name)).save(photos / f"{name}.png")
    settings = {"subject": "baseline:mean-colour", "data": str(photos), "size": 48, "device": "cpu"}
    return EvaluationRequest(**settings | {"root": str(tmp_path), "out": str(tmp_path / out)} | values)


def digests(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != "request.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_worker_two_workers_and_none_write_the_same_bytes(tmp_path):
    import ray

    from inpaint.evaluation.job import run_job
    from ray_jobs.evaluate import run_on_ray

    try:
        one, _ = run_on_ray(request(tmp_path, "one"), workers=1)
        two, _ = run_on_ray(request(tmp_path, "two"), workers=2)
        with pytest.raises(ClusterError, match="5000 workers of 1 CPUs need 5000 and this machine has"):
            run_on_ray(request(tmp_path, "many"), workers=5000)
    finally:
        ray.shutdown()
    none, _ = run_job(request(tmp_path, "none"))
    assert set(digests(none.url)) == {"pairs.json", "result.json", "scores.parquet"}
    assert digests(one.url) == digests(two.url) == digests(none.url)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_parts_are_kept_unless_an_image_cannot_be_scored(tmp_path):
    """A store that fails is no reason to score again what it holds; a file that is no image ends the evaluation."""
    import ray

    from inpaint.evaluation.job import prepare, score_missing
    from ray_jobs.evaluate import run_on_ray

    asked = request(tmp_path, "out")
    bad = tmp_path / "photos" / f"{prepare(asked).plan.parts()[2][0]}.png"
    bad.write_bytes(bad.read_bytes()[:100])
    job = prepare(asked)
    score_missing(job, [0])
    blocked = storage.local_path(storage.join(job.parts_url, "000001.parquet"))
    blocked.mkdir()  # a file cannot be written there
    try:
        with pytest.raises(StorageError):
            run_on_ray(asked, workers=1)
        assert kept_parts(job.parts_url) == {0}
        blocked.rmdir()
        with pytest.raises(EvaluationError, match="remove it or write it anew"):
            run_on_ray(asked, workers=1)
        assert kept_parts(job.parts_url) == set()
    finally:
        ray.shutdown()


def scorer_that_dies(folder, *, always):
    """A worker that ends its process at every part that comes to it, or at each part's first try."""
    from ray_jobs import evaluate

    class Dying(evaluate._Scorer):
        def score(self, numbers):
            import os

            mark = Path(folder, "-".join(map(str, numbers)))
            if always or not mark.exists():
                mark.touch()
                os._exit(1)
            return super().score(numbers)

    return Dying


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_deaths_are_counted_only_while_nothing_gets_finished(tmp_path, monkeypatch):
    """Three parts and a death at each: as many deaths as end an evaluation in which nothing goes on."""
    import ray

    from ray_jobs import evaluate

    (tmp_path / "died").mkdir()
    try:
        monkeypatch.setattr(evaluate, "_Scorer", scorer_that_dies(tmp_path / "died", always=False))
        job, _ = evaluate.run_on_ray(request(tmp_path, "out"), workers=1)
        assert len(list((tmp_path / "died").iterdir())) == len(job.plan.parts()) == evaluate.TRIES
        monkeypatch.setattr(evaluate, "_Scorer", scorer_that_dies(tmp_path / "died", always=True))
        with pytest.raises(ClusterError, match="workers died 3 times with no part finished between"):
            evaluate.run_on_ray(request(tmp_path, "never"), workers=2)
    finally:
        ray.shutdown()


def test_a_new_cluster_reads_the_result_that_a_lost_driver_had_finished(tmp_path, monkeypatch):
    from inpaint.evaluation.job import run_job
    from ray_jobs import evaluate

    _, first = run_job(request(tmp_path, "out"))
    monkeypatch.setattr(evaluate, "start_ray", lambda address: pytest.fail("scored again"))
    said = []
    job, second = evaluate.run_on_ray(request(tmp_path, "out"), workers=1, tell=said.append)
    assert second.to_dict() == first.to_dict()
    assert said[0].startswith(f"{job.url}: scored before under the same conditions")


def test_a_node_that_takes_eight_workers_with_it_is_one_death():
    from ray_jobs.evaluate import Deaths

    deaths = Deaths()
    for _ in range(8):
        deaths.add(started_after=0)
    assert deaths.in_a_row == 1
    deaths.add(started_after=1)  # of the eight new ones, one died again, and then one in its place
    deaths.add(started_after=2)
    assert deaths.in_a_row == 3
    deaths.forget()
    deaths.add(started_after=3)
    assert deaths.in_a_row == 1


@pytest.mark.parametrize(
    ("workers", "there", "share"), [(1, 8, 1), (8, 8, 1), (4, 1, 1 / 4), (3, 2, 1 / 2), (5, 2, 1 / 3), (2, 0, 0)]
)
def test_workers_share_the_gpus_that_are_there_so_that_all_fit_at_once(workers, there, share):
    """Three workers on two GPUs get halves: of two thirds each, the third worker would find its own on no GPU."""
    from ray_jobs.evaluate import gpu_share

    assert gpu_share(workers, there) == share
