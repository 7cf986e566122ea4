"""How many trials a cluster holds at a time. Asking for more would wait for ever, so it is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inpaint.config.run import ResourcesConfig
from inpaint.config.sweep import DRIVER_CPUS, SweepConfig
from inpaint.errors import ClusterError
from inpaint.sweep.trials import Trial, run_of

Node = Mapping[str, float]  # what one node holds: "CPU", "GPU"


def check_capacity(sweep: SweepConfig, trials: Sequence[Trial], *, root: str, nodes: Sequence[Node]) -> int:
    """How many trials the nodes hold at a time, or the smaller number that the sweep asks for.

    Raises:
        ClusterError: not even one, or fewer than asked for.
    """
    holds = min(trials_on(nodes, run_of(sweep, trial, root=root).resources) for trial in trials)
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    text = f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs on {len(nodes)} node{'s' if len(nodes) != 1 else ''}"
    if holds < 1:
        raise ClusterError(f"{sweep.name}: {text}, which does not hold one trial; see resources in its settings")
    if sweep.concurrent and sweep.concurrent > holds:
        raise ClusterError(f"{sweep.name}: concurrent {sweep.concurrent}, but {text}, enough for {holds}; "
                           "ask for fewer, or lower resources in its settings")
    return sweep.concurrent or holds


def trials_on(nodes: Sequence[Node], resources: ResourcesConfig) -> int:
    """How many trials of these resources fit on the nodes.

    A worker lies on one node, and a share of a GPU on one GPU: of 0.4, two fit there and not two and a half.
    """
    driver = DRIVER_CPUS / resources.num_workers if resources.num_workers > 1 else 0.0
    workers = sum(_workers_on(node, resources.cpus_per_worker + driver, resources.gpus_per_worker) for node in nodes)
    return workers // resources.num_workers


def _workers_on(node: Node, cpus: float, gpus: float) -> int:
    by_cpu = _whole(node.get("CPU", 0) / cpus)
    if not gpus:
        return by_cpu
    have = node.get("GPU", 0)
    return min(by_cpu, _whole(have / gpus) if gpus >= 1 else _whole(have) * _whole(1 / gpus))


def _whole(count: float) -> int:
    return int(count + 1e-9)
