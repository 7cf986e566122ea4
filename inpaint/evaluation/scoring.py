"""One pass: every image is filled once per distinct hole, and each fill is scored by all protocols that want it."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inpaint.errors import EvaluationError
from inpaint.evaluation.metrics import METRICS, Comparison, Levels, to_levels
from inpaint.evaluation.pairs import Pair
from inpaint.evaluation.plan import Plan, ProtocolPlan, how_cut, truth_of
from inpaint.evaluation.protocols import Column, SetScores
from inpaint.imaging import composite, to_float

Filler = Callable[[Tensor, Tensor], Tensor]
NamedFiller = Callable[[Tensor, Tensor, Sequence[str]], Tensor]
Variant = tuple[str, str, Levels]  # metric, image, levels
Inception = Callable[[Tensor, str], Tensor]

CACHED = 4  # images that a processor's cache holds while they are scored; more take a quarter longer each


class Score(NamedTuple):
    """One number: what filled, by which protocol and column, for which pair."""

    subject: str
    protocol: str
    bin: str
    image: str
    mask: str
    ratio: float
    column: str
    value: float


@dataclass(frozen=True)
class Part:
    """What one group of images gave.

    Attributes:
        scores: every number.
        truths: protocol → image → digest of the pixels it was scored against.
        features: (subject, protocol) → (image, mask) → what an Inception makes of the composite, [D]; of the truth
            where subject and mask are empty.
    """

    scores: list[Score]
    truths: dict[str, dict[str, str]]
    features: dict[tuple[str, str], dict[tuple[str, str], np.ndarray]] = field(default_factory=dict)


@dataclass
class Scene:
    """A truth under a hole, and everybody who asked for its scores.

    Attributes:
        truth: uint8 [H, W, 3].
        mask: uint8 [H, W], 1 = hole.
        image: the photograph's name.
        digest: of the truth's pixels.
        asked: shares and pairs that this scene answers.
    """

    truth: np.ndarray
    mask: np.ndarray
    image: str
    digest: str
    asked: list[tuple[ProtocolPlan, Pair]] = field(default_factory=list)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The numbers wanted of it, sorted, each once."""
        return tuple(sorted({variant_of(column) for share, _ in self.asked for column in share.columns}))


class Clock:
    """Seconds of CPU or device time by what they went to."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._cuda = torch.device(device).type == "cuda"

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[what] += self._now() - start

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.thread_time()


class NoClock(Clock):
    """Reads no time and never waits for the device."""

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        yield


def anonymous(fill: Filler) -> NamedFiller:
    """A filler that needs no names, as one that is given them."""
    return lambda image, mask, names: fill(image, mask)


def variant_of(column: Column) -> Variant:
    """What has to be computed for a column."""
    return column.metric, column.image, column.levels


@torch.inference_mode()
def score_images(
    plan: Plan,
    photos: Mapping[str, np.ndarray],
    fillers: Mapping[str, NamedFiller],
    *,
    device: torch.device | str = "cpu",
    perceptual: Mapping[str, Callable[[Comparison], Tensor]] | None = None,
    inceptions: Mapping[str, Inception] | None = None,
    composited: Sequence[str] = (),
    clock: Clock | None = None,
) -> Part:
    """Every score that the plan wants of these photographs.

    Args:
        plan: what is scored.
        photos: decoded, uint8 [H, W, 3] by name.
        fillers: what fills, by the name it has in tables. Each is given the image with its hole emptied, and returns
            floats in [0, 1] or 8-bit pixels.
        device: where filling and scoring run.
        perceptual: further metrics by name.
        inceptions: feature networks by flavour, (image, how to resize) to [B, D].
        composited: fillers whose prediction is a composite already; they have no raw scores.
        clock: takes the time of `model` and `metrics`, waiting for the device.

    Raises:
        EvaluationError: a filler refused the images, or returned another size or numbers that are not finite.
    """
    clock = clock or NoClock()
    scores: list[Score] = []
    truths: dict[str, dict[str, str]] = defaultdict(dict)
    features = _Features(inceptions or {})
    everything = _scenes(plan, photos)
    with clock("metrics"):
        features.add_truths(everything, plan.batch, device)
    for scene in everything:
        for share, pair in scene.asked:
            truths[share.protocol.name][pair.image] = scene.digest
    for scenes in _batches(everything, plan.batch):
        pixels = _planes(np.stack([scene.truth for scene in scenes]), device)
        truth = to_float(pixels)
        mask = torch.from_numpy(np.stack([scene.mask for scene in scenes])).to(device).unsqueeze(1).float()
        for subject, fill in fillers.items():
            with clock("model"):
                predicted = _filled(fill, subject, truth, mask, scenes)
            with clock("metrics"):
                numbers = _measure(scenes[0].variants, predicted, pixels, truth, mask, perceptual or {})
                features.add_fills(subject, scenes, truth, predicted, mask)
            scores += _answers(subject, scenes, numbers, raw=subject not in composited)
    return Part(scores, dict(truths), dict(features.found))


class _Features:
    """Collects the features of fills, and of each truth once, however many holes and ways of filling it has."""

    def __init__(self, inceptions: Mapping[str, Inception]) -> None:
        self.inceptions = inceptions
        self.found: dict[tuple[str, str], dict[tuple[str, str], np.ndarray]] = defaultdict(dict)

    def add_truths(self, scenes: list[Scene], batch: int, device: torch.device | str) -> None:
        """The features of the truths of a part, each once, in batches that the part alone decides."""
        wanted: dict[tuple[str, str], dict[tuple[str, str], Scene]] = defaultdict(dict)
        for scene, how, _ in self._asked(scenes):
            wanted[how.weights, how.resize].setdefault((scene.image, scene.digest), scene)
        of_truths: dict[tuple[str, ...], np.ndarray] = {}
        for (weights, resize), distinct in wanted.items():
            for few in _in_batches(distinct.values(), batch, lambda scene: scene.truth.shape):
                truth = to_float(_planes(np.stack([scene.truth for scene in few]), device))
                found = self.inceptions[weights](truth, resize).cpu().numpy()
                of_truths |= {(weights, resize, s.image, s.digest): of for s, of in zip(few, found, strict=True)}
        for scene, how, (share, pair) in self._asked(scenes):
            of = of_truths[how.weights, how.resize, scene.image, scene.digest]
            self.found["", share.protocol.name][pair.image, ""] = of

    def add_fills(self, subject: str, scenes: list[Scene], truth: Tensor, predicted: Tensor, mask: Tensor) -> None:
        """The features that the protocols behind these scenes want of the fills of a batch."""
        asked = list(self._asked(scenes))
        if not asked:
            return
        completed = composite(truth, floats_of(predicted), mask)
        places = {id(scene): place for place, scene in enumerate(scenes)}
        for how in sorted({how for _, how, _ in asked}, key=str):
            found = self.inceptions[how.weights](to_levels(completed, how.levels), how.resize).cpu().numpy()
            for scene, which, (share, pair) in asked:
                if which == how:
                    self.found[subject, share.protocol.name][pair.image, pair.mask] = found[places[id(scene)]]

    def _asked(self, scenes: list[Scene]) -> Iterator[tuple[Scene, SetScores, tuple[ProtocolPlan, Pair]]]:
        """Every wish for features that can be met, with its scene."""
        for scene in scenes:
            for share, pair in scene.asked:
                how = share.protocol.set_scores
                if how and how.weights in self.inceptions:
                    yield scene, how, (share, pair)


def _scenes(plan: Plan, photos: Mapping[str, np.ndarray]) -> list[Scene]:
    """One scene for every distinct (photograph at its size, hole) among the pairs, however many protocols share it."""
    truths: dict[tuple[object, ...], tuple[np.ndarray, str]] = {}
    scenes: dict[tuple[str, str, str], Scene] = {}
    for share, pair in plan.pairs_of(tuple(photos)):
        how = (pair.image, *how_cut(share, photos[pair.image]))
        if how not in truths:
            truth = np.ascontiguousarray(truth_of(share, photos[pair.image]))
            truths[how] = truth, hashlib.sha256(truth).hexdigest()
        truth, digest = truths[how]
        key = (pair.image, digest, share.holes.digest(pair.mask))
        if key not in scenes:
            mask = share.holes.read(pair.mask)
            if mask.shape != truth.shape[:2]:
                sizes = f"the mask is {_size(mask)} and the image {pair.image} {_size(truth)}"
                raise EvaluationError(f"{pair.mask}: {sizes}")
            scenes[key] = Scene(truth, mask, pair.image, digest)
        scenes[key].asked.append((share, pair))
    return list(scenes.values())


def _planes(pixels: np.ndarray, device: torch.device | str) -> Tensor:
    """uint8 [B, H, W, 3] as uint8 [B, 3, H, W], plane by plane in memory."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous()


def floats_of(fill: Tensor) -> Tensor:
    """A fill in [0, 1], whether it is floats already or 8-bit pixels."""
    return to_float(fill) if fill.dtype == torch.uint8 else fill


def _batches(scenes: list[Scene], batch: int) -> Iterator[list[Scene]]:
    """Scenes of one size that want the same numbers, in the order in which they came, `batch` at a time."""
    return _in_batches(scenes, batch, lambda scene: (scene.truth.shape, scene.variants))


def _in_batches(scenes: Iterable[Scene], batch: int, key: Callable[[Scene], object]) -> Iterator[list[Scene]]:
    groups: dict[object, list[Scene]] = defaultdict(list)
    for scene in scenes:
        groups[key(scene)].append(scene)
    for group in groups.values():
        for i in range(0, len(group), batch):
            yield group[i : i + batch]


def _filled(fill: NamedFiller, subject: str, truth: Tensor, mask: Tensor, scenes: list[Scene]) -> Tensor:
    """What it fills, [B, 3, H, W], checked: floats in [0, 1], or 8-bit pixels if that is what it returns."""
    try:
        predicted = fill(truth * (1 - mask), mask, [scene.image for scene in scenes])
    except ValueError as error:  # a method's refusal of a size or a hole
        raise EvaluationError(f"{subject}: {error}; nothing was written") from error
    if predicted.shape != truth.shape:
        raise EvaluationError(f"{subject}: filled {tuple(truth.shape)} images as {tuple(predicted.shape)}")
    if predicted.dtype == torch.uint8:
        return predicted.contiguous()
    predicted = predicted.float()
    finite = torch.isfinite(predicted).flatten(1).all(dim=1)
    if not finite.all():
        names = [scene.image for scene, fine in zip(scenes, finite.tolist(), strict=True) if not fine]
        raise EvaluationError(f"{subject}: the fill of {names[0]} has values that are not finite; nothing was written")
    return predicted.clamp(0, 1)


def _measure(
    variants: Sequence[Variant],
    predicted: Tensor,
    pixels: Tensor,
    truth: Tensor,
    mask: Tensor,
    perceptual: Mapping[str, Callable[[Comparison], Tensor]],
) -> dict[Variant, list[float]]:
    """Each variant's numbers as printed, one per image.

    Args:
        pixels: of the truth, uint8.
    """
    at_once = len(predicted) if predicted.is_cuda else CACHED
    numbers: dict[Variant, list[float]] = {variant: [] for variant in variants}
    for few in zip(*(images.split(at_once) for images in (predicted, pixels, truth, mask)), strict=True):
        shown = _comparisons(variants, *few)
        for metric, image, levels in variants:
            values = _compute(metric, shown[image, levels], perceptual)
            numbers[metric, image, levels] += values.tolist()
    return numbers


def _compute(
    metric: str, comparison: Comparison, perceptual: Mapping[str, Callable[[Comparison], Tensor]]
) -> Tensor:
    if metric in METRICS:
        return METRICS[metric].compute(comparison) * METRICS[metric].factor
    return perceptual[metric](comparison)


def _comparisons(
    variants: Sequence[Variant], predicted: Tensor, pixels: Tensor, truth: Tensor, mask: Tensor
) -> dict[tuple[str, Levels], Comparison]:
    """What each kind of image and of levels shows; the same pixels are one comparison."""
    on_levels = predicted.dtype == torch.uint8  # which every rule keeps
    drawn = {"composite": composite(pixels if on_levels else truth, predicted, mask), "raw": predicted}
    seen: list[tuple[Tensor, Comparison]] = []
    shown: dict[tuple[str, Levels], Comparison] = {}
    for image, levels in sorted({(image, levels) for _, image, levels in variants}):
        fill = drawn[image] if on_levels else to_levels(drawn[image], levels)
        known = next((comparison for same, comparison in seen if _equal(same, fill)), None)
        if known is None:
            known = Comparison(floats_of(fill), truth, mask)
            seen.append((fill, known))
        shown[image, levels] = known
    return shown


def _equal(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    return torch.equal(one, other) if one.is_cuda else np.array_equal(one.numpy(), other.numpy())  # 8 times faster


def _answers(
    subject: str, scenes: list[Scene], numbers: Mapping[Variant, list[float]], *, raw: bool
) -> Iterator[Score]:
    for place, scene in enumerate(scenes):
        ratio = float(scene.mask.mean())
        for share, pair in scene.asked:
            about = (subject, share.protocol.name, pair.bin, pair.image, pair.mask, ratio)
            for column in share.columns:
                if raw or column.image != "raw":
                    yield Score(*about, column.name, numbers[variant_of(column)][place])


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}×{pixels.shape[0]}"
