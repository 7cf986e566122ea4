"""The number formats and kernels of a step: bf16 autocast, TF32, deterministic kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from inpaint.config.run import TrainingConfig

_CONV: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009 - torch's stubs lack it
_FILLING: Any = torch.utils.deterministic
CUBLAS_WORKSPACE = ":4096:8"  # cuBLAS is deterministic only with a fixed workspace


def autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """bf16 where PyTorch holds it safe when the config asks for it; otherwise everything stays as it is."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16")


@contextmanager
def policy(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """TF32 and deterministic kernels as the config says, inside; the process's own settings are back outside."""
    matmul, conv, filling = torch.backends.cuda.matmul, _CONV, _FILLING
    was = (matmul.fp32_precision, conv.fp32_precision, torch.backends.cudnn.benchmark)
    strict = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    filled = filling.fill_uninitialized_memory
    try:
        if device.type == "cuda":
            matmul.fp32_precision = conv.fp32_precision = "tf32" if config.tf32 else "ieee"
            torch.backends.cudnn.benchmark = not config.deterministic
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
            filling.fill_uninitialized_memory = False
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        if device.type == "cuda":
            matmul.fp32_precision, conv.fp32_precision, torch.backends.cudnn.benchmark = was
        if config.deterministic:
            torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
            filling.fill_uninitialized_memory = filled
