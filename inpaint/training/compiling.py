"""Compiled functions that fall back to plain ones, and a cache of compiled kernels that outlives the process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

_AUTOGRAD = {
    "force_non_lazy_backward_lowering": True,
    "donated_buffer": False,  # updates that share one forward keep its graph for each other
}


def compiled(function: Callable[..., Any], *, name: str) -> Callable[..., Any]:
    """`function` compiled for the shapes it is called with, or as it is when the compiler cannot.

    A failure is logged once and costs only the attempt; backward is compiled together with forward, so that it cannot
    fail later. Kernels are kept in `TORCHINDUCTOR_CACHE_DIR`, by default a folder in the user's cache, so that a second
    process starts warm.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._functorch import config as autograd_config
    from torch._inductor.exc import InductorError

    _keep_kernels()
    run = torch.compile(function, dynamic=False)
    fallen_back = False

    def call(*inputs: Any) -> Any:
        nonlocal fallen_back
        if not fallen_back:
            try:
                with autograd_config.patch(_AUTOGRAD):
                    return run(*inputs)
            except (TorchDynamoException, InductorError) as error:
                fallen_back = True
                log.warning("%s cannot be compiled and runs as written: %s", name, str(error).strip().splitlines()[0])
        return function(*inputs)

    return call


def _keep_kernels() -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inpaint" / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
