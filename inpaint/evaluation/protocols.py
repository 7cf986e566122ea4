"""The named ways of scoring: what is resized, which pixels are holes, what is paired, binned, composited and measured.

A protocol is data. `inp-v1` is this project's; the others re-state what a published code or paper does, so that a
number can be laid beside theirs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from inpaint.config.base import suggest
from inpaint.errors import EvaluationError

if TYPE_CHECKING:  # a laptop without torch and numpy may ask which scores there are
    import numpy as np

    from inpaint.evaluation.metrics import Levels

Perfect = Literal["capped", "infinite", "zero"]
CAP_DECIBELS = 100.0


@dataclass(frozen=True)
class Bin:
    """Hole ratios between two ends, of the mask as the network sees it.

    Attributes:
        low, high: shares of the pixels.
        closed: which ends are inside: (low, high], [low, high) or [low, high].
    """

    low: float
    high: float
    closed: Literal["high", "low", "both"] = "high"

    def holds(self, ratios: np.ndarray) -> np.ndarray:
        """Which of these hole ratios lie in the bin, as booleans of the same shape."""
        above = ratios > self.low if self.closed == "high" else ratios >= self.low
        return above & (ratios < self.high if self.closed == "low" else ratios <= self.high)

    @property
    def name(self) -> str:
        """In percent: `10-20`."""
        return f"{round(self.low * 100)}-{round(self.high * 100)}"


@dataclass(frozen=True)
class Column:
    """One score of a protocol.

    Attributes:
        name: in results: `psnr`, `psnr@raw`, `l1@hole`.
        metric: key of `METRICS` or of `NETWORK_METRICS`.
        image: the composite, or all that the network drew.
        levels: how floats become the pixels that are scored.
        optional: not missed where its network is not at hand.
    """

    name: str
    metric: str
    image: Literal["composite", "raw"] = "composite"
    levels: Levels = "rounded"
    optional: bool = False


@dataclass(frozen=True)
class SetScores:
    """Scores of a whole set of images by features of an Inception network.

    Attributes:
        weights: which file of weights: `torchvision`, `tf-port` (pytorch-fid) or `nvidia`. They give different values.
        resize: how images get to 299 pixels: `bilinear`, as the published codes do, or `clean` (antialiased).
        scores: of `fid`, `kid`, `pids`, `uids`.
        needs: images below which a value is marked `fid@N`.
        covariances: in FID, divided by n - 1 or, as NVIDIA's codes do, by n.
        levels: how fills become the 8-bit images that the network sees.
    """

    weights: Literal["torchvision", "tf-port", "nvidia"]
    resize: Literal["bilinear", "clean"]
    scores: tuple[str, ...] = ("fid",)
    needs: int = 10_000
    covariances: Literal["sample", "population"] = "sample"
    levels: Levels = "rounded"


@dataclass(frozen=True)
class Protocol:
    """One way of scoring.

    Attributes:
        name: as on the command line.
        meaning: one line, with its source.
        columns: what is measured, headline first.
        size: pixels of both sides at which images are filled and scored.
        image_resize: filter that brings a centre-cropped photo to that size.
        mask_loading: how a mask file becomes holes at that size, see `masks.load_mask`; `centre` is the fixed square of
            half the side.
        pairing: `each_bin` puts every image under one mask of every bin; `one_mask` gives every image one mask.
        bins: rows of the table, in order.
        unions: further rows, over the pairs of bins that they contain.
        perfect: what a PSNR of infinity counts as in a mean.
        images: how many images the publication scored, by data set; empty when it is not bound to a number.
        set_scores: FID and its kin, if the protocol has them.
        mask_kinds: the mask sets it was published with.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    size: int = 256
    image_resize: Literal["lanczos", "bicubic", "bilinear"] = "lanczos"
    mask_loading: Literal["nearest", "any_hole", "any_valid", "centre"] = "nearest"
    pairing: Literal["each_bin", "one_mask"] = "each_bin"
    bins: tuple[Bin, ...] = ()
    unions: tuple[Bin, ...] = ()
    perfect: Perfect = "infinite"
    images: Mapping[str, int] = field(default_factory=dict)
    set_scores: SetScores | None = None
    mask_kinds: str = "any"

    @property
    def digest(self) -> str:
        """Of everything that can change a number; names and prose left out."""
        values = {key: value for key, value in asdict(self).items() if key not in ("meaning", "mask_kinds", "images")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def demanded(self, dataset: str) -> int:
        """Images that the publication scored on `dataset`; the least of its sets when it has none of that name."""
        return self.images.get(data_set(dataset), min(self.images.values(), default=1))


def _tens(*edges: float) -> tuple[Bin, ...]:
    return tuple(Bin(low, high) for low, high in itertools.pairwise(edges))


_FOUR = _tens(0.1, 0.2, 0.3, 0.4, 0.5)
_SIX = (Bin(0.01, 0.1, closed="both"), *_tens(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
_TEN_OF_LAMA = tuple(Bin(i / 10, (i + 1) / 10, closed="both" if i == 9 else "low") for i in range(10))
_WIDE = (Bin(0.2, 0.4), Bin(0.4, 0.6))
_NVIDIA = "12,000 irregular test masks of NVIDIA"


def _composite(levels: Levels, **metrics: str) -> tuple[Column, ...]:
    return tuple(Column(name, metric, levels=levels) for name, metric in metrics.items())


_ALL = (
    Protocol(
        "inp-v1",
        "this project's: rounded 8-bit RGB composite, Gaussian SSIM on whole windows, exact ratios, perfect capped",
        columns=(
            *_composite("rounded", psnr="psnr_rgb", ssim="ssim_gaussian_valid", l1="l1_rgb"),
            *_composite("rounded", lpips_alex="lpips_alex", lpips_vgg="lpips_vgg"),
            Column("lpips_squeeze", "lpips_squeeze", optional=True),
            Column("identity", "face_identity", optional=True),
            Column("landmarks", "face_landmarks", optional=True),
            Column("psnr@raw", "psnr_rgb", image="raw"),
            Column("ssim@raw", "ssim_gaussian_valid", image="raw"),
            Column("l1@raw", "l1_rgb", image="raw"),
            Column("psnr@hole", "psnr_hole"),
            Column("l1@hole", "l1_hole"),
        ),
        bins=_SIX,
        unions=_WIDE,
        perfect="capped",
        set_scores=SetScores("tf-port", "clean", ("fid", "kid")),
    ),
    Protocol(
        "isnet-2022-test",
        "ISNet's test(): truncated RGB PSNR, padded Gaussian SSIM and L1 of floats, partly known = known",
        columns=(
            Column("psnr", "psnr_rgb", levels="truncated"),
            *_composite("float", ssim="ssim_gaussian_padded", l1="l1_rgb"),
        ),
        image_resize="bilinear",
        mask_loading="any_valid",
        bins=_FOUR,
        perfect="zero",
        images={"places2": 10_000, "celeba": 5_000},
        mask_kinds=_NVIDIA,
    ),
    Protocol(
        "isnet-2022-script",
        "ISNet's metrics.py on saved images: grey PSNR, grey uniform 11 SSIM, mean grey error, partly known = known",
        columns=_composite("truncated", psnr="psnr_grey", ssim="ssim_grey_uniform_11", l1="l1_grey"),
        image_resize="bilinear",
        mask_loading="any_valid",
        bins=_FOUR,
        images={"places2": 10_000, "celeba": 5_000},
        mask_kinds=_NVIDIA,
    ),
    Protocol(
        "edgeconnect-2019",
        "EdgeConnect's metrics.py on saved images: grey PSNR, grey uniform 51 SSIM, error over sum, touched = hole",
        columns=_composite("truncated", psnr="psnr_grey", ssim="ssim_grey_uniform_51", mae="l1_over_sum_grey"),
        image_resize="bilinear",
        mask_loading="any_hole",
        bins=_FOUR,
        set_scores=SetScores("torchvision", "bilinear", levels="truncated"),
        mask_kinds=_NVIDIA,
    ),
    Protocol(
        "lama-2021",
        "LaMa's evaluation: padded Gaussian SSIM and LPIPS of VGG on saved composites, one mask per image, ten bins",
        columns=_composite("truncated", ssim="ssim_gaussian_padded", lpips_vgg="lpips_vgg"),
        image_resize="bicubic",
        pairing="one_mask",
        bins=_TEN_OF_LAMA,
        images={"places2": 30_000, "celeba-hq": 2_000},
        set_scores=SetScores("tf-port", "bilinear", levels="truncated"),
        mask_kinds="generated thin, medium or thick strokes",
    ),
    Protocol(
        "mat-2022",
        "MAT's evaluation: 8-bit RGB PSNR, Gaussian SSIM on whole windows, L1, LPIPS of AlexNet, one mask per image",
        columns=_composite(
            "rounded", psnr="psnr_rgb", ssim="ssim_gaussian_valid", l1="l1_fraction", lpips_alex="lpips_alex"
        ),
        pairing="one_mask",
        images={"places2": 36_500, "celeba-hq": 2_993},
        set_scores=SetScores("nvidia", "bilinear", ("fid", "pids", "uids"), covariances="population"),
        mask_kinds="small or large free-form of CoModGAN, fixed lists",
    ),
    Protocol(
        "mmagic",
        "MMagic's metrics: 8-bit RGB PSNR with infinities kept, Gaussian SSIM, error in the hole alone",
        columns=_composite("rounded", psnr="psnr_rgb", ssim="ssim_gaussian_valid", mae="l1_hole"),
        bins=_SIX,
        mask_kinds="partial-convolution lists by ratio",
    ),
    Protocol(
        "aotgan-2021",
        "AOT-GAN's evaluation of saved images: RGB PSNR, RGB uniform 7 SSIM, error over sum",
        columns=_composite("truncated", mae="l1_over_sum_rgb", psnr="psnr_rgb", ssim="ssim_rgb_uniform_7"),
        bins=_SIX,
        set_scores=SetScores("torchvision", "bilinear", levels="truncated"),
        mask_kinds="partial-convolution masks by ratio",
    ),
    Protocol(
        "isfrnet-2023",
        "ISFRNet Table 2: CelebA at 256, bins 20-40 and 40-60, L1 as a fraction, LPIPS of AlexNet",
        columns=_composite(
            "rounded", psnr="psnr_rgb", ssim="ssim_gaussian_valid", l1="l1_fraction", lpips_alex="lpips_alex"
        ),
        bins=_WIDE,
        images={"celeba": 20_260},
        mask_kinds=_NVIDIA,
    ),
    Protocol(
        "dina-2024",
        "DiNA Tables 1 and 2: six bins, touched = hole; no variant named: inp-v1's scores beside EdgeConnect's",
        columns=(
            *_composite("rounded", psnr="psnr_rgb", ssim="ssim_gaussian_valid"),
            Column("psnr_grey", "psnr_grey", levels="truncated"),
            Column("ssim_grey", "ssim_grey_uniform_51", levels="truncated"),
        ),
        image_resize="bilinear",
        mask_loading="any_hole",
        bins=_SIX,
        perfect="capped",
        images={"paris-streetview": 100, "celeba-hq": 2_000},
        mask_kinds=_NVIDIA,
    ),
    Protocol(
        "hdc-gated",
        "hybrid dilated paper, Tables VI to VIII: one mask per image over all ratios, 8-bit RGB, L1 in percent",
        columns=_composite("rounded", ssim="ssim_gaussian_valid", psnr="psnr_rgb", l1="l1_rgb"),
        pairing="one_mask",
        images={"celeba-hq": 3_000, "places2": 2_000, "paris-streetview": 100},
        mask_kinds=_NVIDIA,
    ),
    Protocol(
        "ce-128",
        "context encoder: 128 pixels with the centred 64-pixel hole, scored whole and in the hole alone",
        columns=(
            *_composite("rounded", psnr="psnr_rgb", ssim="ssim_gaussian_valid"),
            Column("psnr@hole", "psnr_hole"),
            Column("ssim@hole", "ssim_gaussian_hole"),
        ),
        size=128,
        image_resize="bilinear",
        mask_loading="centre",
        pairing="one_mask",
        mask_kinds="centred square of half the side",
    ),
)

PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


_SAME_IMAGES = {"psv": "paris-streetview", "celeba-hq-27000": "celeba-hq", "celeba-182339": "celeba"}
DATA_SETS = tuple(dict.fromkeys([name for protocol in _ALL for name in protocol.images] + [*_SAME_IMAGES]))


def data_set(name: str) -> str:
    """The name by which protocols and tables know a data set; splits of it by other counts are the same data set."""
    return _SAME_IMAGES.get(name, name)


def find_protocols(names: list[str]) -> tuple[Protocol, ...]:
    """The protocols of these names, in the order given and each once; `all` means every one.

    Raises:
        EvaluationError: a name that is none, with the nearest that is.
    """
    wanted = list(PROTOCOLS) if "all" in names else list(dict.fromkeys(names))
    for name in wanted:
        if name not in PROTOCOLS:
            raise EvaluationError(f"{name} is not a protocol{suggest(name, PROTOCOLS)}; known: {', '.join(PROTOCOLS)}")
    return tuple(PROTOCOLS[name] for name in wanted)
