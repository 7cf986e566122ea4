"""Scores that can be compared: protocols, metrics, stamped results, the papers' tables, reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inpaint.evaluation.held_out import TrainingEvaluator

__all__ = ["TrainingEvaluator"]


def __getattr__(name: str) -> Any:
    if name == "TrainingEvaluator":  # pulls in torch, which reading a result does not need
        from inpaint.evaluation.held_out import TrainingEvaluator

        return TrainingEvaluator
    raise AttributeError(f"module {__name__} has no attribute {name}")
