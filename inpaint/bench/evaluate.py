"""What scoring costs beside filling and decoding: photographs of 256 pixels under every protocol of pixel scores."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from inpaint.config import load_run
from inpaint.demo_photos import HELD_OUT, cut, photo
from inpaint.evaluation.evaluate import score_parts
from inpaint.evaluation.holes import HoleSource
from inpaint.evaluation.perceptual import Networks
from inpaint.evaluation.pictures import Pictures, open_pictures
from inpaint.evaluation.plan import Plan, make_plan
from inpaint.evaluation.protocols import PROTOCOLS
from inpaint.evaluation.scoring import Clock, NamedFiller, anonymous
from inpaint.methods import build_method

SIZE = 256
PIXEL_PROTOCOLS = [protocol for protocol in PROTOCOLS.values() if protocol.mask_loading != "centre"]


def measure_evaluation(*, images: int, preset: str, device: str | None = None) -> dict[str, Any]:
    """Seconds that decoding, the model and the metrics take, and their shares.

    Twice: with a model that fills every hole, and with finished images, where there is nothing to wait for but the
    decoder.

    Args:
        images: how many different photographs, each under a hole of every bin.
        preset: whose network fills; its weights are random, which costs the same.
        device: cpu or cuda; whichever is there when None.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the clock counts this thread
    method = build_method(load_run(preset)).to(where).eval()
    nothing = anonymous(lambda image, mask: image)
    try:
        with tempfile.TemporaryDirectory(prefix="inpaint-bench-") as folder:
            _write(Path(folder), images)
            pictures = open_pictures(folder)
            plan = _plan(pictures)
            found = {
                preset: _seconds(plan, anonymous(method.inpaint), where),
                "finished images": _seconds(plan, nothing, where),
            }
    finally:
        torch.set_num_threads(threads)
    holes = len({(pair.image, pair.mask) for share in plan.shares.values() for pair in share.pairs})
    return {"images": images, "holes": holes, "protocols": len(plan.shares), "device": str(where), "seconds": found}


def report(results: dict[str, Any]) -> list[str]:
    """The result in lines."""
    lines = [
        f"{results['images']} images of {SIZE} pixels, {results['holes']} holes, {results['protocols']} protocols, "
        f"{results['device']}"
    ]
    for name, seconds in results["seconds"].items():
        total = sum(seconds.values())
        shares = ", ".join(f"{part} {value / total:.1%}" for part, value in seconds.items())
        each = 1000 * seconds["metrics"] / results["holes"]
        lines.append(f"{name}: {shares}; metrics {each:.1f} ms per fill under all protocols")
    return lines


def _write(folder: Path, images: int) -> None:
    crops = [crop for name in HELD_OUT for side in (SIZE, 288, 240) for crop in cut(photo(name), side=side)]
    for number in range(images):
        crop = crops[number % len(crops)].resize((SIZE, SIZE))
        crop.save(folder / f"{number:05d}.jpg", quality=95)


def _plan(pictures: Pictures) -> Plan:
    return make_plan(
        PIXEL_PROTOCOLS,
        pictures,
        HoleSource(),
        size=SIZE,
        dataset="",
        limit=len(pictures),
        seed=0,
        batch=8,
        present={},
        absent={},
    )


def _seconds(plan: Plan, fill: NamedFiller, device: torch.device) -> dict[str, float]:
    """Decoding, filling and scoring of the whole plan, each in seconds of one thread, or of the device."""
    start = time.thread_time()
    for name in plan.images:
        plan.pictures.read(name)
    decoding = time.thread_time() - start
    clock = Clock(device)
    networks = Networks({}, {})
    for _ in score_parts(plan, plan.parts(), {"filled": fill}, device=device, perceptual=networks, clock=clock):
        pass
    return {"decoding": decoding, **clock.seconds}
