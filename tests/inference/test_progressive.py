"""Progressive reconstruction: the acceptance facts 9 to 13 of the ISNet paper's specification, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from inpaint.inference import progressive, schedule
from inpaint.masks import centre_mask
from tests.inference.painters import Mirror


def image(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def random_masks(count: int, side: int) -> torch.Tensor:
    """Blocks of random size, from a few per cent to nearly everything."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.zeros(count, 1, side, side)
    for place in range(count):
        extent = int(side * (place + 1) / (count + 0.5))
        top, left = (int(torch.randint(0, side - extent + 1, (1,), generator=generator)) for _ in range(2))
        masks[place, :, top : top + extent, left : left + extent] = 1
    return masks


class Counting:
    """Draws the number of the call everywhere."""

    def __init__(self):
        self.calls = 0

    def __call__(self, image, mask):
        self.calls += 1
        return torch.full_like(image, float(self.calls))


@pytest.mark.parametrize(
    ("side", "calls"), [(100, 1), (114, 1), (115, 2), (128, 2), (160, 5), (200, 8)]
)  # ISNet specification, fact 9: the hole shrinks by 7 pixels on each side until it covers 20 %
def test_calls_of_a_centred_square_follow_from_its_size(side, calls):
    counting = Counting()
    progressive(counting, image(1, 3, 256, 256), centre_mask(256, side))
    assert counting.calls == calls == schedule(centre_mask(256, side)).calls[0]


def test_a_hole_without_known_pixels_takes_the_most_rounds():  # fact 9, side 256
    assert schedule(torch.ones(1, 1, 256, 256)).calls == (11,)
    assert schedule(torch.ones(1, 1, 256, 256), max_rounds=3).calls == (4,)


def test_the_hole_shrinks_to_the_published_shares():  # fact 10, side 200
    plan = schedule(centre_mask(256, 200))
    shares = [plan.hole(done).float().mean().item() for done in range(plan.calls[0])]
    assert shares == pytest.approx([0.6104, 0.5279, 0.4514, 0.3809, 0.3164, 0.2579, 0.2053, 0.1588], abs=5e-5)


def test_the_hole_shrinks_as_grey_dilation_grows_the_known_pixels():
    mask = random_masks(5, 64)
    plan = schedule(mask, kernel_size=9, threshold=0.0, max_rounds=4)
    for sample in range(5):
        known = 1 - mask[sample, 0].numpy()
        for done in range(plan.calls[sample]):
            assert np.array_equal(plan.hole(done)[sample, 0].numpy(), known == 0)
            known = ndimage.grey_dilation(known, size=(9, 9), mode="reflect")


def test_each_ring_keeps_the_call_that_drew_it():  # fact 11: min(8, 1 + floor(d / 7)) at depth d
    picture = image(1, 3, 256, 256)
    completed = progressive(Counting(), picture, centre_mask(256, 200))
    across = completed[0, 0, 128]
    assert across[28:128].tolist() == [min(8, 1 + depth // 7) for depth in range(100)]
    known = centre_mask(256, 200).expand(1, 3, -1, -1) == 0
    assert torch.equal(completed[known], picture[known])


def test_hole_mode_redraws_the_whole_hole():  # fact 11
    picture, mask = image(1, 3, 256, 256), centre_mask(256, 200)
    completed = progressive(Counting(), picture, mask, composite="hole")
    hole = mask.expand(1, 3, -1, -1) == 1
    assert (completed[hole] == 8).all()
    assert torch.equal(completed[~hole], picture[~hole])


@pytest.mark.parametrize("composite", ["ring", "hole"])
def test_truth_in_the_hole_is_never_read(composite):  # fact 12
    picture, mask = image(2, 3, 64, 64), random_masks(2, 64)
    noise = torch.where(mask == 1, torch.full_like(picture, float("nan")), picture)
    one = progressive(Mirror().inpaint, picture, mask, composite=composite)
    assert torch.equal(one, progressive(Mirror().inpaint, noise, mask, composite=composite))
    assert torch.isfinite(one).all()


@pytest.mark.parametrize("composite", ["ring", "hole"])
@pytest.mark.parametrize("slots", [None, 1, 3, 7])
def test_a_batch_of_mixed_holes_equals_one_by_one(slots, composite):  # fact 13
    picture, mask = image(7, 3, 64, 64), random_masks(7, 64)
    options = {"kernel_size": 5, "composite": composite}
    assert len(set(schedule(mask, kernel_size=5).calls)) > 3
    together = progressive(Mirror().inpaint, picture, mask, slots=slots, **options)
    for place in range(7):
        alone = progressive(Mirror().inpaint, picture[place : place + 1], mask[place : place + 1], **options)
        torch.testing.assert_close(together[place : place + 1], alone, rtol=0, atol=1e-6)


def test_places_are_taken_by_the_next_image_as_soon_as_one_is_finished():
    long, short = (schedule(centre_mask(64, side), kernel_size=5).calls[0] for side in (60, 50))
    mask = torch.cat([centre_mask(64, side) for side in (20, 60, *[20] * (long - short - 1), 50)])
    needed = schedule(mask, kernel_size=5).calls
    sizes = []

    def draw(image, mask):
        sizes.append(len(image))
        return torch.zeros_like(image)

    assert long > short + 1
    progressive(draw, image(len(mask), 3, 64, 64), mask, kernel_size=5, slots=2)
    assert sum(sizes) == sum(needed)
    assert sizes == [2] * long


def test_an_unknown_setting_is_refused():
    picture, mask = image(1, 3, 32, 32), centre_mask(32, 16)
    for wrong, message in [
        ({"kernel_size": 4}, "kernel_size 4; expected an odd number"),
        ({"threshold": 1.0}, r"threshold 1.0; expected a share in \[0, 1\)"),
        ({"max_rounds": -1}, "max_rounds -1"),
        ({"composite": "both"}, "composite 'both'; expected ring or hole"),
        ({"slots": 0}, "slots 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            progressive(Counting(), picture, mask, **wrong)
    with pytest.raises(ValueError, match="Divide it by its largest"):
        progressive(Counting(), picture, mask * 255)


def test_the_host_waits_for_nothing_between_the_calls():
    from tests.training.test_trainer import Syncs

    picture, mask, counts = image(3, 3, 64, 64), random_masks(3, 64), []
    with Syncs() as syncs:

        def draw(image, mask):
            counts.append(len(syncs.seen))
            return torch.zeros_like(image)

        progressive(draw, picture, mask, kernel_size=5)
    assert len(counts) > 3
    assert len(set(counts)) == 1
