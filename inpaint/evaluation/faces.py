"""Scores of faces: is it still the same person, do eyes and mouth sit where they were. By networks the user brings.

None is part of this package, because the published ones carry licences of their own. Each is a TorchScript file whose
digest is in the stamp.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpaint import weights
from inpaint.errors import EvaluationError, WeightsError
from inpaint.evaluation.metrics import Comparison

FACE_SETS = ("celeba", "celeba-hq", "ffhq")
KINDS = {"identity": "face_identity", "landmarks": "face_landmarks"}


@dataclass(frozen=True)
class Identity:
    """Cosine of the embeddings of fill and truth, in [-1, 1]; 1 is the same person.

    Attributes:
        model: images in [0, 1], [B, 3, H, W], to embeddings [B, D].
        sha256: of its file.
    """

    model: nn.Module
    sha256: str

    @torch.inference_mode()
    def __call__(self, seen: Comparison) -> Tensor:
        found, true = self.model(seen.predicted), self.model(seen.truth)
        return F.cosine_similarity(found.flatten(1).double(), true.flatten(1).double())


@dataclass(frozen=True)
class Landmarks:
    """Mean distance of the landmarks that lie in the hole of the truth, in percent of the image's width; NaN when none.

    Attributes:
        model: images in [0, 1], [B, 3, H, W], to points (x, y) in pixels, [B, K, 2].
        sha256: of its file.
    """

    model: nn.Module
    sha256: str

    @torch.inference_mode()
    def __call__(self, seen: Comparison) -> Tensor:
        found, true = self.model(seen.predicted).double(), self.model(seen.truth).double()
        height, width = seen.mask.shape[-2:]
        column = true[..., 0].round().long().clamp(0, width - 1)
        row = true[..., 1].round().long().clamp(0, height - 1)
        inside = seen.mask[:, 0].flatten(1).gather(1, row * width + column).double()
        return 100 / width * ((found - true).norm(dim=2) * inside).sum(dim=1) / inside.sum(dim=1)


def load_faces(
    sources: Mapping[str, str], *, device: torch.device | str, sha256: Mapping[str, str] | None = None
) -> tuple[dict[str, Identity | Landmarks], dict[str, str]]:
    """The face networks that a source is given for, by column metric, and why the others are absent.

    Args:
        sources: `identity` and `landmarks` to a path or `s3://` URL of a TorchScript file.
        device: where they run.
        sha256: digest a file must have, by the same names.

    Raises:
        EvaluationError: no such score.
        WeightsError: a file that is absent, altered or not TorchScript.
    """
    for kind in sources:
        if kind not in KINDS:
            raise EvaluationError(f"--faces {kind}: no such score; known: {', '.join(KINDS)}")
    present: dict[str, Identity | Landmarks] = {}
    absent = {}
    for kind, metric in KINDS.items():
        if kind not in sources:
            absent[metric] = f"no face network comes with this package; --faces {kind}=PATH reads a TorchScript file"
            continue
        option = f"--faces {kind}"
        path = weights.resolve(kind, sources[kind], sha256=(sha256 or {}).get(kind), option=option)
        if path is None:
            raise WeightsError(f"{option}=random: random weights make no score of a face; give a TorchScript file")
        network = Identity if kind == "identity" else Landmarks
        present[metric] = network(_script(path, option, device), weights.file_sha256(path))
    return present, absent


def _script(path: object, option: str, device: torch.device | str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated in torch, yet it is how such networks are handed on
        try:
            return torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            reason = str(error).splitlines()[0].partition(". ")[0]
            raise WeightsError(f"{option}={path} is not TorchScript ({reason}); save it with torch.jit.save") from error
