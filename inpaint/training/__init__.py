"""Training: `Trainer` walks a method's stages. No Ray, no store, no paper."""

from inpaint.training.finite import NotFiniteError
from inpaint.training.plan import PlanError
from inpaint.training.trainer import Step, Trainer

__all__ = ["NotFiniteError", "PlanError", "Step", "Trainer"]
