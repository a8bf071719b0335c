"""How the hot loops of this room are compiled: one place for the flags of Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

__all__ = ["inlined", "parallel"]

P = ParamSpec("P")
R = TypeVar("R")

# Sums over channels may be re-ordered into vector lanes; NaN and infinity keep their meaning.
_VECTOR_SUMS = {"reassoc", "contract", "nsz"}


def parallel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile with threads over `numba.prange`, kept on disk; strict floating point, so any thread count agrees."""
    options = numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
    return cast("Callable[P, R]", options(function))


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a helper that compiled functions call; it is inlined, and its sums may be vectorised."""
    options = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_VECTOR_SUMS)
    return cast("Callable[P, R]", options(function))
