"""`inpaint shards …`: write, verify, list and index shard sets, and compare two for duplicates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inpaint.errors import ConfigError, DataError

if TYPE_CHECKING:
    from inpaint.data.shards import SetReport

shards = typer.Typer(help="Write, verify, list, index and compare shard sets.", no_args_is_help=True)

SHOWN = 20  # refused images or duplicates printed; all are in the JSON output
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "b": 1}

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Url = Annotated[str, typer.Argument(help="Folder of a shard set, local or s3://.")]


def register(app: typer.Typer) -> None:
    app.add_typer(shards, name="shards")


@shards.command(epilog="inpaint shards write places365.tar s3://lab/places2/train --dataset places2 --split train")
def write(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder, tar or zip of images, local or s3://.")],
    url: Annotated[str, typer.Argument(metavar="DST", help="Folder for the set, local or s3://.")],
    dataset: Annotated[str | None, typer.Option(help="A known data set: places2, celeba, ...")] = None,
    split: Annotated[str | None, typer.Option(help="Split of --dataset: train, validation or test.")] = None,
    list_file: Annotated[str | None, typer.Option("--list", help="Text file with one image name per line.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples per shard (default 1000).")] = None,
    size: Annotated[str | None, typer.Option("--bytes", help="About how large a shard is, for instance 64MB.")] = None,
    short_side: Annotated[int | None, typer.Option(min=1, help="Reduce the shorter side to so many pixels.")] = None,
    crop: Annotated[int | None, typer.Option(min=0, help="Cut a centred square of this side; 0 = the largest.")] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="JPEG quality, 1 to 100 (default 95).")] = None,
    keep_original: Annotated[bool, typer.Option("--keep-original", help="Keep each file's own bytes.")] = False,
    shuffle: Annotated[int | None, typer.Option(help="Seed of a fixed shuffle; by name otherwise.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Refuse larger images (default 100 million).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (default: one per CPU).")] = None,
    as_json: Json = False,
) -> None:
    """Turn a folder, tar or zip of images into shards. Run it again to finish an interrupted set."""
    from inpaint.data.samples import ShardOptions
    from inpaint.data.shards import write_shards
    from inpaint.data.workers import in_processes

    for word, place in (("SRC", source), ("DST", url)):
        if not place.strip():
            raise ConfigError(f"{word} is empty; give a folder, local or s3://bucket/prefix")
    if (dataset is None) != (split is None):
        raise ConfigError("--dataset and --split belong together: give both, or neither to take every image")
    if keep_original and quality is not None:
        raise ConfigError("--keep-original keeps every byte; --quality would do nothing. Give only one")
    given = {"short_side": short_side, "center_crop": crop, "quality": quality, "max_pixels": max_pixels}
    options = ShardOptions(
        samples=samples if size or samples else 1000,
        shard_bytes=parse_bytes(size) if size else None,
        keep_original=keep_original,
        **{name: value for name, value in given.items() if value is not None},
    )
    run = partial(context.obj or in_processes, workers=workers)  # python -m ray_jobs.shard brings the cluster's
    chosen: dict[str, Any] = {"dataset": dataset, "split": split, "list_file": list_file}
    chosen |= {"shuffle": shuffle, "limit": limit}
    with progress_bar("images") as (planned, progress):
        report = write_shards(source, url, options=options, run=run, planned=planned, progress=progress, **chosen)
    show_report(report, as_json=as_json)


@shards.command(epilog="inpaint shards verify s3://lab/shards/places2/train")
def verify(
    url: Url,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every image.")] = False,
    as_json: Json = False,
) -> None:
    """Read a set back: every checksum, count and position against the index. Exit code 1 when something is wrong."""
    from inpaint.data.checking import verify_set

    with progress_bar("samples") as (planned, progress):
        verdict = verify_set(url, decode=decode, planned=planned, progress=progress)
    if as_json:
        typer.echo(json.dumps(asdict(verdict) | {"whole": not verdict.faults}))
    else:
        for fault in verdict.faults:
            typer.echo(f"{fault.place}: {fault.problem}")
        sound = f"{verdict.shards:,} shards, {verdict.samples:,} samples, {verdict.bytes:,} bytes"
        typer.echo(f"{url}: {sound} are as the index says")
    if verdict.faults:
        raise DataError(f"{url}: {len(verdict.faults)} faults; bring back what is named above, or write the set again")


@shards.command(name="list", epilog="inpaint shards list s3://lab/shards")
def list_(
    url: Annotated[str, typer.Argument(help="Folder with shard sets in it, local or s3://.")], as_json: Json = False
) -> None:
    """Say which shard sets are there: samples, shards, bytes, where they come from."""
    from rich.console import Console
    from rich.table import Table

    from inpaint.data.checking import list_sets

    found = list_sets(url)
    if as_json:
        typer.echo(json.dumps([asdict(summary) for summary in found]))
        return
    table = Table("set", "samples", "shards", "bytes", "from", "digest", box=None)
    for s in found:
        place = s.url.removeprefix(url.rstrip("/")).strip("/") or s.url
        table.add_row(place, f"{s.samples:,}", f"{s.shards:,}", f"{s.bytes:,}", s.source, s.digest[:12])
    Console(soft_wrap=True).print(table)
    for s in found:
        if s.problem:
            typer.echo(f"{s.url}: {s.problem}")


@shards.command(epilog="inpaint shards index s3://lab/other-program/train")
def index(url: Url, as_json: Json = False) -> None:
    """Write the index of tars that another program made, or anew after shards were changed."""
    from inpaint import storage
    from inpaint.data.index import index_set

    with progress_bar("bytes") as (planned, progress):
        planned(sum(info.size for info in storage.list_objects(url) if info.url.endswith(".tar")))
        made = index_set(url, progress=progress)
    if as_json:
        typer.echo(json.dumps({"url": url, "digest": made.digest, "shards": len(made.shards), "samples": len(made)}))
    else:
        typer.echo(f"{url}: {len(made):,} samples in {len(made.shards):,} shards, digest {made.digest[:12]}")


@shards.command(epilog="inpaint shards overlap s3://lab/shards/places2/train s3://lab/shards/places2/test")
def overlap(
    first: Annotated[str, typer.Argument(metavar="A", help="A shard set, usually the training one.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one, usually the test set.")],
    as_json: Json = False,
) -> None:
    """Find exact and near duplicates between two sets; the answer is kept beside A."""
    from inpaint.data.overlap import check_overlap

    with progress_bar("images") as (planned, progress):
        found = check_overlap(first, second, planned=planned, progress=progress)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"exact": found.exact}))
        return
    for pair in found.pairs[:SHOWN]:
        how = "same bytes" if pair.exact else f"{64 - pair.signs} of 64 signs{', mirrored' if pair.mirrored else ''}"
        typer.echo(f"{pair.first} = {pair.second} ({how})")
    if len(found.pairs) > SHOWN:
        typer.echo(f"... and {len(found.pairs) - SHOWN:,} more pairs; --json lists all")
    a, b = found.images
    typer.echo(
        f"{len(found.pairs):,} pairs, {found.exact:,} of them the same bytes: {found.in_first:,} of {a:,} images of A "
        f"and {found.in_second:,} of {b:,} of B have a duplicate in the other"
    )


def show_report(report: SetReport, *, as_json: bool) -> None:
    """What a writing run made, and every image it refused."""
    if as_json:
        typer.echo(json.dumps(asdict(report)))
        return
    for reason, count in [*report.left_out.items(), *report.mended.items()]:
        if count:
            typer.echo(f"{count:,} file{'s' * (count > 1)}: {reason}")
    for reason, count in Counter(reason for _, reason in report.refused).most_common(SHOWN):
        typer.echo(f"refused {count:,}: {reason}")
    for name, reason in report.refused[:SHOWN]:
        typer.echo(f"  {name}: {reason}")
    if len(report.refused) > SHOWN:
        typer.echo(f"  ... and {len(report.refused) - SHOWN:,} more; all are in {report.url}/report.json")
    kept = f" ({report.kept:,} shards were finished before)" if report.kept else ""
    typer.echo(
        f"{report.url}: {report.samples:,} samples in {report.shards:,} shards, {report.bytes:,} bytes, "
        f"{len(report.refused):,} images refused, digest {report.digest[:12]}{kept}"
    )


def parse_bytes(text: str) -> int:
    """64MB, 1GiB or 5000000 as bytes.

    Raises:
        ConfigError: not a size.
    """
    number = text.strip().lower()
    unit = next((unit for unit in UNITS if number.endswith(unit)), "")
    try:
        return int(float(number.removesuffix(unit)) * UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        raise ConfigError(f"{text} is not a size; expected for instance 64MB, 1GiB or 5000000") from None


@contextmanager
def progress_bar(what: str) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar on stderr; gives (total is known, so many more are done)."""
    from rich import progress as parts
    from rich.console import Console

    columns = parts.TextColumn("{task.description}"), parts.BarColumn(), parts.MofNCompleteColumn()
    times = parts.TimeElapsedColumn(), parts.TimeRemainingColumn()
    console = Console(stderr=True)
    with parts.Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda total: bar.update(task, total=total), lambda done: bar.advance(task, done)
