"""Stand-ins for a trained method: what they draw is known beforehand."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from inpaint.config.methods import MethodConfig
from inpaint.methods.base import Method, Stage


class PainterConfig(MethodConfig):
    stage_names: ClassVar[tuple[str, ...]] = ()
    size_multiple: ClassVar[int] = 16
    name: str = "painter"


class CentreConfig(PainterConfig):
    hole_shapes: ClassVar[Literal["free", "centre"]] = "centre"


class Painter(Method):
    """Draws one colour everywhere; remembers the sizes it was asked for and refuses those off its grid of 16."""

    def __init__(self, colour: tuple[float, ...] = (1.0, 0.5, 0.0), config: MethodConfig | None = None) -> None:
        super().__init__(config or PainterConfig(), {})
        self.colour = nn.Parameter(torch.tensor(colour))
        self.sizes: list[tuple[int, int]] = []

    def stages(self) -> tuple[Stage, ...]:
        return ()

    def inpaint(self, image: Tensor, mask: Tensor) -> Tensor:
        assert image.shape[-1] % 16 == image.shape[-2] % 16 == 0
        self.sizes.append((image.shape[-1], image.shape[-2]))
        return self.colour.view(1, 3, 1, 1).expand_as(image)


class Mirror(Painter):
    """Draws each pixel as a function of its known neighbourhood: the mean of the known pixels of a 9×9 square."""

    def inpaint(self, image: Tensor, mask: Tensor) -> Tensor:
        known = 1 - mask
        total = nn.functional.avg_pool2d(image * known, 9, stride=1, padding=4)
        return total / nn.functional.avg_pool2d(known, 9, stride=1, padding=4).clamp_min(1e-6)
