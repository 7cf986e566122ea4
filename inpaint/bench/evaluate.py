"""What scoring costs beside filling and decoding: pictures of 256 pixels under every protocol of pixel scores."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from inpaint.config import load_run
from inpaint.config.evaluation import EvaluationRequest, FinishedImages
from inpaint.demo_photos import HELD_OUT, cut, photo
from inpaint.evaluation.baselines import mean_colour
from inpaint.evaluation.evaluate import assemble, score_parts
from inpaint.evaluation.finished import plan_finished
from inpaint.evaluation.holes import HoleSource
from inpaint.evaluation.perceptual import Networks
from inpaint.evaluation.pictures import open_pictures
from inpaint.evaluation.plan import Plan, make_plan
from inpaint.evaluation.protocols import PROTOCOLS
from inpaint.evaluation.scoring import Clock, NamedFiller, anonymous
from inpaint.imaging import to_float, to_pixels
from inpaint.masks import make_holes
from inpaint.methods import build_method

SIZE = 256
PIXEL_PROTOCOLS = [protocol for protocol in PROTOCOLS.values() if protocol.mask_loading != "centre"]
NETWORKS = Networks({}, {})


def measure_evaluation(*, images: int, model_images: int, preset: str, device: str | None = None) -> dict[str, Any]:
    """Seconds that the decoder, the model, the metrics and the tables take, and their shares.

    Twice: files that another program filled, where there is nothing to wait for but the decoder, and a model that
    fills the photographs under a hole of every bin.

    Args:
        images: finished files, each with its truth and its mask.
        model_images: photographs that the model fills.
        preset: whose network fills; its weights are random, which costs the same.
        device: cpu or cuda; whichever is there when None.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the clock counts this thread
    method = build_method(load_run(preset)).to(where).eval()
    try:
        with tempfile.TemporaryDirectory(prefix="inpaint-bench-") as folder:
            _write(Path(folder), images)
            _finished(Path(folder), where, threads)  # kernels are loaded, or compiled, when they are first used
            if where.type == "cuda":
                _model(Path(folder), anonymous(method.inpaint), where, 1)
            found = {
                "finished images": _finished(Path(folder), where, threads),
                preset: _model(Path(folder), anonymous(method.inpaint), where, model_images),
            }
    finally:
        torch.set_num_threads(threads)
    return {"protocols": len(PIXEL_PROTOCOLS), "device": str(where), "threads": threads, "measured": found}


def report(results: dict[str, Any]) -> list[str]:
    """The result in lines."""
    lines = [f"pictures of {SIZE} pixels under {results['protocols']} protocols on {results['device']}"]
    for name, found in results["measured"].items():
        seconds, fills = found["seconds"], found["fills"]
        total = sum(seconds.values())
        shares = ", ".join(f"{part} {value / total:.1%}" for part, value in seconds.items())
        each = ", ".join(f"{part} {1000 * value / fills:.2f}" for part, value in seconds.items())
        lines.append(f"{name}, {fills:,} fills: {shares}; ms of one core per fill: {each}")
        if "wall" in found:
            lines.append(
                f"{name}: {found['wall']:.1f} s in all with {results['threads']} threads, "
                f"{fills / found['wall']:.0f} fills a second"
            )
    return lines


def _write(folder: Path, images: int) -> None:
    """Photographs of an odd kind of film, their masks, and the fills of the mean colour."""
    crops = [crop for name in HELD_OUT for side in (SIZE, 288, 240) for crop in cut(photo(name), side=side)]
    for kind in ("truth", "filled", "masks"):
        (folder / kind).mkdir()
    for number in range(images):
        rng = np.random.default_rng(number)
        pixels = np.asarray(crops[number % len(crops)].resize((SIZE, SIZE)))
        truth = np.clip(pixels + rng.normal(0, 2, pixels.shape), 0, 255).astype(np.uint8)  # no two are alike
        low = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5)[number % 6]
        mask = make_holes(_strokes(low), SIZE)(rng)
        image, hole = to_float(torch.from_numpy(truth).permute(2, 0, 1)[None]), torch.from_numpy(mask)[None, None]
        filled = torch.where(hole > 0, mean_colour(image, hole.float()), image)
        name = f"{number:05d}.png"
        Image.fromarray(truth).save(folder / "truth" / name)
        Image.fromarray(to_pixels(filled)[0].permute(1, 2, 0).numpy()).save(folder / "filled" / name)
        Image.fromarray(mask * np.uint8(255)).save(folder / "masks" / name)


def _strokes(low: float) -> Any:
    from inpaint.config.holes import FreeFormHoles

    return FreeFormHoles(ratio=(low, round(low + 0.1, 1)))


def _finished(folder: Path, device: torch.device, threads: int) -> dict[str, Any]:
    places = {kind: str(folder / kind) for kind in ("truth", "filled", "masks")}
    files = FinishedImages(images=places["filled"], truth=places["truth"], masks=places["masks"], hole="white")
    count = len(list((folder / "truth").iterdir()))
    names = tuple(protocol.name for protocol in PIXEL_PROTOCOLS)
    request = EvaluationRequest(subject="bench", protocols=names, finished=files, limit=count)
    start = time.thread_time()
    plan, fill, _ = plan_finished(request, files, dataset="", perceptual=NETWORKS)
    opening = time.thread_time() - start
    seconds = _seconds(plan, fill, device)
    seconds = {"decoder": seconds["decoder"] + seconds.pop("model") + opening, **seconds}
    start = time.perf_counter()
    _, fill, _ = plan_finished(request, files, dataset="", perceptual=NETWORKS)
    for _ in score_parts(plan, plan.parts(), {"filled": fill}, device=device, perceptual=NETWORKS, threads=threads):
        pass
    return {"fills": count, "seconds": seconds, "wall": time.perf_counter() - start}


def _model(folder: Path, fill: NamedFiller, device: torch.device, images: int) -> dict[str, Any]:
    pictures = open_pictures(str(folder / "truth"))
    plan = make_plan(
        PIXEL_PROTOCOLS,
        pictures,
        HoleSource(),
        size=SIZE,
        dataset="",
        limit=min(images, len(pictures)),
        seed=0,
        batch=8,
        present={},
        absent={},
    )
    fills = len({(pair.image, pair.mask) for share in plan.shares.values() for pair in share.pairs})
    return {"fills": fills, "seconds": _seconds(plan, fill, device)}


def _seconds(plan: Plan, fill: NamedFiller, device: torch.device) -> dict[str, float]:
    """What each piece of the whole plan takes, in seconds of one thread, or of the device."""
    clock = Clock(device)
    start = time.thread_time()
    scoring = score_parts(plan, plan.parts(), {"filled": fill}, device=device, perceptual=NETWORKS, clock=clock)
    parts = list(scoring)
    beside = time.thread_time() - start - sum(clock.seconds.values()) if device.type == "cpu" else 0.0
    with clock("tables"):
        assemble(plan, parts, {"filled": {}}, perceptual=NETWORKS, dataset="")
    return {**clock.seconds, "tables": clock.seconds["tables"] + max(0.0, beside)}
