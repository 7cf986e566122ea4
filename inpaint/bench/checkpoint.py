"""What a checkpoint costs training, and what resuming costs, against plain `torch.save` and `torch.load`.

The state is that of a preset after its first step: all networks, and two moments per parameter. Both ways hold the
same tensors, write to the same disk and take turns in one run. Ours is timed as training sees it: until `save` returns,
while files and checksums are written in the background; and until every checksum has proved right and the state is in
place. Memory comes in new pages each time, as in a process that starts to resume a run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inpaint.bench.measure import Cost, cpu_seconds, device_name, return_freed_memory, today
from inpaint.checkpoints import CheckpointWriter, latest, restore
from inpaint.config import load_run
from inpaint.methods import build_method

STALL_LIMIT, RESTORE_LIMIT = 1 / 5, 1 / 2  # of the plain way


def measure_checkpoint(*, preset: str, rounds: int, device: str, folder: str | None = None) -> dict[str, Any]:
    """Stall and restore of both ways.

    Args:
        preset: whose networks.
        rounds: interleaved repetitions; medians are given.
        device: where the state lives.
        folder: on the disk to write to; a temporary one when None.

    Returns:
        "bytes", the `Cost` of "plain_save", "stall", "plain_load" and "restore", and the ratios of wall time
        "stall_ratio" and "restore_ratio".
    """
    return_freed_memory()
    with tempfile.TemporaryDirectory(prefix="inpaint-bench-", dir=folder) as place:
        run = load_run(preset, name="bench", root=place, assignments=["checkpoints.keep_best=0"])
        state = _state(run, device)
        writer = CheckpointWriter(run)
        costs: dict[str, list[tuple[float, float]]] = {}
        for step in range(rounds + 1):
            timed = {
                "plain_save": lambda: torch.save(state, Path(place) / "plain.pt"),
                "stall": lambda step=step: writer.save(step + 1, state, {}),
                "plain_load": lambda: _load_into(state, _plain_load(Path(place) / "plain.pt")),
                "restore": lambda: restore(latest(run.url), lambda loaded: _load_into(state, loaded)),
            }
            for name, work in timed.items():
                if name == "plain_load":
                    writer.close()  # the files, in the time between two checkpoints
                cost = _time(work, device)
                if step:  # the first round warms up buffers and files
                    costs.setdefault(name, []).append(cost)
        found: dict[str, Any] = {name: _median(taken) for name, taken in costs.items()}
    return found | {
        "preset": preset,
        "device": device_name(device),
        "date": today(),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state)),
        "stall_ratio": found["stall"].wall / found["plain_save"].wall,
        "restore_ratio": found["restore"].wall / found["plain_load"].wall,
    }


def report(results: dict[str, Any]) -> list[str]:
    """Lines for a person."""
    lines = [f"{results['preset']} on {results['device']}, {results['date']}: {results['bytes'] / 1e6:.0f} MB of state"]
    for name, text in (
        ("plain_save", "torch.save"), ("stall", "our checkpoint, as training sees it"),
        ("plain_load", "torch.load and load_state_dict"), ("restore", "our restore"),
    ):  # fmt: skip
        cost: Cost = results[name]
        lines.append(f"{text:46s} {cost.wall * 1e3:8.1f} ms wall {cost.cpu * 1e3:8.1f} ms CPU")
    lines.append(f"stall over torch.save   {results['stall_ratio']:.3f} (limit {STALL_LIMIT:.2f})")
    lines.append(f"restore over torch.load {results['restore_ratio']:.3f} (limit {RESTORE_LIMIT:.2f})")
    return lines


def _state(run: Any, device: str) -> dict[str, Any]:
    """Networks, and Adam's two moments for each of their parameters."""
    method = build_method(run).to(device)
    networks = {name: network.state_dict() for name, network in method.networks().items()}
    moments = {
        name: {
            number: {"step": torch.tensor(1.0), "exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
            for number, p in enumerate(network.parameters())
        }
        for name, network in method.networks().items()
    }
    return {"networks": networks, "trainer": {"step": 1, "optimizers": moments}}


def _plain_load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _load_into(live: Any, loaded: Any) -> None:
    """Copy a loaded state into the live tensors, as `load_state_dict` does."""
    with torch.no_grad():
        for to, value in zip(_tensors(live), _tensors(loaded), strict=True):
            to.copy_(value)


def _tensors(state: Any) -> list[Tensor]:
    """Every tensor, in the order of sorted names."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [tensor for key in sorted(state, key=str) for tensor in _tensors(state[key])]
    return []


def _median(taken: list[tuple[float, float]]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*taken, strict=True)))


def _time(work: Callable[[], Any], device: str) -> tuple[float, float]:
    """CPU and wall seconds; on CUDA the stream's work counts too."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    cpu, wall = cpu_seconds(), time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return cpu_seconds() - cpu, time.perf_counter() - wall
