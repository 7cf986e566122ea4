"""Progressive reconstruction: fill a large hole in rings from its edge, each from what the last one drew.

Source: ISNet, section 3.4 and the authors' code. Algorithm 1 as printed differs: it returns small holes unfilled and,
in its line 9, copies truth into the hole once the mask has grown. Neither is done here; known pixels alone are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint.imaging import check_mask

Inpaint = Callable[[Tensor, Tensor], Tensor]
KERNEL_SIZE = 15  # pixels; ISNet's text on latency and code (Fig. 6 shows 9)
THRESHOLD = 0.2  # ISNet Algorithm 1
MAX_ROUNDS = 10  # authors' code


@dataclass(frozen=True)
class Schedule:
    """All that progressive reconstruction will do to a batch, known from the masks alone.

    Attributes:
        levels: in how many rounds a pixel still lies in the hole, uint8 [B, 1, H, W]; 0 where known.
        calls: generator calls of each image, 1 + its extra rounds.
    """

    levels: Tensor
    calls: tuple[int, ...]

    def hole(self, done: int | Tensor) -> Tensor:
        """The hole, bool [B, 1, H, W], after `done` calls."""
        return self.levels > done


def schedule(
    mask: Tensor,
    *,
    kernel_size: int = KERNEL_SIZE,
    threshold: float = THRESHOLD,
    max_rounds: int = MAX_ROUNDS,
) -> Schedule:
    """The rounds that each mask of a batch needs. Waits for the device once.

    Args:
        mask: 1 in the hole, [B, 1, H, W].
        kernel_size: side of the square by which the known area grows each round, odd, in pixels.
        threshold: no further round once the hole's share of the image is at most this.
        max_rounds: most rounds after the first call.

    Raises:
        ValueError: an even or too small kernel, a threshold outside [0, 1), or a negative number of rounds.
    """
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size {kernel_size}; expected an odd number of pixels, 3 or more")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold {threshold}; expected a share in [0, 1)")
    if not 0 <= max_rounds <= 254:
        raise ValueError(f"max_rounds {max_rounds}; expected 0 to 254")
    hole = (mask > 0.5).to(torch.float32)
    levels, counts = hole.to(torch.uint8), [hole.count_nonzero((1, 2, 3))]
    pixels = hole[0].numel()
    for _ in range(max_rounds):
        if not hole.is_cuda and not bool((counts[-1] > threshold * pixels).any()):
            break
        hole = _shrink(hole, kernel_size)
        levels += hole.to(torch.uint8)
        counts.append(hole.count_nonzero((1, 2, 3)))
    shares = [[count / pixels for count in row] for row in torch.stack(counts).T.tolist()]
    calls = tuple(1 + _rounds(row[:max_rounds], threshold) for row in shares)
    last = torch.tensor(calls, dtype=torch.uint8, device=levels.device).view(-1, 1, 1, 1)
    return Schedule(torch.minimum(levels, last), calls)


@torch.no_grad()
def progressive(
    inpaint: Inpaint,
    image: Tensor,
    mask: Tensor,
    *,
    kernel_size: int = KERNEL_SIZE,
    threshold: float = THRESHOLD,
    max_rounds: int = MAX_ROUNDS,
    composite: Literal["ring", "hole"] = "ring",
    slots: int | None = None,
) -> Tensor:
    """The images with their holes filled in as many rounds as each needs, the same as one by one.

    Images are taken into `slots` places, and a place is taken by the next image as soon as one is finished, so that the
    generator runs on full batches whatever the mix of holes. Which image is where is decided before the first call;
    between calls the host waits for nothing.

    Args:
        inpaint: draws the whole of [b, 3, H, W] from (image with 0 in the hole, mask); `Method.inpaint`, say.
        image: [B, 3, H, W] in [0, 1]; what lies in the hole is never read.
        mask: 1 in the hole, [B, 1, H, W].
        kernel_size, threshold, max_rounds: see `schedule`.
        composite: `ring` keeps what a round drew where the hole then recedes; `hole` lets every round redraw the whole
            hole.
        slots: images in one call; all of them when None.

    Returns:
        Completed images, [B, 3, H, W]; known pixels are those of `image`, bit for bit.

    Raises:
        ValueError: a mask that is not 0 or 1 or of another size, or a setting outside its range.
    """
    if composite not in ("ring", "hole"):
        raise ValueError(f"composite {composite!r}; expected ring or hole")
    if slots is not None and slots < 1:
        raise ValueError(f"slots {slots}; expected at least one image per call")
    check_mask(mask, image)
    plan = schedule(mask, kernel_size=kernel_size, threshold=threshold, max_rounds=max_rounds)
    nothing = torch.zeros((), dtype=image.dtype, device=image.device)
    completed = torch.where(plan.levels > 0, nothing, image)
    for places, done in _calls(plan.calls, slots or len(plan.calls), image.device):
        levels = plan.levels[places]
        rounds = done.view(-1, 1, 1, 1)
        hole = levels > rounds
        current = completed[places]
        drawn = inpaint(torch.where(hole, nothing, current), hole.to(mask.dtype)).to(image.dtype)
        redrawn = hole if composite == "ring" else levels > 0
        completed[places] = torch.where(redrawn, drawn, current)
    return completed


def _calls(calls: tuple[int, ...], slots: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each call, which images take part and how many calls each has had; on the device, before the first.

    Images with many rounds enter first, so that the last calls are not left to one image alone.
    """
    waiting = sorted(range(len(calls)), key=lambda place: -calls[place])
    running: list[tuple[int, int]] = []
    plan: list[tuple[list[int], list[int]]] = []
    while waiting or running:
        while waiting and len(running) < slots:
            running.append((waiting.pop(0), 0))
        plan.append(([place for place, _ in running], [done for _, done in running]))
        running = [(place, done + 1) for place, done in running if done + 1 < calls[place]]
    sizes = [len(places) for places, _ in plan]
    both = torch.tensor([[p for row in plan for p in row[0]], [d for row in plan for d in row[1]]], device=device)
    return list(zip(both[0].split(sizes), both[1].split(sizes), strict=True))


def _rounds(shares: list[float], threshold: float) -> int:
    """How often the hole shrinks: while its share of the image is above the threshold."""
    return next((done for done, share in enumerate(shares) if share <= threshold), len(shares))


def _shrink(hole: Tensor, kernel_size: int) -> Tensor:
    """The hole eroded by a square; outside the image nothing is known. Equal to dilating the known area."""
    reach = kernel_size // 2
    hole = -F.max_pool2d(-hole, (1, kernel_size), stride=1, padding=(0, reach))
    return -F.max_pool2d(-hole, (kernel_size, 1), stride=1, padding=(reach, 0))
