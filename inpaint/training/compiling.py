"""Compiled functions that fall back to plain ones, and a cache of compiled kernels that outlives the process."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


def compiled(function: Callable[..., Any], *, name: str) -> Callable[..., Any]:
    """`function` compiled for the shapes it is called with, or as it is when the compiler cannot.

    A failure is logged once and costs only the attempt; backward is compiled together with forward, so that it cannot
    fail later. Graphs and kernels are kept in `TORCHINDUCTOR_CACHE_DIR`, by default a folder in the user's cache, so
    that a second process with the same networks and losses starts warm.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._functorch import config as autograd_config
    from torch._inductor.exc import InductorError

    _keep_kernels()
    autograd_config.force_non_lazy_backward_lowering = True
    autograd_config.autograd_cache_allow_custom_autograd_functions = True  # else a warm start traces all backwards
    torch.compiler.config.cache_key_tag = _code()
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


@cache
def _code() -> str:
    """A digest of what networks and losses are written as: gradients written by hand are no part of torch's own key."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for folder in ("losses", "methods", "nn"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _keep_kernels() -> None:
    """Name a folder that outlives the machine's temporary files, unless the environment names one."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inpaint" / "compiled"
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():  # torch's imports set it
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
