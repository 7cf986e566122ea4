"""Compiled functions that fall back to plain ones, and a cache of compiled kernels that outlives the process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


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
    autograd_config.force_non_lazy_backward_lowering = True
    autograd_config.donated_buffer = False  # backward reads it too: updates that share a forward keep its graph
    run = torch.compile(function, dynamic=False)
    fallen_back = False

    def call(*inputs: Any) -> Any:
        nonlocal fallen_back
        if not fallen_back:
            try:
                return run(*inputs)
            except (TorchDynamoException, InductorError) as error:
                fallen_back = True
                log.warning("%s cannot be compiled and runs as written: %s", name, str(error).strip().splitlines()[0])
        return function(*inputs)

    return call


def _keep_kernels() -> None:
    """Name a folder that outlives the machine's temporary files, unless the environment names one."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inpaint" / "compiled"
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():  # torch's imports set it
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
