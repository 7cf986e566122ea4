"""Random numbers of a step as a function of where in the run they are drawn.

Seeding each draw anew leaves no generator state to keep: a resumed step draws the same numbers, and so does the same
batch spread over another number of workers times parts.
"""

from __future__ import annotations

import torch

_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64, Steele et al. 2014
_MASK = (1 << 64) - 1


def seed_for(seed: int, *place: int) -> int:
    """63 bits that depend on the run's seed and on every number of `place` in its order."""
    state = seed & _MASK
    for number in place:
        state = (state + _MIX[0] * (number + 1)) & _MASK
        state = ((state ^ (state >> 30)) * _MIX[1]) & _MASK
        state = ((state ^ (state >> 27)) * _MIX[2]) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_torch(seed: int, *place: int) -> None:
    """Seed torch's own generators, on every device, for one draw of a run; waits for no device."""
    torch.manual_seed(seed_for(seed, *place))
