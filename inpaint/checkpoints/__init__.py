"""Checkpoints: a checkpoint is a folder, and it exists when its manifest does.

    <run>/checkpoints/<step, 10 digits>/
        run.yaml                        the run's settings in full
        networks/<name>.safetensors     weights
        trainer.pt                      optimizers, averaged weights, position; loadable with weights_only
        metrics.json                    scores and losses at that step
        manifest.json                   names, sizes and checksums of the above; written last
    <run>/resting/<name>-<digest>.safetensors  a network that a stage leaves alone, for all checkpoints that have it

Listing and pulling need no torch; writing and loading do, and are imported when first asked for.
"""

from importlib import import_module
from typing import Any

from inpaint.checkpoints.history import read_history
from inpaint.checkpoints.layout import CheckpointInfo, best, latest, list_checkpoints, run_url
from inpaint.checkpoints.pulling import pull

_NEED_TORCH = {
    "CheckpointWriter": "inpaint.checkpoints.writing",
    "load_method": "inpaint.checkpoints.loading",
    "load_networks": "inpaint.checkpoints.loading",
    "load_state": "inpaint.checkpoints.loading",
    "restore": "inpaint.checkpoints.loading",
}

__all__ = [
    "CheckpointInfo",
    "CheckpointWriter",
    "best",
    "latest",
    "list_checkpoints",
    "load_method",
    "load_networks",
    "load_state",
    "pull",
    "read_history",
    "restore",
    "run_url",
]


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NEED_TORCH[name]), name)
