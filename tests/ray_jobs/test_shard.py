import dataclasses
import functools
import time
from types import SimpleNamespace

import pytest
import ray

from inpaint.data.samples import ShardOptions
from inpaint.data.shards import write_shards
from inpaint.data.workers import in_processes
from inpaint.errors import DataError
from ray_jobs import shard
from ray_jobs.shard import on_ray
from tests.data.gallery import write_gallery
from tests.data.test_shards import Interrupted, stop_after, tree


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def write(source, url, run, **more):
    return write_shards(str(source), str(url), options=ShardOptions(samples=5), run=run, **more)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves sockets and pipes to the collector
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_cluster_writes_what_one_process_writes_and_finishes_what_was_interrupted(cluster, tmp_path):
    write_gallery(tmp_path / "gallery")
    alone = write(tmp_path / "gallery", tmp_path / "alone", functools.partial(in_processes, workers=1))
    done = []
    together = write(tmp_path / "gallery", tmp_path / "together", on_ray, progress=done.append)
    assert tree(tmp_path / "together") == tree(tmp_path / "alone")
    assert together.refused == alone.refused
    assert sum(done) == alone.samples + len(alone.refused)
    with pytest.raises(Interrupted):
        write(tmp_path / "gallery", tmp_path / "half", stop_after(2))
    assert write(tmp_path / "gallery", tmp_path / "half", on_ray).kept == 2
    assert tree(tmp_path / "half") == tree(tmp_path / "alone")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_node_that_does_not_see_the_destination_is_named(cluster, tmp_path):
    write_gallery(tmp_path / "gallery")

    def cut_off(tasks, progress):
        return on_ray([dataclasses.replace(task, url="/proc/nowhere") for task in tasks], progress)

    with pytest.raises(DataError, match="does not see /proc/nowhere"):
        write(tmp_path / "gallery", tmp_path / "set", cut_off)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_no_more_shards_are_written_at_a_time_than_workers_were_asked_for(cluster, tmp_path, monkeypatch):
    def note_the_others(task):
        here = tmp_path / f"under-way-{task.number}"
        here.touch()
        time.sleep(0.2)
        (tmp_path / f"seen-{task.number}").write_text(str(len(list(tmp_path.glob("under-way-*")))))
        here.unlink()

    monkeypatch.setattr(shard, "write_shard", note_the_others)
    monkeypatch.setattr(shard, "_check_nodes", lambda task: None)
    on_ray([SimpleNamespace(number=n, candidates=[n]) for n in range(4)], lambda done: None, workers=1)  # of two CPUs
    assert [path.read_text() for path in tmp_path.glob("seen-*")] == ["1"] * 4
