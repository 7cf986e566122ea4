"""Where a task's pods will look: paths and URLs in its settings, checked before anything is sent."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from inpaint.config.evaluation import EvaluationRequest
from inpaint.config.run import RunConfig
from inpaint.errors import ConfigError

NO_FILES = ("torchvision", "random", "present")  # sources of weights that are not a path
SET_OF_ROOT = re.compile(r"\w[\w.-]*(/\w[\w.-]*)+")  # an evaluation's `<dataset>/<split>`


class Place(NamedTuple):
    """A path or URL in a task's settings, where its pods will look.

    Attributes:
        setting: what names it.
        url: as given.
        is_scratch: each pod has its own there.
        in_image: the image may have it, where this machine does not.
    """

    setting: str
    url: str
    is_scratch: bool = False
    in_image: bool = False


def run_places(run: RunConfig) -> Iterator[Place]:
    """Every place in a run's settings but its root."""
    yield from _places({"data.train": run.data.train, "data.held_out": run.data.held_out})
    yield from _places({"holes.url": getattr(run.holes, "url", None)})
    starts = {f"stages.{name}.from": stage.start_from for name, stage in run.stages.items()}
    yield from _places({setting: start for setting, start in starts.items() if start and "/" in start})  # else a name
    files = {setting: source for setting, (source, _) in run.method.weight_files().items()}
    yield from _places(files, in_image=True)
    yield from _sources("feature_weights", {"vgg19": run.feature_weights.vgg19, "vgg16": run.feature_weights.vgg16})
    yield from _sources("evaluation.lpips", run.evaluation.lpips)
    prior = getattr(run.method, "psp", None)
    own = {"data.cache_dir": run.data.cache_dir, "method.psp.cache": prior.cache if prior else None}
    yield from _places(own, is_scratch=True)


def request_places(request: EvaluationRequest) -> Iterator[Place]:
    """Every place in an evaluation but its root."""
    finished, masks = request.finished, request.masks
    if "/" in request.subject and not finished:
        yield Place("subject", request.subject)
    if request.data and not SET_OF_ROOT.fullmatch(request.data):
        yield Place("data", request.data)
    if finished:
        yield from _places({f"finished.{name}": getattr(finished, name) for name in ("images", "truth", "masks")})
    yield from _places({"masks.url": masks.url if masks else None, "out": request.out})
    for group in ("lpips", "features", "faces"):
        yield from _sources(group, getattr(request, group))


def _sources(group: str, sources: Mapping[Any, str]) -> Iterator[Place]:
    """Those of the sources of frozen networks that are files."""
    files = {f"{group}.{name}": source for name, source in sources.items() if source not in NO_FILES}
    yield from _places(files, in_image=True)


def _places(
    named: Mapping[str, str | None], *, is_scratch: bool = False, in_image: bool = False
) -> Iterator[Place]:
    return (Place(setting, url, is_scratch, in_image) for setting, url in named.items() if url is not None)


def check_places(places: Sequence[Place], *, shared: Sequence[str], scratch: Sequence[str]) -> None:
    """Refuse places that pods could not reach.

    Args:
        places: of a task.
        shared: paths of volumes that all pods see alike.
        scratch: paths at which each pod may write for itself.

    Raises:
        ConfigError: some are empty, or paths of this machine; names each of them.
    """
    ways = f"or a path under {' or '.join(shared)}" if shared else "or give the chart a store.existingClaim"
    wrong: list[str] = []
    for setting, url, is_scratch, in_image in places:
        path = url.removeprefix("file://")
        if url.startswith("s3://") or is_under(path, shared) or (is_scratch and is_under(path, scratch)):
            continue
        if in_image and posixpath.isabs(path) and not os.path.exists(path):
            continue
        if is_scratch:
            wrong.append(f"{setting} {url} cannot be written in a pod; use a path under {scratch[0]}, or leave it out")
        elif setting == "root":
            wrong.append(f"root {url or '(none)'} cannot be reached from a pod; use --root s3://bucket/prefix, {ways}")
        else:
            wrong.append(f"{setting} {url} cannot be reached from a pod; copy it to the store and give its URL, {ways}")
    if wrong:
        raise ConfigError("\n".join(wrong))


def is_under(path: str, folders: Sequence[str]) -> bool:
    """Whether a path is one of the folders, or lies in one."""
    whole = posixpath.normpath(path) + "/"
    return any(whole.startswith(folder.rstrip("/") + "/") for folder in folders)
