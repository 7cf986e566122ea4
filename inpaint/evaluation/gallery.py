"""The best, the median and the worst fill of every bin of a result, filled again for the eye."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from inpaint import storage
from inpaint.config.base import validate
from inpaint.config.evaluation import EvaluationRequest
from inpaint.errors import EvaluationError
from inpaint.evaluation.collection import Found
from inpaint.evaluation.job import Job, prepare
from inpaint.evaluation.parts import from_parquet
from inpaint.evaluation.plan import ProtocolPlan, truth_of
from inpaint.evaluation.protocols import PROTOCOLS
from inpaint.evaluation.scoring import Score, floats_of
from inpaint.imaging import composite, to_float, to_pixels

GREY = 200  # of the hole in the masked picture


@dataclass(frozen=True)
class Shown:
    """One fill to look at.

    Attributes:
        bin: hole ratio in percent, or `all`.
        rank: `best`, `median` or `worst`.
        image: the photograph's name.
        ratio: share of hole pixels.
        psnr: of the composite, dB.
        masked, filled, truth: uint8 [H, W, 3].
    """

    bin: str
    rank: str
    image: str
    ratio: float
    psnr: float
    masked: np.ndarray
    filled: np.ndarray
    truth: np.ndarray


def gallery(found: Found, *, subject: str) -> list[Shown]:
    """Three fills of every bin of a result's first protocol, chosen by PSNR and made again from its request.

    Raises:
        EvaluationError: the result has no PSNR, or the images or masks there are not the ones that were scored.
        InpaintError: the checkpoint, the images or the masks are not there any more.
    """
    name = next((n for n in found.result.stamp.protocols if _has_psnr(n)), None)
    if name is None:
        raise EvaluationError(f"{found.url}: no protocol with a PSNR, by which pictures are chosen")
    part = from_parquet(storage.read_bytes(storage.join(found.url, "scores.parquet")))
    wanted = [s for s in part.scores if s.protocol == name and s.column == "psnr" and s.subject == subject]
    job = prepare(_request(found), networks=False)
    share = job.plan.shares[name]
    if share.holes.sha256 != found.result.stamp.protocols[name]["masks"]:
        raise EvaluationError(f"{share.holes.name}: the masks are not the ones that were scored; evaluate anew")
    if job.subject.about.get("fingerprint") != found.about.get("fingerprint"):
        raise EvaluationError(f"{job.subject.about['images']}: the files changed after they were scored; evaluate anew")
    truths = part.truths[name]
    return [_fill(job, share, subject, score, rank, digest=truths[score.image]) for score, rank in _chosen(wanted)]


def _has_psnr(name: str) -> bool:
    return any(column.name == "psnr" for column in PROTOCOLS[name].columns)


def _request(found: Found) -> EvaluationRequest:
    place = storage.join(found.url, "request.json")
    values = json.loads(storage.read_bytes(place)) | {"device": None}
    return validate(EvaluationRequest, values, place=place)


def _chosen(scores: list[Score]) -> Iterator[tuple[Score, str]]:
    """Of every bin the pair of highest, middle and lowest PSNR."""
    bins: dict[str, list[Score]] = {}
    for score in scores:
        bins.setdefault(score.bin, []).append(score)
    for found in sorted(bins.values(), key=lambda scores: min(s.ratio for s in scores)):
        ranked = sorted(found, key=lambda score: (-score.value, score.image))
        places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
        seen: set[int] = set()
        for rank, place in places.items():
            if place not in seen:
                seen.add(place)
                yield ranked[place], rank


@torch.inference_mode()
def _fill(job: Job, share: ProtocolPlan, subject: str, score: Score, rank: str, *, digest: str) -> Shown:
    pictures = job.plan.pictures
    if score.image not in pictures.ids:
        raise EvaluationError(f"{pictures.name}: {score.image} was scored and is not there any more; evaluate anew")
    pixels = np.ascontiguousarray(truth_of(share, pictures.read(score.image)))
    if hashlib.sha256(pixels).hexdigest() != digest:
        raise EvaluationError(f"{pictures.name}: {score.image} is not the picture that was scored; evaluate anew")
    hole = share.holes.read(score.mask)
    truth = to_float(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]).to(job.device)
    mask = torch.from_numpy(hole.copy())[None, None].float().to(job.device)
    predicted = job.subject.fillers[subject](truth * (1 - mask), mask, [score.image])
    filled = to_pixels(composite(truth, floats_of(predicted).float(), mask))[0].permute(1, 2, 0).cpu().numpy()
    masked = np.where(hole[..., None] > 0, np.uint8(GREY), pixels)
    return Shown(score.bin or "all", rank, score.image, score.ratio, score.value, masked, filled, pixels)
