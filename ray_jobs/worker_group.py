"""One fit of Ray Train: workers with torch's process group between them, restarted by Ray when one dies.

The group is joined by our own small backend and not by Ray's `TorchTrainer`, because that one imports torch in the
driver and in Ray's controller too, which costs seconds at each start and half a gigabyte on the head node.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from inpaint.config import RunConfig
from inpaint.errors import ConfigError

CONTROLLER_STARTS = 10  # failed starts of a worker group, before the driver takes over
COLLECTIVE_TIMEOUT = "RAY_TRAIN_COLLECTIVE_TIMEOUT_S"  # Ray's name of it, for collectives of its own
COLLECTIVE_SECONDS = 1800.0  # unless the environment says otherwise
LEAVE_SECONDS = 5.0


@dataclass
class TorchGroup(BackendConfig):
    """torch.distributed over all workers: gloo for tensors on the host, NCCL for those on a GPU.

    Attributes:
        shared_gpus: workers may sit on one GPU, which NCCL refuses; gloo then carries everything, through the host.
        timeout_seconds: after which an operation that not all workers join is an error.
    """

    shared_gpus: bool = False
    timeout_seconds: float = COLLECTIVE_SECONDS

    @property
    def backend_cls(self) -> type[Backend]:
        return _TorchGroupBackend


class _TorchGroupBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        address, port = worker_group.execute_single(0, _free_address)
        size = len(worker_group)
        nccl, seconds = not backend_config.shared_gpus, backend_config.timeout_seconds
        joins = [
            worker_group.execute_single_async(rank, _join, rank, size, address, port, nccl, seconds)
            for rank in range(size)
        ]
        ray.get(joins)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        with suppress(ray.exceptions.GetTimeoutError):
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_SECONDS)


class OwnRayTrainer(DataParallelTrainer):
    """A trainer on a Ray that lives and dies with this driver.

    Ray's cleaner of placement groups, a process that asks a dashboard once a second, has nothing to do there.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()
        return [callback for callback in made if type(callback).__name__ != "PlacementGroupCleanerCallback"]


def fit(run: RunConfig, config: dict[str, Any], folder: str, *, own_ray: bool) -> dict[str, Any]:
    """Run the workers to their end.

    Args:
        run: whose resources are asked for.
        config: for `ray_worker.work`.
        folder: local to this node; Ray leaves an empty marker there. No checkpoint is ever given to Ray, so the nodes
            of the workers need not see it.
        own_ray: the Ray was started by this driver for itself.

    Returns:
        What rank 0 returned.

    Raises:
        ConfigError: the environment's timeout of collective operations is no time.
    """
    resources = run.resources
    each = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        each["GPU"] = resources.gpus_per_worker
    trainer = (OwnRayTrainer if own_ray else DataParallelTrainer)(
        _work,
        train_loop_config=config,
        backend_config=TorchGroup(
            shared_gpus=0 < resources.gpus_per_worker < 1, timeout_seconds=collective_seconds(os.environ)
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.num_workers, use_gpu="GPU" in each, resources_per_worker=each
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=folder,
            failure_config=ray.train.FailureConfig(
                max_failures=resources.max_failures, controller_failure_limit=CONTROLLER_STARTS
            ),
        ),
    )
    return trainer.fit().return_value


def collective_seconds(environment: Mapping[str, str]) -> float:
    """How long the torch group waits for a collective operation: as long as Ray waits for those of its own.

    Raises:
        ConfigError: it is no time above 0.
    """
    said = environment.get(COLLECTIVE_TIMEOUT, "")
    try:
        seconds = float(said or COLLECTIVE_SECONDS)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= timedelta.max.total_seconds():
        raise ConfigError(f"{COLLECTIVE_TIMEOUT} is {said!r}; expected seconds above 0, or nothing for 1800")
    return seconds


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """Imports torch and the rest on the worker only."""
    from ray_jobs.ray_worker import work

    return work(config)


def _free_address() -> tuple[str, int]:
    """Where the first worker can be reached by the others."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def _join(rank: int, size: int, address: str, port: int, nccl: bool, timeout_seconds: float) -> None:
    """Join the process group, on a worker."""
    import torch

    context = ray.train.get_context()
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    nccl = nccl and torch.cuda.is_available() and bool(ray.get_gpu_ids())
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if nccl else "gloo",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_seconds),
    )


def _leave() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
