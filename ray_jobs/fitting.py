"""One `TorchTrainer.fit`: workers with torch's process group between them, restarted by Ray when one dies."""

from __future__ import annotations

from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from inpaint.config import RunConfig

CONTROLLER_STARTS = 10  # failed starts of a worker group, before the driver takes over


def fit(run: RunConfig, config: dict[str, Any], folder: str) -> dict[str, Any]:
    """Run the workers to their end.

    Args:
        run: whose resources are asked for.
        config: for `ray_worker.work`.
        folder: local to this node; Ray leaves an empty marker there. No checkpoint is ever given to Ray, so the nodes
            of the workers need not see it.

    Returns:
        What rank 0 returned.
    """
    resources = run.resources
    trainer = TorchTrainer(
        _work,
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=1800),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker}
            | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}),
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


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """Imports torch and the rest on the worker only, which keeps Ray's controller light."""
    from ray_jobs.ray_worker import work

    return work(config)
