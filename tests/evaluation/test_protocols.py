"""Every pixel column of every protocol, from image and mask files on disk, against the published recipe written out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from inpaint.evaluation.evaluate import evaluate_fillers
from inpaint.evaluation.holes import HoleSource
from inpaint.evaluation.pairs import bin_of, make_pairs
from inpaint.evaluation.pictures import open_pictures
from inpaint.evaluation.protocols import PROTOCOLS, Bin
from tests.evaluation.scenes import photographs

SIZE = 64
RATIOS = {"a": 0.06, "b": 0.15, "c": 0.25, "d": 0.35, "e": 0.45, "f": 0.55}
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "win_size": 11}


def draw(image, mask):
    """A fill that lies between 8-bit levels, changes the known pixels too, and is no composite."""
    return (0.9 * image + 0.37).clamp(0, 1) * (1 - mask) + 0.4338 * mask


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two photographs that have to be cropped and resized, and masks whose edges fall between pixels at 64."""
    folder = tmp_path_factory.mktemp("protocols")
    for kind in ("photos", "masks"):
        (folder / kind).mkdir()
    photos = photographs(2, size=96)
    for name in photos.ids:
        Image.fromarray(photos.read(name)[:80]).save(folder / "photos" / f"{name}.png")
    for name, ratio in RATIOS.items():
        side = round(100 * math.sqrt(ratio))
        mask = np.zeros((100, 100), np.uint8)
        mask[13 : 13 + side, 17 : 17 + side] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def found(place):
    source = HoleSource(str(place / "masks"), "white")
    pictures = open_pictures(str(place / "photos"))
    result = evaluate_fillers({"drawn": draw}, pictures, protocols=["all"], holes=source, size=SIZE, limit=2)
    return result.tables["drawn"]


def loaded(file, loading):
    """Holes of a mask file as the published loaders make them; white is the hole."""
    if loading == "centre":
        centre = np.zeros((SIZE, SIZE))
        centre[16:48, 16:48] = 1
        return centre
    hole = Image.open(file)
    if loading == "nearest":
        return (np.asarray(hole.resize((SIZE, SIZE), Image.NEAREST)) > 127).astype(float)
    if loading == "any_hole":  # EdgeConnect's
        return (np.asarray(hole.resize((SIZE, SIZE), Image.BILINEAR)) > 0).astype(float)
    valid = Image.fromarray(255 - np.asarray(hole)).resize((SIZE, SIZE), Image.BILINEAR)  # ISNet's files: known = 255
    return 1 - (np.asarray(valid) > 0).astype(float)


def padded_ssim(a, b):
    """Five convolutions with zeros beyond the border, every pixel counted."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    kernel = (np.outer(line, line) / line.sum() ** 2)[..., None]

    def blur(x):
        return convolve(x, kernel, mode="constant")

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    return (((2 * ma * mb + 1e-4) * (2 * cov + 9e-4)) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))).mean()


def psnr(a, b):
    return peak_signal_noise_ratio(b, a, data_range=1)


def valid_ssim(a, b):
    return structural_similarity(b, a, channel_axis=2, data_range=1, **GAUSSIAN)


def grey(a, b):
    return rgb2gray(a), rgb2gray(b)


def grey_ssim(window):
    return lambda a, b: structural_similarity(*grey(a, b), data_range=1, win_size=window)


def l1(a, b):
    return np.abs(a - b).mean()


def over_sum(a, b):
    return np.abs(a - b).sum() / (a + b).sum()


def percent(score):
    return lambda a, b: 100 * score(a, b)


def in_hole(score):
    """The score of the hole's bounding square, which is the hole."""
    return lambda a, b, hole: score(*(x[np.ix_(hole.any(1), hole.any(0))] for x in (a, b)))


# protocol → (filter of the photograph, loader, levels) and column → (score, composite or raw)
PUBLISHED = {
    "inp-v1": ("LANCZOS", "nearest", np.round, {
        "psnr": psnr, "ssim": valid_ssim, "l1": percent(l1),
        "psnr@raw": psnr, "ssim@raw": valid_ssim, "l1@raw": percent(l1),
        "psnr@hole": in_hole(psnr), "l1@hole": in_hole(percent(l1)),
    }),
    "isnet-2022-test": ("BILINEAR", "any_valid", None, {
        "psnr": lambda a, b: psnr(np.floor(a * 255) / 255, b), "ssim": padded_ssim, "l1": percent(l1),
    }),
    "isnet-2022-script": ("BILINEAR", "any_valid", np.floor, {
        "psnr": lambda a, b: psnr(*grey(a, b)), "ssim": grey_ssim(11), "l1": lambda a, b: 100 * l1(*grey(a, b)),
    }),
    "edgeconnect-2019": ("BILINEAR", "any_hole", np.floor, {
        "psnr": lambda a, b: psnr(*grey(a, b)), "ssim": grey_ssim(51), "mae": lambda a, b: 100 * over_sum(*grey(a, b)),
    }),
    "lama-2021": ("BICUBIC", "nearest", np.floor, {"ssim": padded_ssim}),
    "mat-2022": ("LANCZOS", "nearest", np.round, {"psnr": psnr, "ssim": valid_ssim, "l1": l1}),
    "mmagic": ("LANCZOS", "nearest", np.round, {"psnr": psnr, "ssim": valid_ssim, "mae": in_hole(percent(l1))}),
    "aotgan-2021": ("LANCZOS", "nearest", np.floor, {
        "psnr": psnr, "mae": percent(over_sum),
        "ssim": lambda a, b: structural_similarity(b, a, channel_axis=2, data_range=1, win_size=7),
    }),
    "isfrnet-2023": ("LANCZOS", "nearest", np.round, {"psnr": psnr, "ssim": valid_ssim, "l1": l1}),
    "dina-2024": ("BILINEAR", "any_hole", np.round, {
        "psnr": psnr, "ssim": valid_ssim,
        "psnr_grey": lambda a, b: psnr(*grey(a, b)), "ssim_grey": grey_ssim(51),
    }),
    "hdc-gated": ("LANCZOS", "nearest", np.round, {"psnr": psnr, "ssim": valid_ssim, "l1": percent(l1)}),
    "ce-128": ("BILINEAR", "centre", np.round, {
        "psnr": psnr, "ssim": valid_ssim, "psnr@hole": in_hole(psnr), "ssim@hole": in_hole(valid_ssim),
    }),
}  # fmt: skip
TRUNCATED = {("dina-2024", "psnr_grey"), ("dina-2024", "ssim_grey")}


def by_hand(place, name):
    """Column → mean over the protocol's pairs, from the files alone."""
    resample, loading, levels, columns = PUBLISHED[name]
    holes = HoleSource(str(place / "masks"), "white").open(loading=loading, size=SIZE)
    photos = sorted(path.stem for path in (place / "photos").iterdir())
    scores = {column: [] for column in columns}
    for pair in make_pairs(PROTOCOLS[name], photos, holes, seed=0):
        photo = Image.open(place / "photos" / f"{pair.image}.png").crop((8, 0, 88, 80))
        truth = np.asarray(photo.resize((SIZE, SIZE), getattr(Image, resample))) / 255
        hole = loaded(place / "masks" / pair.mask, loading)
        tensors = [torch.from_numpy(x).float() for x in (truth.transpose(2, 0, 1)[None], hole[None, None])]
        predicted = draw(tensors[0] * (1 - tensors[1]), tensors[1])[0].permute(1, 2, 0).double().numpy()
        for column, score in columns.items():
            drawn = predicted if column.endswith("@raw") else np.where(hole[..., None] > 0, predicted, truth)
            rule = np.floor if (name, column) in TRUNCATED else levels
            shown = drawn if rule is None else rule(np.round(drawn * 255, 4)) / 255
            inside = column.endswith("@hole") or (name, column) == ("mmagic", "mae")
            scores[column].append(score(shown, truth, hole > 0) if inside else score(shown, truth))
    return {column: float(np.mean(values)) for column, values in scores.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_pixel_column_is_the_published_recipe_on_the_files(place, found, name):
    ours = {column: cell.mean for column, cell in found[name]["all"].items()}
    assert ours == pytest.approx(by_hand(place, name), rel=2e-5, abs=2e-5)


def test_the_recipes_here_are_all_twelve():
    assert set(PUBLISHED) == set(PROTOCOLS)


def test_lamas_bins_are_closed_below_as_its_search_of_sorted_edges_makes_them():
    """`searchsorted(edges, area, side="right") - 1`, and an area of 1 in the last bin."""
    edges = np.linspace(0, 1, 11)
    for ratio in (0.0, 0.05, 0.25, 0.5, 0.75, 0.999, 1.0):
        index = min(int(np.searchsorted(edges, ratio, side="right")) - 1, 9)
        assert bin_of(PROTOCOLS["lama-2021"], ratio) == f"{10 * index}-{10 * index + 10}"
    assert bin_of(PROTOCOLS["mmagic"], 0.5) == "40-50"
    assert [Bin(0.1, 0.2, closed=side).holds(np.array([0.1, 0.2])).tolist() for side in ("high", "low", "both")] == [
        [False, True], [True, False], [True, True],
    ]  # fmt: skip


def test_a_hole_of_just_half_the_image_is_in_the_upper_of_two_bins_of_lama(place):
    half = np.zeros((SIZE, SIZE), np.uint8)
    half[:32] = 1
    holes = HoleSource(str(place / "masks"), "white").open(loading="nearest", size=SIZE)
    alone = replace(holes, names=("half",), ratios=np.array([half.mean()]))
    assert [pair.bin for pair in make_pairs(PROTOCOLS["lama-2021"], ["x"], alone, seed=0)] == ["50-60"]
