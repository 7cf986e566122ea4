"""Loops over pixels as machine code, for what no library does in one pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache


class _Cache(FunctionCache):
    """Machine code on disk, if there is room for it."""

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # it is there; the next process makes it anew
            super().save_overload(sig, data)


def compiled(function: Callable[..., Any], *, fastmath: bool | set[str] = False) -> Any:
    """`function` in machine code, made when it is first called and run without Python's lock.

    The code is kept in NUMBA_CACHE_DIR, beside the function's file or in the user's cache, whichever can be written.

    Args:
        fastmath: liberties that the compiler may take with floats.
    """
    made = njit(function, nogil=True, fastmath=fastmath, error_model="numpy")
    with suppress(RuntimeError):  # none of them can
        made._cache = _Cache(function)
    return made


def compiled_sums(function: Callable[..., Any]) -> Any:
    """`compiled`, where the terms of a sum may be added in another order: several at once."""
    return compiled(function, fastmath={"contract", "reassoc", "nsz"})
