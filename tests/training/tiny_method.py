"""A method small enough to train in a test: a generator and a discriminator under spectral norm, and a second stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from inpaint.config.methods import MethodConfig
from inpaint.config.optim import Adam, CosineSchedule, OptimizerConfig
from inpaint.imaging import Batch
from inpaint.methods.base import Method, Stage, Terms, Update, Weight

# eps far above rounding, so that two ways to the same gradient make the same step
ADAM = Adam(learning_rate=1e-2, betas=(0.5, 0.9), eps=1e-3, schedule=CosineSchedule(warmup=2))


class TinyConfig(MethodConfig):
    stage_names: ClassVar[tuple[str, ...]] = ("first", "gan")
    size_multiple: ClassVar[int] = 1
    name: str = "tiny"


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = spectral_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.two = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(features + self.two(torch.tanh(self.one(features))))


class TinyMethod(Method):
    """`first` trains `generator` on L1; `gan` trains `generator` and `discriminator`; `prior` is frozen."""

    frozen = ("prior",)

    def __init__(self, steps: Mapping[str, int], *, ramp: bool = False, dropout: float = 0.0) -> None:
        super().__init__(TinyConfig(), steps)
        self.generator = nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1), Block(6), nn.Dropout(dropout), nn.Conv2d(6, 3, 3, padding=1), nn.Sigmoid()
        )
        self.discriminator = nn.Sequential(
            spectral_norm(nn.Conv2d(3, 6, 4, stride=2, padding=1)), nn.LeakyReLU(0.2), nn.Conv2d(6, 1, 3, padding=1)
        )
        self.prior = nn.Conv2d(3, 2, 3, padding=1).requires_grad_(False)
        self.adversarial: Weight = (lambda progress: progress) if ramp else 0.1
        self.perceptual = 0.5
        self.asked: list[frozenset[str]] = []
        self.optimizer: OptimizerConfig = ADAM

    def stages(self) -> tuple[Stage, ...]:
        l1 = Update("generator", ("generator",), self.generator_loss, {"l1": 1.0, "unused": 0.0}, self.optimizer)
        judge = Update("discriminator", ("discriminator",), self.judge, {"real": 1.0, "filled": 1.0}, self.optimizer)
        weights = {"l1": 1.0, "adversarial": self.adversarial, "perceptual": self.perceptual}
        draw = Update("generator", ("generator",), self.generator_loss, weights, self.optimizer)
        return (
            Stage("first", self.steps["first"], self.draw, (l1,)),
            Stage("gan", self.steps["gan"], self.draw, (judge, draw)),
        )

    def draw(self, batch: Batch) -> Tensor:
        return self.inpaint(batch.image, batch.mask)

    def inpaint(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.generator(torch.cat((image * (1 - mask), mask), dim=1))

    def judge(self, batch: Batch, drawn: Tensor, active: frozenset[str]) -> Terms:
        real, filled = self.discriminator(torch.cat((batch.image, drawn.detach().float()))).float().chunk(2)
        return {"real": (1 - real).relu().mean(), "filled": (1 + filled).relu().mean()}

    def generator_loss(self, batch: Batch, drawn: Tensor, active: frozenset[str]) -> Terms:
        if not torch.compiler.is_compiling():  # or each call would be compiled anew, for another length
            self.asked.append(active)
        terms: Terms = {}
        if "l1" in active:
            terms["l1"] = (drawn.float() - batch.image).abs().mean() / batch.mean_hole()
        if "adversarial" in active:
            terms["adversarial"] = -self.discriminator(drawn).float().mean()
        if "perceptual" in active:
            terms["perceptual"] = (self.prior(drawn) - self.prior(batch.image)).float().abs().mean()
        return terms


def build(steps: Mapping[str, int] | None = None, *, seed: int = 0, **options: object) -> TinyMethod:
    """A tiny method with weights drawn from `seed`; 3 steps of `first` and 3 of `gan` unless told otherwise."""
    torch.manual_seed(seed)
    return TinyMethod(steps or {"first": 3, "gan": 3}, **options)  # type: ignore[arg-type]


def batches(count: int, *, size: int = 4, side: int = 8, seed: int = 1) -> list[Batch]:
    """Random images, with holes of different size from sample to sample."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, size, 3, side, side, generator=generator)
    shares = torch.rand(count, size, 1, 1, 1, generator=generator)
    masks = (torch.rand(count, size, 1, side, side, generator=generator) < shares).float()
    pairs = zip(images, masks, strict=True)
    return [Batch(image, mask, keys=tuple(f"{i}" for i in range(size))) for image, mask in pairs]
