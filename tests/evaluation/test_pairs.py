from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from inpaint.errors import EvaluationError
from inpaint.evaluation.holes import HoleSet, HoleSource
from inpaint.evaluation.pairs import bin_of, make_pairs, pairs_sha
from inpaint.evaluation.protocols import PROTOCOLS, Bin, find_protocols

IMAGES = [f"{i:04d}" for i in range(300)]


def masks(per_bin=20):
    names = [f"mask-{b}-{i}" for b in range(6) for i in range(per_bin)]
    ratios = np.array([0.05 + 0.1 * b for b in range(6) for _ in range(per_bin)])
    return HoleSet("set", "set", tuple(names), ratios, "sha", {}.__getitem__)


def test_every_image_stands_once_in_every_bin_and_masks_are_used_evenly():
    pairs = make_pairs(PROTOCOLS["inp-v1"], IMAGES, masks(), seed=0)
    bins = ("1-10", "10-20", "20-30", "30-40", "40-50", "50-60")
    assert Counter(pair.bin for pair in pairs) == dict.fromkeys(bins, 300)
    used = Counter(pair.mask for pair in pairs)
    assert len(used) == 120
    assert max(used.values()) < 35  # 15 expected of each; a Poisson count above 35 is a broken draw


def test_pairs_depend_on_names_and_seed_alone_not_on_order_or_on_the_other_images():
    protocol = PROTOCOLS["inp-v1"]
    pairs = make_pairs(protocol, IMAGES, masks(), seed=0)
    assert pairs_sha(make_pairs(protocol, IMAGES[::-1], masks(), seed=0)) == pairs_sha(pairs)
    assert set(make_pairs(protocol, IMAGES[:10], masks(), seed=0)) < set(pairs)
    assert pairs_sha(make_pairs(protocol, IMAGES, masks(), seed=1)) != pairs_sha(pairs)


def test_protocols_share_pairs_wherever_they_read_the_same_masks():
    wide = make_pairs(PROTOCOLS["isfrnet-2023"], IMAGES, masks(), seed=0)
    fine = {(pair.image, pair.mask) for pair in make_pairs(PROTOCOLS["inp-v1"], IMAGES, masks(), seed=0)}
    single = make_pairs(PROTOCOLS["hdc-gated"], IMAGES, masks(), seed=0)
    assert {(pair.image, pair.mask) for pair in (*wide, *single)} <= fine
    assert len(wide) == 600
    assert len(single) == 300


def test_a_mask_that_leaves_the_set_changes_only_the_images_that_had_it():
    protocol, full = PROTOCOLS["mmagic"], masks()
    less = dataclasses.replace(full, names=full.names[1:], ratios=full.ratios[1:])
    before = {(p.image, p.bin): p.mask for p in make_pairs(protocol, IMAGES, full, seed=0)}
    after = {(p.image, p.bin): p.mask for p in make_pairs(protocol, IMAGES, less, seed=0)}
    assert {mask for key, mask in before.items() if after[key] != mask} == {full.names[0]}


def test_a_bin_without_masks_is_refused_by_name():
    few = dataclasses.replace(masks(), ratios=np.full(120, 0.15))
    with pytest.raises(EvaluationError, match=r"isnet-2022-test: none of the 120 masks of set .* 20-30 %"):
        make_pairs(PROTOCOLS["isnet-2022-test"], IMAGES, few, seed=0)


@pytest.mark.parametrize(
    ("ratio", "name"), [(0.01, "1-10"), (0.1, "1-10"), (0.1001, "10-20"), (0.6, "50-60"), (0.009, None), (0.61, None)]
)
def test_bins_are_open_below_and_closed_above_and_the_first_of_inp_v1_is_closed_on_both_sides(ratio, name):
    assert bin_of(PROTOCOLS["inp-v1"], ratio) == name


def test_drawn_strokes_lie_in_their_bins_and_are_the_same_again():
    holes = HoleSource(seed=3).open(loading="nearest", size=64)
    for wanted in PROTOCOLS["inp-v1"].bins:
        assert wanted.holds(holes.ratios).sum() == 100
    assert holes.sha256 == HoleSource(seed=3).open(loading="any_valid", size=64).sha256
    assert holes.sha256 != HoleSource(seed=4).open(loading="nearest", size=64).sha256
    assert holes.ratios[0] == holes.read(holes.names[0]).mean()


def test_the_registry_holds_the_twelve_named_protocols_with_their_published_numbers():
    assert set(PROTOCOLS) == {
        "inp-v1", "isnet-2022-test", "isnet-2022-script", "edgeconnect-2019", "lama-2021", "mat-2022", "mmagic",
        "aotgan-2021", "isfrnet-2023", "dina-2024", "hdc-gated", "ce-128",
    }  # fmt: skip
    assert PROTOCOLS["isnet-2022-test"].images == {"places2": 10_000, "celeba": 5_000}
    assert PROTOCOLS["mat-2022"].images == {"places2": 36_500, "celeba-hq": 2_993}
    assert PROTOCOLS["hdc-gated"].images == {"celeba-hq": 3_000, "places2": 2_000, "paris-streetview": 100}
    demanded = [PROTOCOLS["hdc-gated"].demanded(name) for name in ("celeba-hq-27000", "psv", "places2")]
    assert demanded == [3_000, 100, 2_000]
    assert PROTOCOLS["edgeconnect-2019"].mask_loading == "any_hole"
    assert PROTOCOLS["isnet-2022-test"].mask_loading == "any_valid"
    assert PROTOCOLS["isfrnet-2023"].bins == (Bin(0.2, 0.4), Bin(0.4, 0.6))
    assert PROTOCOLS["ce-128"].size == 128
    assert len({protocol.digest for protocol in PROTOCOLS.values()}) == 12


def test_all_means_every_protocol_and_a_wrong_name_is_answered_with_the_nearest():
    assert [protocol.name for protocol in find_protocols(["all"])] == list(PROTOCOLS)
    with pytest.raises(EvaluationError, match="isnet-2022-tset is not a protocol; did you mean isnet-2022-test"):
        find_protocols(["isnet-2022-tset"])
