"""What every method's settings share, and what they tell a run about themselves."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from inpaint.config.base import Strict
from inpaint.config.optim import Adam, OptimizerConfig, Ranger21

if TYPE_CHECKING:
    from inpaint.config.run import RunConfig

Weight = Annotated[float, Field(ge=0)]  # λ of a term
SMALLEST_PATCH = 24  # side in pixels of the smallest image for which a 70-pixel PatchGAN gives one logit


class LossWeights(Strict):
    """λ of each term of one network's loss."""

    @model_validator(mode="after")
    def _one_counts(self) -> LossWeights:
        fields = type(self).model_fields
        if not any(getattr(self, name) for name in fields):
            names = ", ".join(field.alias or name for name, field in fields.items())
            raise ValueError(f"{names} are all 0, so nothing would be learned; give at least one a weight")
        return self


class MethodConfig(Strict):
    """What every method's settings share.

    Attributes:
        stage_names: the stages of its training, in order.
        size_multiple: both sides of an image must be a multiple of this.
        smallest_trained: pixels of the smallest square that its discriminators can judge.
        hole_shapes: `free` accepts any mask, `centre` only the centred square the method was built for.
    """

    stage_names: ClassVar[tuple[str, ...]]
    size_multiple: ClassVar[int]
    smallest_trained: ClassVar[int] = 1
    hole_shapes: ClassVar[Literal["free", "centre"]] = "free"

    def feature_networks(self, stages: Collection[str]) -> tuple[str, ...]:
        """Names of the frozen feature networks (`vgg19`, `vgg16`) that the losses of these stages need, as they are
        weighted."""
        return ()

    @property
    def smallest_side(self) -> int:
        """Pixels of the smallest square it can take."""
        return self.size_multiple

    def weight_files(self) -> dict[str, tuple[str, str | None]]:
        """Files of published weights that it cannot be built without: setting → (path or URL, SHA-256 or None)."""
        return {}

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Its optimizers by setting."""
        return {name: value for name, value in self if isinstance(value, Adam | Ranger21)}

    def check_run(self, run: RunConfig) -> None:
        """Refuse what this method cannot train with beyond its grid and hole shape; ValueError names the setting."""
