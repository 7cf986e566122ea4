"""`inpaint bench fill`: what one-shot and progressive filling cost, by bins of hole ratio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inpaint.bench.measure import device_name, interleaved, today
from inpaint.config.holes import FreeFormHoles
from inpaint.config.run import RunConfig
from inpaint.imaging import composite
from inpaint.inference import prepare, progressive, schedule
from inpaint.masks import make_holes
from inpaint.methods import build_method

BINS = ((0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5))  # ISNet Table 5
PAPER = 85.46 / 52.69  # ISNet Table 3: progressive over one-shot, milliseconds per image
SLOTS = 4  # images per generator call


def bench_fill(run: RunConfig, *, size: int, masks: int, rounds: int, device: str) -> dict[str, Any]:
    """Cost of filling with a method as published (batch 1, float32) and prepared (bf16, folded, continuous batching).

    Args:
        run: the method; its weights do not matter for cost.
        size: of the images, pixels.
        masks: free-form masks per bin.
        rounds: times that the candidates take turns.
        device: cpu or cuda.

    Returns:
        `bins`: per bin, and `all`: mean extra passes, the paper's ratio beside ours in seconds of CPU (wall on CUDA):
        `one_shot` and `progressive` per image and, over that, `over_passes`: progressive / one-shot / (1 + extra).
    """
    torch.manual_seed(run.seed)
    method = build_method(run).to(device).eval()
    dtypes = {"float32": "float32", "bf16": "bfloat16"}
    engines = {name: prepare(method, precision=precision) for name, precision in dtypes.items()}
    cuda = device.startswith("cuda")
    holes = {ratio: _holes(ratio, size, masks).to(device) for ratio in BINS}
    result: dict[str, Any] = {
        "method": run.method.name, "image_size": size, "masks_per_bin": masks, "slots": SLOTS,
        "device": device_name(device), "date": today(), "threads": torch.get_num_threads(), "paper_ratio": PAPER,
        "engines": {},
    }  # fmt: skip
    for name, engine in engines.items():
        rows = {}
        for ratio, mask in holes.items():
            rows[f"{ratio[0]:.0%}-{ratio[1]:.0%}"] = _measure(engine.inpaint, mask, rounds=rounds, cuda=cuda)
        rows["all"] = _measure(engine.inpaint, torch.cat(list(holes.values())), rounds=rounds, cuda=cuda)
        result["engines"][name] = rows
    result["plain_one_shot"] = _plain_one_shot(method, holes[BINS[-1]], rounds=rounds, cuda=cuda)
    return result


def report(result: dict[str, Any]) -> list[str]:
    """The result as lines of a table."""
    lines = [
        f"{result['method']} at {result['image_size']} pixels, {result['masks_per_bin']} masks per bin, "
        f"{result['slots']} images per call, on {result['device']}, {result['threads']} threads, {result['date']}; the "
        f"paper's ratio is {PAPER:.2f}",
        f"{'engine':8} {'holes':>8} {'one-shot s':>11} {'progressive s':>14} {'extra passes':>13} {'ratio':>6} "
        f"{'/(1+extra)':>11}",
    ]
    for engine, rows in result["engines"].items():
        for holes, row in rows.items():
            lines.append(
                f"{engine:8} {holes:>8} {row['one_shot']:11.4f} {row['progressive']:14.4f} {row['extra_passes']:13.2f} "
                f"{row['ratio']:6.2f} {row['over_passes']:11.3f}"
            )
    lines.append(f"one image per call, spectral norm computed each time: {result['plain_one_shot']:.4f} s")
    return lines


def _measure(inpaint: Callable[[Tensor, Tensor], Tensor], mask: Tensor, *, rounds: int, cuda: bool) -> dict[str, float]:
    """Both ways on the same images and masks, in calls of the same size."""
    image = torch.rand(len(mask), 3, *mask.shape[-2:], device=mask.device)
    extra = sum(schedule(mask).calls) / len(mask) - 1

    @torch.no_grad()
    def one_shot() -> float:
        for some, holes in zip(image.split(SLOTS), mask.split(SLOTS), strict=True):
            composite(some, inpaint(some, holes), holes)
        return _finished(len(mask), cuda)

    def in_rings() -> float:
        progressive(inpaint, image, mask, slots=SLOTS)
        return _finished(len(mask), cuda)

    one_shot()
    costs = interleaved({"one_shot": one_shot, "progressive": in_rings}, rounds=rounds)
    found = {name: cost.wall if cuda else cost.cpu for name, cost in costs.items()}
    ratio = found["progressive"] / found["one_shot"]
    return {**found, "extra_passes": extra, "ratio": ratio, "over_passes": ratio / (1 + extra)}


@torch.no_grad()
def _plain_one_shot(method: Any, mask: Tensor, *, rounds: int, cuda: bool) -> float:
    """Seconds per image of the method as trained, one image at a time."""
    image = torch.rand(len(mask), 3, *mask.shape[-2:], device=mask.device)

    def work() -> float:
        for one, hole in zip(image.split(1), mask.split(1), strict=True):
            composite(one, method.inpaint(one, hole), hole)
        return _finished(len(mask), cuda)

    work()
    cost = interleaved({"plain": work}, rounds=rounds)["plain"]
    return cost.wall if cuda else cost.cpu


def _finished(images: int, cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    return float(images)


def _holes(ratio: tuple[float, float], size: int, count: int) -> Tensor:
    """Free-form masks of one bin, [count, 1, size, size]."""
    draw, generator = make_holes(FreeFormHoles(), size, ratio=ratio), np.random.default_rng(0)
    return torch.from_numpy(np.stack([draw(generator) for _ in range(count)])).float()[:, None]
