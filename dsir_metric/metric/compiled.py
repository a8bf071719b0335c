"""How the hot loops of this room are compiled: one place for the flags of Numba, and for how threads share a loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numba
import numpy as np

from dsir_metric.threads import share

__all__ = ["Part", "inlined", "parallel"]

P = ParamSpec("P")
R = TypeVar("R")
Part = tuple[int, int]  # the first piece of work, and the one after the last

# Sums over channels may be re-ordered into vector lanes; NaN and infinity keep their meaning.
_VECTOR_SUMS = {"reassoc", "contract", "nsz"}


def parallel(over: str, block: int = 1) -> Callable[[Callable[Concatenate[Part, P], None]], Callable[P, None]]:
    """Compile a loop over a part of some work; the result does all of it, with the threads that it may use.

    One compiled loop serves one thread and many, with strict floating point: any number of threads gives the same bits.

    Parameters
    ----------
    over : str
        Name of the argument, an array, whose first axis the loop runs along.
    block : int
        See `dsir_metric.threads.share`.

    Returns
    -------
    callable
        Decorates a function whose first argument is the part, and which writes into arrays. The part is left out, and
        `over` given by position, where the result is called.
    """

    def decorate(function: Callable[Concatenate[Part, P], None]) -> Callable[P, None]:
        loop = _compile(function)
        place = list(inspect.signature(function).parameters).index(over) - 1

        @wraps(function)
        def run(*arguments: P.args, **named: P.kwargs) -> None:
            work = cast("Any", arguments[place])
            share(lambda *part: loop(_unsigned(*part), *arguments, **named), len(work), block)

        return run

    return decorate


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a helper that compiled functions call; it is inlined, and its sums may be vectorised."""
    return _compile(function, fastmath=_VECTOR_SUMS)


def _unsigned(first: int, last: int) -> Part:
    """The part in the type whose indices Numba does not look at for being negative: a tenth of the time of a loop."""
    return cast("Part", (np.uint64(first), np.uint64(last)))


def _compile(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """Compile at the first call, without the interpreter lock, and keep the result on disk where that is possible."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return cast("Callable[P, R]", numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no writable folder: a read-only installation without a home
        return cast("Callable[P, R]", numba.njit(**options)(function))
