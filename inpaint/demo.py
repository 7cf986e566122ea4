"""The main job in minutes: photos → shards → object store → Ray Train → scores → pulled checkpoint → filled holes.

Everything here calls the functions behind the commands of the same names; nothing is made for the demo but its
photographs and pictures.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from inpaint.config import RunConfig, load_run
from inpaint.demo_photos import HELD_OUT, TRAINING, photo, write_crops
from inpaint.errors import ConfigError

BUCKET = "inpaint-demo"
RUN = "demo"
HOLE_SEED = 7
PICTURE_PIXELS = 64  # near the size the model is trained at
SHARD_SAMPLES = 256
MODEL = "ISNet (tiny)"  # the model's column in the table

Say = Callable[[str], None]


@contextmanager
def object_store(root: str | None) -> Iterator[str]:
    """The demo's root: `root` as it is, or a bucket in an S3 server of its own that ends with the demo.

    Yields:
        A root for `load_run`.
    """
    if root:
        yield root
        return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print a line per request
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        os.environ.pop(name, None)
    try:
        urlopen(Request(f"{os.environ['AWS_ENDPOINT_URL']}/{BUCKET}", method="PUT")).close()
        yield f"s3://{BUCKET}"
    finally:
        server.stop()


def write_photos(run: RunConfig, say: Say) -> None:
    """Cut the bundled photographs and write both shard sets; a photograph is in one of them only."""
    from inpaint.data.samples import ShardOptions
    from inpaint.data.shards import write_shards
    from inpaint.data.workers import available_cpus, in_processes

    run_tasks = partial(in_processes, workers=available_cpus())
    for names, url in ((TRAINING, run.train_url), (HELD_OUT, run.held_out_url)):
        with tempfile.TemporaryDirectory(prefix="inpaint-demo-") as folder:
            count = write_crops(names, Path(folder), size=run.data.image_size)
            write_shards(folder, url, options=ShardOptions(samples=SHARD_SAMPLES), run=run_tasks)
        say(f"{url}: {count} crops of {len(names)} photographs")


def score(run: RunConfig, method: Any, *, images: int) -> Any:
    """The model beside two fills that learn nothing, on the held-out crops, by bins of hole ratio."""
    from inpaint.evaluation.baselines import BASELINES
    from inpaint.evaluation.evaluate import evaluate_fillers
    from inpaint.evaluation.pictures import open_pictures

    fillers = {
        MODEL: method.inpaint,
        "mean colour": BASELINES["mean-colour"],
        "biharmonic": BASELINES["biharmonic"],
    }
    pictures = open_pictures(run.held_out_url)
    return evaluate_fillers(fillers, pictures, size=run.data.image_size, limit=images, seed=HOLE_SEED)


def held_out_squares(size: int) -> dict[str, np.ndarray]:
    """The held-out photographs whole, as centred squares of `size` pixels, uint8 [size, size, 3] by name."""
    from inpaint.evaluation.pictures import square

    return {Path(name).stem: square(np.asarray(photo(name)), size=size, resize="lanczos") for name in HELD_OUT}


def fill_photos(method: Any, folder: Path) -> list[tuple[str, list[np.ndarray]]]:
    """Fill a hole in each held-out photograph, once and progressively, and write photo, mask and fills to `folder`.

    Returns:
        A name and its pictures (truth, masked, one-shot, progressive), uint8 [H, W, 3], per photograph.
    """
    import torch
    from PIL import Image

    from inpaint.config.holes import FreeFormHoles
    from inpaint.imaging import to_float, to_pixels
    from inpaint.inference import fill
    from inpaint.masks import make_holes

    holes = make_holes(FreeFormHoles(ratio=(0.25, 0.35)), PICTURE_PIXELS)
    rows = []
    for number, (name, image) in enumerate(held_out_squares(PICTURE_PIXELS).items()):
        mask = holes(np.random.default_rng([HOLE_SEED, number]))
        given = to_float(torch.from_numpy(image.copy())).permute(2, 0, 1)[None]
        hole = torch.from_numpy(mask).float()[None, None]
        one_shot, progressive = (
            to_pixels(fill(method, given, hole, progressive=rounds))[0].permute(1, 2, 0).numpy()
            for rounds in (False, True)
        )
        masked = np.where(mask[..., None] > 0, 255, image).astype(np.uint8)
        files = {"photo": image, "mask": mask * 255, "filled": one_shot, "progressive": progressive}
        for kind, pixels in files.items():
            Image.fromarray(pixels).save(folder / f"{name}-{kind}.png")
        rows.append((name, [image, masked, one_shot, progressive]))
    return rows


def draw_grid(rows: list[tuple[str, list[np.ndarray]]], path: Path) -> None:
    """Truth, masked, one-shot and progressive of each photograph side by side, as a PNG."""
    from matplotlib.figure import Figure

    titles = ("truth", "masked", "one-shot", "progressive")
    figure = Figure(figsize=(10, 2.6 * len(rows)), layout="constrained")
    for axes, (name, pictures) in zip(figure.subplots(len(rows), 4, squeeze=False), rows, strict=True):
        for cell, title, picture in zip(axes, titles, pictures, strict=True):
            cell.imshow(picture)
            cell.set_title(f"{name}: {title}", fontsize=9)
            cell.axis("off")
    figure.savefig(path, dpi=110)


def draw_curves(run: RunConfig, path: Path) -> None:
    """Every logged loss and the held-out PSNR over the steps, as a PNG."""
    from matplotlib.figure import Figure

    from inpaint.checkpoints import read_history

    rows = read_history(run.url)
    keys = sorted({key for row in rows for key in row if key.endswith("/loss")})
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, len(keys) + 1)
    for cell, key in zip(axes, [*keys, run.checkpoints.metric], strict=True):
        points = [(row["step"], row[key]) for row in rows if key in row]
        cell.plot(*zip(*points, strict=True), marker="." if key == run.checkpoints.metric else "")
        cell.set(title=key, xlabel="step")
    figure.savefig(path, dpi=110)


def demo_run(root: str, *, assignments: list[str]) -> RunConfig:
    """The demo's run: the `tiny` preset on the bundled photographs."""
    return load_run("tiny", assignments=assignments, name=RUN, root=root)


def prepare_output(folder: Path) -> Path:
    """The folder for pictures, made if need be.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".write").touch()
        (folder / ".write").unlink()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error}); choose another with --output") from error
    return folder
