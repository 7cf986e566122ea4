"""The table of methods: one paper, one file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inpaint.config.run import RunConfig
from inpaint.methods.base import Batch, Method, Stage, Terms, Update
from inpaint.methods.context_encoder import ContextEncoder
from inpaint.methods.edge_texture import EdgeTexture
from inpaint.methods.gated_two_stage import GatedTwoStage
from inpaint.methods.isfrnet import ISFRNet
from inpaint.methods.isnet import ISNet

METHODS: dict[str, type[Method]] = {
    "isnet": ISNet,
    "gated_two_stage": GatedTwoStage,
    "context_encoder": ContextEncoder,
    "edge_texture": EdgeTexture,
    "isfrnet": ISFRNet,
}

__all__ = ["METHODS", "Batch", "Method", "Stage", "Terms", "Update", "build_method", "load_into_method", "untrained"]


def build_method(run: RunConfig, features: Mapping[str, nn.Module] | None = None) -> Method:
    """The method a run trains, freshly initialised from torch's global generator.

    Args:
        run: checked settings.
        features: frozen feature networks by name, as `nn.features.load_features(run)` gives them; may be None for
            inference, where no loss is computed.
    """
    return METHODS[run.method.name](run.method, _steps(run), features or {})


def load_into_method(run: RunConfig, networks: Mapping[str, Mapping[str, Tensor]]) -> Method:
    """The method a run has trained, for inference, with its saved networks.

    Raises:
        KeyError, RuntimeError: networks that do not fit the run's settings.
    """
    kind = METHODS[run.method.name]
    with torch.random.fork_rng(devices=[]):
        method = kind(run.method, _steps(run), {}, **kind.known_from(run.method, networks))
    own = method.networks()
    for name, tensors in networks.items():
        own[name].load_state_dict(tensors)
    return method.eval()


def untrained(method: Method, run: RunConfig, step: int) -> tuple[str, ...]:
    """Networks that a fill uses and that are as they were drawn: not trained by `step` of the run, nor brought to it.

    Args:
        method: of the run, on any device.
        run: its settings.
        step: steps made, over all stages.
    """
    known = set(method.published)
    for stage in method.stages():
        if run.stages[stage.name].start_from is not None:
            known |= {*stage.trained(), *stage.given}
        if stage.steps and step > 0:
            known |= set(stage.trained())
        step -= stage.steps
    return tuple(name for name in method.inference_networks() if name not in known)


def _steps(run: RunConfig) -> dict[str, int]:
    return {name: stage.steps for name, stage in run.stages.items()}
