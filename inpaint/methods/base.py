"""What a paper gives the trainer: networks, and stages of updates. Data, not control flow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from inpaint.config.methods import MethodConfig
from inpaint.config.optim import OptimizerConfig
from inpaint.errors import ShapeError
from inpaint.imaging import Batch

Terms = dict[str, Tensor]
Loss = Callable[[Batch, Any, frozenset[str]], Terms]
Weight = float | Callable[[float], float]


def weight_at(weight: Weight, progress: float) -> float:
    """λ at a stage's `progress` in [0, 1]."""
    return weight(progress) if callable(weight) else weight


@dataclass(frozen=True)
class Update:
    """One optimiser step inside a training step: who learns, from what, how.

    Attributes:
        name: short, unique in its stage ("generator").
        trains: names of networks of the method; no other network gets a gradient.
        loss: unweighted scalar terms by name, from the batch and what the stage's forward gave. A term whose weight
            is 0 throughout the stage is never asked for: `loss` is told which ones are wanted by `active`.
        weights: λ of each term, a number or a function of the stage's progress.
        optimizer: how the networks move.
    """

    name: str
    trains: tuple[str, ...]
    loss: Loss
    weights: Mapping[str, Weight]
    optimizer: OptimizerConfig

    def active(self) -> frozenset[str]:
        """Terms that can have a weight other than 0 at some time; only these are computed."""
        return frozenset(term for term, weight in self.weights.items() if callable(weight) or weight != 0)

    def judges(self) -> bool:
        """Whether it trains discriminators: its loss then has a real and a filled half."""
        return {"real", "filled"} <= set(self.weights)


@dataclass(frozen=True)
class Stage:
    """A span of steps in which the same networks learn from the same losses.

    Attributes:
        name: as in the config's `stages`.
        steps: its length.
        forward: run once per step; what it returns is shared by the updates. It runs with gradients for the networks
            that any update of the stage trains.
        updates: in the order in which they are made.
        given: networks that it uses and does not train, which `stages.<name>.from` brings nevertheless.
    """

    name: str
    steps: int
    forward: Callable[[Batch], Any]
    updates: tuple[Update, ...]
    given: tuple[str, ...] = ()

    def trained(self) -> tuple[str, ...]:
        """Names of the networks the stage moves, in the order of its updates."""
        return tuple(dict.fromkeys(name for update in self.updates for name in update.trains))


class Method(nn.Module, ABC):
    """One published method.

    Direct child modules are its networks: trained by the stages that name them, saved under their attribute's name.
    A child listed in `frozen` (VGG, a published prior) is never trained, saved or wrapped; one listed in `published`
    begins with published weights. `own_scores` are the names that `scores` gives.

    Args:
        config: the method's settings.
        steps: length of each stage, by name.
    """

    frozen: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    own_scores: tuple[str, ...] = ()

    def __init__(self, config: MethodConfig, steps: Mapping[str, int]) -> None:
        super().__init__()
        self.config = config
        self.steps = dict(steps)

    @staticmethod
    def known_from(config: MethodConfig, networks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
        """What these saved networks tell that the method would else look up, as further arguments of its class."""
        return {}

    def networks(self) -> dict[str, nn.Module]:
        """The networks that belong to a checkpoint, by name."""
        return {name: child for name, child in self.named_children() if name not in self.frozen}

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Its training, in order. Stages of 0 steps are left out by the trainer."""

    @abstractmethod
    def inpaint(self, image: Tensor, mask: Tensor) -> Tensor:
        """What the generator draws over the whole image.

        Args:
            image: [B, 3, H, W] in [0, 1]; what lies in the hole is ignored.
            mask: 1 in the hole, [B, 1, H, W].

        Returns:
            `predicted`, [B, 3, H, W] in [0, 1]. Composite it with `imaging.composite`.
        """

    def check_sides(self, image: Tensor) -> None:
        """Refuse an image off the method's grid; every `inpaint` asks this first.

        Raises:
            ShapeError: a side is not a multiple of `config.size_multiple`, or below `config.smallest_side`.
        """
        multiple, (height, width) = self.config.size_multiple, image.shape[-2:]
        if height % multiple or width % multiple:
            raise ShapeError(
                f"image is {width}×{height}; {type(self).__name__} needs sides that are multiples of {multiple}. "
                "Pad it, or call inpaint.inference.fill, which does"
            )
        if min(height, width) < self.config.smallest_side:
            raise ShapeError(
                f"image is {width}×{height}; {type(self).__name__} with these settings needs sides of at least "
                f"{self.config.smallest_side}. Pad it, or call inpaint.inference.fill, which does"
            )

    def inference_networks(self) -> tuple[str, ...]:
        """Names of the networks that `inpaint` uses; the others are not pulled."""
        return tuple(self.networks())

    def previews(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Named pictures worth looking at beside the fill (edges, a coarse stage), each [B, 1 or 3, H, W] in [0, 1]."""
        return {}

    def scores(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Figures of the method's own worth a curve beside PSNR (how good its edges are), by name.

        Args:
            image: the true image, [B, 3, H, W] in [0, 1].
            mask: 1 in the hole, [B, 1, H, W].

        Returns:
            One value per image, each [B]; NaN where an image has none.
        """
        return {}


@contextmanager
def modes_kept(method: nn.Module) -> Iterator[None]:
    """Every module of the method is in the mode, training or inference, after that it was in before."""
    modes = [(module, module.training) for module in method.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
