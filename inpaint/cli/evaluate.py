"""`inpaint evaluate`: scores of a checkpoint, a baseline or finished images, by bins of hole ratio, stamped."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)


def evaluate(
    subject: str | None = typer.Argument(None, help="Run or checkpoint (name or URL), or baseline:NAME."),
    data: str | None = typer.Argument(None, help="Folder, archive or shard set; the run's held-out set if left out."),
    protocols: list[str] = typer.Option(["inp-v1"], "--protocol", help="Name, or all; may be repeated."),
    best: str | None = typer.Option(None, "--best", metavar="METRIC", help="The run's best by this, not its newest."),
    images: str | None = typer.Option(None, "--images", help="Score these finished images; with --truth and --masks."),
    truth: str | None = typer.Option(None, "--truth", help="What the finished images should look like."),
    masks: str | None = typer.Option(None, "--masks", help="Mask files; drawn strokes when left out."),
    hole: str | None = typer.Option(None, "--hole", metavar="white|black", help="The value of holes in the masks."),
    progressive: bool = typer.Option(False, "--progressive", help="Fill progressively too; report the difference."),
    limit: int | None = typer.Option(None, "--limit", min=1, help="At most N images; accepts fewer than published."),
    size: int | None = typer.Option(None, "--size", min=16, help="Pixels of both sides, instead of the run's."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of the choice of images and their pairs with masks."),
    batch: int = typer.Option(8, "--batch", min=1, help="Images per call of the network."),
    lpips: list[str] = typer.Option([], "--lpips", metavar="NET=SOURCE", help="alex, vgg or squeeze; torchvision, "
                                    "a path, s3://..., or random."),
    features: list[str] = typer.Option([], "--features", metavar="NAME=SOURCE", help="Inception weights for FID: "
                                       "torchvision, tf-port or nvidia = a path or s3://..."),
    faces: list[str] = typer.Option([], "--faces", metavar="WHAT=SOURCE", help="identity or landmarks = TorchScript."),
    sha256: list[str] = typer.Option([], "--sha256", metavar="NAME=DIGEST", help="Digest a weights file must have."),
    workers: int = typer.Option(0, "--workers", min=0, help="Score on this many Ray workers, which "
                                 "share the GPUs; 0 scores here."),
    address: str | None = typer.Option(None, "--address", help="Of a Ray cluster, with --workers. [env: RAY_ADDRESS]"),
    name: str = typer.Option("finished", "--name", help="Of finished images, in tables and file names."),
    root: str | None = typer.Option(None, "--root", help="s3://bucket/prefix or a folder. [env: INPAINT_ROOT]"),
    out: str | None = typer.Option(None, "--out", "-o", help="Folder for results; beside the run if left out."),
    device: str | None = typer.Option(None, "--device", help="cpu or cuda; whichever is there if left out."),
    leak_check: bool = typer.Option(True, "--leak-check/--no-leak-check", help="Look for test images in training."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:  # fmt: skip
    """Score a run, checkpoint, baseline or folder of finished images, under one or many published protocols.

    inpaint evaluate tiny --protocol inp-v1 --protocol isnet-2022-test --limit 48
    """
    from inpaint.config.base import validate
    from inpaint.config.evaluation import EvaluationRequest
    from inpaint.errors import EvaluationError

    finished = _finished(images, truth, masks, hole)
    if subject is None and finished is None:
        raise EvaluationError("give a run, a checkpoint, baseline:NAME, or --images with --truth and --masks")
    if finished is None and name != "finished":
        raise EvaluationError("--name has no effect without --images; leave it out")
    if finished and subject is not None:
        raise EvaluationError(f"{subject}: --images scores finished images and takes no run; use --name for their name")
    if address and not workers:
        raise EvaluationError("--address has no effect without --workers; say how many, or leave it out")
    values: dict[str, Any] = {
        "subject": subject or name, "data": data, "protocols": tuple(protocols), "best": best, "finished": finished,
        "masks": None if finished else _masks(masks, hole), "progressive": progressive, "limit": limit, "size": size,
        "seed": seed, "batch": batch, "lpips": _pairs("--lpips", lpips), "features": _pairs("--features", features),
        "faces": _pairs("--faces", faces), "sha256": _pairs("--sha256", sha256), "out": out, "device": device,
        **({"root": root} if root else {}),
    }  # fmt: skip
    request = validate(EvaluationRequest, values, place="evaluate")
    job, result = _run(request, workers=workers, address=address)
    leaks = _leaks(job) if leak_check else []
    if as_json:
        print(json.dumps({"url": job.url, **result.to_dict(), "leaks": leaks}))
        return
    _print(job, result, leaks)


def _run(request: Any, *, workers: int, address: str | None) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        def tell(text: str) -> None:
            print(text, file=sys.stderr)

        if workers:
            from ray_jobs.evaluate import run_on_ray

            return run_on_ray(request, workers=workers, address=address, progress=show, tell=tell)
        from inpaint.evaluation.job import run_job

        return run_job(request, progress=show, tell=tell)


def _leaks(job: Any) -> list[str]:
    """What the leak check says of the run's training set and these images; nothing for what was not trained."""
    from inpaint.cli.report import look_for_leaks

    if "train" not in job.subject.about:
        return []
    found = look_for_leaks([(job.subject.about["train"], job.plan.pictures.name)])
    return [*found.found.values(), *found.unknown.values()]


def _print(job: Any, result: Any, leaks: list[str]) -> None:
    from rich.console import Console

    from inpaint.evaluation.showing import result_tables

    console = Console()
    about = next(iter(result.subjects.values()))
    where = f"step {about['step']} of {about['run']}" if "step" in about else about["name"]
    console.print(f"{where}, {len(job.plan.images)} images of {job.plan.pictures.name}", highlight=False)
    for text in leaks:
        console.print(text, style="bold red", highlight=False)
    console.print(result_tables(result, width=console.width))
    print(job.url, file=sys.stderr)


def _finished(images: str | None, truth: str | None, masks: str | None, hole: str | None) -> dict[str, Any] | None:
    from inpaint.errors import EvaluationError

    if not images and not truth:
        return None
    given = {"--images": images, "--truth": truth, "--masks": masks, "--hole": hole}
    if missing := [option for option, value in given.items() if not value]:
        raise EvaluationError(f"{missing[0]} is missing; finished images need --images, --truth, --masks and --hole")
    return {"images": images, "truth": truth, "masks": masks, "hole": hole}


def _masks(masks: str | None, hole: str | None) -> dict[str, Any] | None:
    from inpaint.errors import EvaluationError

    if masks and not hole:
        raise EvaluationError(f"{masks}: files do not say which value is the hole; give --hole white or --hole black")
    if hole and not masks:
        raise EvaluationError("--hole has no effect without --masks; leave it out")
    return {"url": masks, "hole": hole} if masks else None


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    from inpaint.errors import EvaluationError

    for text in texts:
        if "=" not in text:
            raise EvaluationError(f"{option} {text}: expected NAME=VALUE")
    return {name: value for name, _, value in (text.partition("=") for text in texts)}
