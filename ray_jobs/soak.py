"""A soak: one toy run is left alone, another is killed again and again, and both must end byte for byte the same.

    inpaint bench soak --kills 20 --s3

The disturbed run goes through the real driver, Ray Train and two workers. What is killed and when is drawn from a seed.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import yaml

from inpaint import checkpoints, storage
from inpaint.checkpoints.layout import MANIFEST
from inpaint.config import RunConfig
from inpaint.errors import TrainingError
from ray_jobs.kills import KILLS, Kill, workers_of
from ray_jobs.toy import toy_run, write_toy_shards

EARLY = 0.3  # share of kills that fall before the first checkpoint of an attempt
START_SECONDS = 300.0  # most that an attempt may take until its first step is logged
LONGEST_LIFE_SECONDS = 8.0  # of an attempt, after its workers are there
LOOK_SECONDS = 0.3
PUT_SECONDS = 0.2  # the soak's S3 takes this long to store an object, so that kills fall into uploads

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What must not depend on how often a run was killed."""

    history: bytes
    step: int
    weights: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str) -> Outcome:
        last = checkpoints.layout.find(url)
        weights = {name: entry["sha256"] for name, entry in last.files.items() if name.startswith("networks/")}
        return cls(storage.read_bytes(storage.join(url, "history.jsonl")), last.step, weights)


def soak(
    root: str,
    *,
    kills: int,
    seed: int,
    kinds: Sequence[str] = tuple(KILLS),
    steps: int = 200,
    say: Say = print,
) -> dict[str, Any]:
    """Kill a toy run `kills` times at drawn moments and compare its end with an undisturbed one's.

    Args:
        root: local folder or s3:// for the runs; their shards lie on local disk.
        kills: how often.
        seed: of what is killed and when.
        kinds: what may be killed, of `KILLS`; each in its turn, in a drawn order.
        steps: length of the run.
        say: told what happens.

    Returns:
        "kills" by kind, "in_uploads" (how many of them while a checkpoint was half written), "seconds",
        "equal": history, weights; "weights": their SHA-256.

    Raises:
        TrainingError: a start ended with an error of its own, or the ends differ.
    """
    with tempfile.TemporaryDirectory(prefix="inpaint-soak-") as place:
        folder = Path(place)
        write_toy_shards(folder)
        settings = (
            f"stages.gan.steps={steps}", "checkpoints.every=5", "evaluation.every=10",
            f"data.train={folder}/shards/toy/train", f"data.held_out={folder}/shards/toy/test",
        )  # fmt: skip
        began = time.monotonic()
        calm = toy_run(root, "calm", *settings, workers=2)
        _finish(_start(calm, folder), calm, folder)
        say(f"undisturbed: {time.monotonic() - began:.0f} s")
        wild = toy_run(root, "wild", *settings, workers=2)
        counts, in_uploads = _disturb(wild, folder, _drawn(kinds, kills, random.Random(seed)), random.Random(seed), say)
    expected, found = Outcome.of(calm.url), Outcome.of(wild.url)
    equal = {"history": expected.history == found.history, "weights": expected.weights == found.weights}
    if not all(equal.values()) or found.step != steps:
        raise TrainingError(f"{wild.url} ended otherwise than {calm.url}: {equal}, step {found.step} of {steps}")
    return {
        "kills": counts,
        "in_uploads": in_uploads,
        "seconds": time.monotonic() - began,
        "equal": equal,
        "weights": found.weights,
    }


@contextmanager
def slow_s3(bucket: str = "soak") -> Iterator[str]:
    """An S3 server in this process, in which each object takes a moment to be stored; the environment points to it.

    Yields:
        A root.
    """
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print a line per request
    store = DomainDispatcherApplication(create_backend_app)

    def slowly(environ: dict[str, Any], respond: Any) -> Any:
        if environ["REQUEST_METHOD"] == "PUT":
            time.sleep(PUT_SECONDS)
        return store(environ, respond)

    server = make_server("127.0.0.1", 0, slowly, threaded=True)
    threading.Thread(target=server.serve_forever, name="s3", daemon=True).start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "soak",
        "AWS_SECRET_ACCESS_KEY": "soak",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        os.environ.pop(name, None)
    try:
        urlopen(Request(f"{os.environ['AWS_ENDPOINT_URL']}/{bucket}", method="PUT")).close()
        yield f"s3://{bucket}"
    finally:
        server.shutdown()


def _drawn(kinds: Sequence[str], count: int, draw: random.Random) -> Iterator[Kill]:
    """So many kills; every kind once before any comes again."""
    left: list[str] = []
    for _ in range(count):
        left = left or draw.sample(list(kinds), len(kinds))
        yield KILLS[left.pop()]


def _disturb(
    run: RunConfig, folder: Path, kills: Iterator[Kill], draw: random.Random, say: Say
) -> tuple[dict[str, int], int]:
    """Kill something of the run again and again, starting it again where need be, and let it end."""
    counts: Counter[str] = Counter()
    in_uploads = 0
    driver, before = _start(run, folder), set()
    for kill in kills:
        while not _comes_to_life(driver, run, before, early=draw.random() < EARLY, life=draw.random()):
            _finish(driver, run, folder)
            say("the run ended before it was killed; its checkpoints are removed to go on")
            storage.delete_tree(storage.join(run.url, "checkpoints"))
            driver, before = _start(run, folder), set()
        before, uploading, step = set(workers_of(driver)), _is_half_written(run), _newest_step(run)
        kill.strike(driver)
        counts[kill.what] += 1
        in_uploads += uploading
        say(f"{counts.total()}: killed {kill.what} after checkpoint {step}{', during an upload' if uploading else ''}")
        if kill.ends_driver:
            driver.wait(START_SECONDS)
            driver, before = _start(run, folder), set()
    _finish(driver, run, folder)
    return dict(counts), in_uploads


def _start(run: RunConfig, folder: Path) -> subprocess.Popen[bytes]:
    """The real driver, in a process of its own."""
    path = folder / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(run.to_dict()))
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    with (folder / f"{run.name}.log").open("ab") as log:
        command = [sys.executable, "-m", "ray_jobs.train", str(path)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _finish(driver: subprocess.Popen[bytes], run: RunConfig, folder: Path) -> None:
    code = driver.wait()
    if code:
        said = (folder / f"{run.name}.log").read_text(errors="replace")[-2000:]
        raise TrainingError(f"{run.name} ended with exit code {code}; it said: {said}")


def _comes_to_life(
    driver: subprocess.Popen[bytes], run: RunConfig, before: set[int], *, early: bool, life: float
) -> bool:
    """Wait for new workers, unless `early` for a checkpoint of theirs, and then a share of the longest life.

    Returns:
        Whether the run is still there to be killed.
    """
    until, step = time.monotonic() + START_SECONDS, _newest_step(run)
    while driver.poll() is None:
        workers = set(workers_of(driver))
        if len(workers) >= run.resources.num_workers and not workers & before and (early or _newest_step(run) > step):
            time.sleep(life * LONGEST_LIFE_SECONDS)
            return driver.poll() is None
        if time.monotonic() > until:
            raise TrainingError(f"{run.name} did not come back to life within {START_SECONDS:.0f} s")
        time.sleep(LOOK_SECONDS)
    return False


def _newest_step(run: RunConfig) -> int:
    newest = checkpoints.latest(run.url)
    return newest.step if newest else 0


def _is_half_written(run: RunConfig) -> bool:
    """Whether the newest checkpoint's manifest is not there yet."""
    folder = storage.join(run.url, "checkpoints")
    steps = sorted(storage.list_folders(folder))
    return bool(steps) and not storage.exists(storage.join(folder, steps[-1], MANIFEST))
