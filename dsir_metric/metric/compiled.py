"""How the hot loops of this room are compiled: one place for the flags of Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba

__all__ = ["inlined", "parallel"]

P = ParamSpec("P")
R = TypeVar("R")

# Sums over channels may be re-ordered into vector lanes; NaN and infinity keep their meaning.
_VECTOR_SUMS = {"reassoc", "contract", "nsz"}


def parallel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile with threads over `numba.prange`; strict floating point, so that any number of threads agrees."""
    return _compile(function, parallel=True)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a helper that compiled functions call; it is inlined, and its sums may be vectorised."""
    return _compile(function, fastmath=_VECTOR_SUMS)


def _compile(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """Compile at the first call, without the interpreter lock, and keep the result on disk where that is possible."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return cast("Callable[P, R]", numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no writable folder: a read-only installation without a home
        return cast("Callable[P, R]", numba.njit(**options)(function))
