"""`python -m ray_jobs.shard SRC DST ...`: `inpaint shards write` with the shards written all over a Ray cluster.

Source and destination must be the same for every node: S3, or a shared file system. The set is the same as one that a
single machine writes, byte for byte.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import ray
import typer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from inpaint import archives, storage
from inpaint.archives import Entry
from inpaint.cli.shards import write
from inpaint.data.shards import UNFINISHED, Progress, ShardResult, ShardTask, write_shard
from inpaint.errors import ClusterError, DataError, InpaintError
from ray_jobs.verdict import once_for_all

AHEAD = 2  # tasks handed out per CPU of the cluster, so that none waits for the next


def on_ray(tasks: Sequence[ShardTask], progress: Progress, *, workers: int | None = None) -> list[ShardResult]:
    """Write every task's shard as a Ray task, `workers` at a time (one per CPU of the cluster when None).

    Raises:
        DataError: a node that does not see the source or the destination.
        ClusterError: no Ray cluster, or a task that was lost again and again.
    """
    if not tasks:
        return []
    if not ray.is_initialized():
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
        except ConnectionError as error:
            raise ClusterError(f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS')}: no Ray cluster ({error})") from error
    _check_nodes(tasks[0])
    limit = workers or AHEAD * int(ray.cluster_resources().get("CPU", 1))
    remote = ray.remote(num_cpus=1, max_retries=3)(write_shard)
    waiting, running, results = list(reversed(tasks)), {}, []
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                task = waiting.pop()
                running[remote.remote(task)] = len(task.candidates)
            for done in ray.wait(list(running), num_returns=1)[0]:
                results.append(ray.get(done))
                progress(running.pop(done))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InpaintError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a shard was lost again and again ({error}); run the command again, it goes on") from error
    return results


def _check_nodes(task: ShardTask) -> None:
    """Refuse a path that only some nodes have: its images would be missing from the set."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    looks = [
        ray.remote(num_cpus=0)(_sees)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(task.candidates[0].entry, storage.join(task.url, UNFINISHED, "plan.json"))
        for node in nodes
    ]
    for node, missing in zip(nodes, ray.get(looks), strict=True):
        if missing:
            raise DataError(
                f"node {node['NodeManagerAddress']} does not see {missing}; give source and destination in S3 or on a "
                "file system that all nodes share, and unpack compressed tars first"
            )


def _sees(entry: Entry, claim: str) -> str:
    """What this node cannot see of the source and the destination; empty when it sees both."""
    if not storage.exists(claim):
        return claim
    try:
        archives.read(entry)
    except InpaintError:
        return entry.url if not storage.exists(entry.url) else ""  # a damaged file is judged with all the others
    return ""


def main() -> None:
    """Entry point: as `inpaint shards write`, with one line and exit code 1 for an InpaintError."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command(help=__doc__)(write)
    destination = sys.argv[2] if len(sys.argv) > 2 else ""  # where `submit shards` puts it
    try:
        with once_for_all(destination):
            app(obj=on_ray)
    except InpaintError as error:
        print(f"shard: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
