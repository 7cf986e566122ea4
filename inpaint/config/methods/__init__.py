"""The numbers of the five papers: one file each, as in `inpaint/methods/`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from inpaint.config.methods.base import MethodConfig
from inpaint.config.methods.context_encoder import ContextEncoderConfig
from inpaint.config.methods.edge_texture import EdgeTextureConfig
from inpaint.config.methods.gated_two_stage import GatedTwoStageConfig
from inpaint.config.methods.isfrnet import ISFRNetConfig, PSPConfig
from inpaint.config.methods.isnet import ISNetConfig, ISNetWeights

__all__ = [
    "AnyMethod",
    "ContextEncoderConfig",
    "EdgeTextureConfig",
    "GatedTwoStageConfig",
    "ISFRNetConfig",
    "ISNetConfig",
    "ISNetWeights",
    "MethodConfig",
    "PSPConfig",
]

AnyMethod = Annotated[
    ISNetConfig | GatedTwoStageConfig | ContextEncoderConfig | EdgeTextureConfig | ISFRNetConfig,
    Field(discriminator="name"),
]
