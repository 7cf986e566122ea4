"""`inpaint bench step`: our training step against the straightforward one, in turns within one run."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from inpaint.bench.measure import Cost, device_name, interleaved, today
from inpaint.bench.plain_isnet import PlainStep
from inpaint.bench.step_equality import batch_of, compare, has_plain, method_of, repeated, training, without_kinks
from inpaint.config import list_presets, load_run
from inpaint.config.base import suggest
from inpaint.config.run import RunConfig
from inpaint.errors import ConfigError
from inpaint.imaging import Batch
from inpaint.nn.features import load_features
from inpaint.training import Trainer
from inpaint.training.graphs import WARM_UP
from inpaint.training.precision import policy

PLAIN = "plain step"
PARTS = ("forward", "backward", "optimizer")
COMPILED, GRAPH = ", compiled", ", CUDA graph"  # what the names of such candidates end in
CPU_SIZE = 128  # pixels; a step at 256 takes ten seconds of a core
LONG = 10**6  # steps: no stage ends while it is measured


def _fused_flops(image: Any, second: Any, third: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    """Of (image, weight, bias, ...), or with a sum of (image, residual, weight, ...); shapes."""
    weight = third if third is not None and len(third) == 4 else second
    return int(conv_flop_count(image, weight, out_shape))


FUSED_FLOPS = {torch.ops.mkldnn._convolution_pointwise: _fused_flops}  # of nn.fused, which torch does not count


def step_run(name: str, *, size: int | None, stage: str | None, device: str, batch: int = 2) -> RunConfig:
    """The run whose step is measured, with feature weights at random and one stage.

    Args:
        name: a preset; or a method, for its full preset on CUDA (and of ISNet everywhere), else its tiny one.
        size: pixels of both sides; when None, the preset's, and on a CPU 128 where that is smaller and allowed.
        stage: which of its stages; the last one of any length when None.
        device: cpu or cuda.
        batch: images per step.

    Raises:
        ConfigError: no such preset, method or stage, or a size or batch that the method cannot have.
    """
    offline = ["feature_weights.vgg19=random", "feature_weights.vgg16=random"]
    offline += [f"training.global_batch={batch}", "training.accumulate=1", "resources.num_workers=1"]
    run = load_run(_preset(name, device), assignments=[*offline, *([f"data.image_size={size}"] if size else [])])
    if size is None and device == "cpu" and run.data.image_size > CPU_SIZE:
        with suppress(ConfigError):  # a method built for its own size keeps it
            run = load_run(_preset(name, device), assignments=[*offline, f"data.image_size={CPU_SIZE}"])
    stages = [known for known, one in run.stages.items() if one.steps]
    wanted = stage or stages[-1]
    if wanted not in stages:
        raise ConfigError(f"{name} has no stage {wanted} of any length; choose one of {', '.join(stages)}")
    lengths = {known: one.model_copy(update={"steps": LONG * (known == wanted)}) for known, one in run.stages.items()}
    return run.model_copy(update={"stages": lengths})


def _preset(name: str, device: str) -> str:
    presets = list_presets()
    if name in presets:
        return name
    own = [preset for preset in presets if load_run(preset).method.name == name]
    if not own:
        raise ConfigError(f"{name} is neither a preset nor a method{suggest(name, presets)}; `inpaint train --help`")
    full = device != "cpu" or name == "isnet"
    ready = [preset for preset in own if not load_run(preset).method.weight_files()]  # all is drawn at random
    return [preset for preset in ready if preset.endswith("tiny") != full][-1]


def bench_step(
    run: RunConfig, *, batch: int, rounds: int, device: str, workers: int = 1, compiled: bool = False
) -> dict[str, Any]:
    """Measure steps of `run`'s method in float32 and bf16, beside the plain step where there is one (ISNet).

    Args:
        run: the method, its size of image and its feature weights (`random` is enough for timing).
        batch: images per step.
        rounds: times that the candidates take turns, after one step each to warm up.
        device: cpu or cuda.
        workers: measure DDP with 1, 2, 4, ... up to this many processes, each on a batch of its own.
        compiled: also measure the step under torch.compile, and how long its first step takes.

    Returns:
        `variants`: per candidate seconds of CPU and wall per step, speed-up over the plain step by CPU time (by wall on
        CUDA), images/s, shares of forward, backward and optimizer, peak memory in MiB, GFLOP per image, and the share
        of the device's measured matrix product; `equality`: how far the plain and our float32 step are apart;
        `scaling`: images/s by number of workers.
    """
    data = batch_of(run, batch, device)
    features = load_features(run)
    steps = _candidates(run, features, data, device, compiled)
    cuda = device.startswith("cuda")

    def timed(step: Callable[[], object]) -> Callable[[], float]:
        def work() -> float:
            step()
            if cuda:
                torch.cuda.synchronize()
            return 1.0

        return work

    first = {name: interleaved({name: timed(step)}, rounds=1)[name] for name, step in steps.items()}
    for step in steps.values():
        for _ in range(WARM_UP if cuda else 0):  # until a graph is captured, and cuDNN has chosen
            step()
    costs = interleaved({name: timed(step) for name, step in steps.items()}, rounds=rounds)
    with policy(training(), torch.device(device)):
        peaks = {dtype: _matmul_flops(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    variants = {}
    for name, step in steps.items():
        flops = _flops(steps[name.removesuffix(GRAPH).removesuffix(COMPILED)])  # the same work, where it shows
        cost = costs[name]
        spent = cost.wall if cuda else cost.cpu
        peak = peaks[torch.bfloat16 if "bf16" in name else torch.float32]
        variants[name] = {
            "cpu_seconds": cost.cpu,
            "wall_seconds": cost.wall,
            "speed_up": _speed_up(costs, name, cuda=cuda),
            "images_per_second": batch / cost.wall,
            "first_step_seconds": first[name].wall,
            "gflop_per_image": flops / batch / 1e9,
            "share_of_matmul_peak": flops / spent / peak,
            "peak_mib": None if GRAPH in name else _peak_mib(step, device),  # a graph allocates when it is captured
            "shares": {} if name == PLAIN else _shares(step, device),
        }
    result = {
        "device": device_name(device),
        "date": today(),
        "threads": torch.get_num_threads(),
        "method": run.method.name,
        "stage": next(name for name, stage in run.stages.items() if stage.steps),
        "image_size": run.data.image_size,
        "batch": batch,
        "variants": variants,
    }
    if PLAIN in steps:
        result["equality"] = compare(run, features, data, device=device)
        other = compare(without_kinks(run), features, data, device=device, steps=1, channels_last=True)
        result["equality"]["generator_gradients_channels_last"] = other["generator_gradients"]
    if workers > 1:
        result["scaling"] = scaling(run, batch=batch, device=device, workers=workers)
    return result


def scaling(run: RunConfig, *, batch: int, device: str, workers: int) -> dict[int, float]:
    """Images per second of wall time over all workers, by number of workers, each with its own batch and one thread.

    Raises:
        ConfigError: more workers than GPUs.
    """
    if device.startswith("cuda") and workers > torch.cuda.device_count():
        raise ConfigError(f"{workers} workers on {torch.cuda.device_count()} GPUs; give --workers at most as many")
    counts = sorted({count for count in (1, 2, 4, 8, 16, 32, 64) if count < workers} | {workers})
    found = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_scaled, (count, folder, run, batch, device), nprocs=count)
            seconds = max(float((Path(folder) / str(rank)).read_text()) for rank in range(count))
        found[count] = count * batch / seconds
    return found


def _scaled(rank: int, count: int, folder: str, run: RunConfig, batch: int, device: str) -> None:
    torch.set_num_threads(1)
    place = f"cuda:{rank}" if device.startswith("cuda") else device
    if device.startswith("cuda"):
        torch.cuda.set_device(rank)  # where NCCL's own calls go
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count)
    method = method_of(run, load_features(run))
    trainer = Trainer(method, training(), seed=0, device=place, rank=rank, world_size=count)
    steps = trainer.steps(repeated(batch_of(run, batch, place)))
    next(steps), next(steps)
    dist.barrier()
    begun = time.perf_counter()
    for _ in range(3):
        next(steps).values.sum().item()
    (Path(folder) / str(rank)).write_text(str((time.perf_counter() - begun) / 3))
    dist.barrier()
    dist.destroy_process_group()


def _candidates(
    run: RunConfig, features: dict[str, nn.Module], data: Batch, device: str, compiled: bool
) -> dict[str, Callable[[], object]]:
    configs = {"ours, float32": training(), "ours, bf16": training(precision="bfloat16")}
    if compiled:
        configs["ours, bf16" + COMPILED] = training(precision="bfloat16", compile=True)
    if device.startswith("cuda") and all(one.kind != "ranger21" for one in run.method.optimizers().values()):
        configs["ours, bf16" + GRAPH] = training(precision="bfloat16", cuda_graphs=True)
        if compiled:
            configs["ours, bf16" + COMPILED + GRAPH] = training(precision="bfloat16", cuda_graphs=True, compile=True)
    steps: dict[str, Callable[[], object]] = {}
    if has_plain(run):
        plain = PlainStep(method_of(run, features).to(device))
        steps[PLAIN] = lambda: _plainly(plain, data, device)
    for name, config in configs.items():
        trainer = Trainer(method_of(run, features), config, seed=0, device=device)
        steps[name] = _next_of(trainer.steps(repeated(data)))
    return steps


def _plainly(plain: PlainStep, data: Batch, device: str) -> object:
    """The plain step with the flags that ours has: what is compared is how it is written."""
    with policy(training(), torch.device(device)):
        return plain(data.image, data.mask)


def _next_of(steps: Iterator[Any]) -> Callable[[], object]:
    return lambda: next(steps)


def _speed_up(costs: dict[str, Cost], name: str, *, cuda: bool) -> float | None:
    if PLAIN not in costs:
        return None
    one, other = costs[PLAIN], costs[name]
    return one.wall / other.wall if cuda else one.cpu / other.cpu


def _flops(step: Callable[[], object]) -> float:
    """Operations of convolutions and products in a step, a multiply-add as two."""
    with FlopCounterMode(display=False, custom_mapping=FUSED_FLOPS) as counter:
        step()
    return float(counter.get_total_flops())


def _matmul_flops(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations per second of a large matrix product: what the device can do at best."""
    side = 8192 if device.startswith("cuda") else 1024
    one = torch.randn(side, side, dtype=dtype, device=device)

    def multiply() -> float:
        for _ in range(4):
            one @ one
        if one.is_cuda:
            torch.cuda.synchronize()
        return 4.0

    multiply()
    cost = interleaved({"product": multiply}, rounds=5)["product"]
    return 2 * side**3 / (cost.wall if one.is_cuda else cost.cpu)


def _shares(step: Callable[[], object], device: str) -> dict[str, float]:
    """Shares of a step's time; forward includes the losses."""
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * device.startswith("cuda")
    with profile(activities=kinds) as seen:
        step()
    events, cuda = seen.key_averages(), device.startswith("cuda")
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    spent = {event.key: float(event.device_time_total if cuda else event.cpu_time_total) for event in on_host}
    parts = {part: spent.get(f"step.{part}", 0.0) for part in PARTS}
    if cuda:  # a thread of autograd's own starts the kernels of backward: they are the rest
        kernels = sum(event.self_device_time_total for event in on_host)
        parts["backward"] = kernels - parts["forward"] - parts["optimizer"]
    total = sum(parts.values())
    return {part: value / total for part, value in parts.items()} if parts["forward"] else {}


def _peak_mib(step: Callable[[], object], device: str) -> float | None:
    """Most memory held during a step above what was held before it; None where the system does not tell."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def report(result: dict[str, Any]) -> list[str]:
    """The result as lines of a table."""
    lines = [
        f"{result['method']}, stage {result['stage']}, at {result['image_size']} pixels, batch {result['batch']}, on "
        f"{result['device']}, {result['threads']} threads, {result['date']}",
        f"{'step':34} {'cpu s':>7} {'wall s':>7} {'×':>5} {'img/s':>7} {'of peak':>7} {'MiB':>7}  fwd / bwd / opt",
    ]
    for name, row in result["variants"].items():
        speed_up = "" if row["speed_up"] is None else f"{row['speed_up']:.2f}"
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        shares = " / ".join(f"{row['shares'][part]:.0%}" for part in PARTS) if row["shares"] else ""
        lines.append(
            f"{name:34} {row['cpu_seconds']:7.3f} {row['wall_seconds']:7.3f} {speed_up:>5} "
            f"{row['images_per_second']:7.2f} {row['share_of_matmul_peak']:7.0%} {peak:>7}  {shares}"
        )
    for name, row in result["variants"].items():
        first = row["first_step_seconds"]
        lines.append(f"{name}: {row['gflop_per_image']:.1f} GFLOP per image, first step {first:.1f} s")
    for name, value in result.get("equality", {}).items():
        lines.append(f"float32 against plain, relative difference of {name.replace('_', ' ')}: {value:.1e}")
    for count, rate in result.get("scaling", {}).items():
        linear = rate / count / result["scaling"][1]
        lines.append(f"DDP, {count} workers of one thread: {rate:.2f} images/s, {linear:.0%} of linear")
    return lines
