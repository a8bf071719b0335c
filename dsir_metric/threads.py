"""The threads of this process: how many a call may use, one pool of them, and one thread for BLAS meanwhile.

The compiled loops share their work over this pool, not over one of Numba's: those end a process that was forked after
they started (OpenMP), or that calls them from two Python threads at once (work queue). One thread enters no pool.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from threading import Lock

from threadpoolctl import threadpool_limits

__all__ = ["at_most", "forked", "most_threads", "one_for_blas", "share", "threads"]

_asked: ContextVar[int | None] = ContextVar("threads", default=None)


def most_threads() -> int:
    """Threads that this process may use: `NUMBA_NUM_THREADS`, or else the cores that it may run on."""
    given = os.environ.get("NUMBA_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Threads that compiled loops use here: what `at_most` allows, or as many as there are."""
    most = most_threads()
    return min(_asked.get() or most, most)


@contextmanager
def at_most(count: int | None) -> Iterator[None]:
    """Let compiled loops use at most `count` threads (None: no limit) in this thread, or this asynchronous task."""
    token = _asked.set(None if count is None else max(count, 1))
    try:
        yield
    finally:
        _asked.reset(token)


class _Process:
    """What a process has once. A forked child gets one of its own: threads and held locks are not copied with it."""

    def __init__(self, *, forked: bool) -> None:
        self.forked = forked
        self.lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self.blas: threadpool_limits | None = None
        self.blas_holders = 0

    @property
    def pool(self) -> ThreadPoolExecutor:
        """The pool, which starts a thread when it is first needed."""
        with self.lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(most_threads(), "dsir-metric")
            return self._pool


_process = _Process(forked=False)


def _begin_child() -> None:
    global _process
    _process = _Process(forked=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


def forked() -> bool:
    """Whether this process was forked from one that had loaded this module, and so has none of its threads."""
    return _process.forked


def share(work: Callable[[int, int], object], count: int, block: int = 1) -> None:
    """Do `work(first, last)` for parts of [0, count), one a thread, and return when all are done.

    Parameters
    ----------
    work : callable
        Safe to call from several threads at once for different parts; it gains if it releases the interpreter lock.
    count : int
        Pieces of work.
    block : int
        Parts are whole blocks of so many pieces, but for the last: fewer are not worth a thread.

    Notes
    -----
    With one thread, or one block, `work` is called here and no pool is entered. Any number of Python threads may call
    at once: they take turns in one pool, and each does the first part of its work itself.
    """
    blocks = -(-count // block)
    parts = min(threads(), blocks)
    if parts <= 1:
        work(0, count)
        return
    edges = [min(blocks * part // parts * block, count) for part in range(parts + 1)]
    pool = _process.pool
    others = [pool.submit(work, first, last) for first, last in pairwise(edges[1:])]
    try:
        work(edges[0], edges[1])
    finally:
        wait(others)  # they write into arrays of the caller
    for other in others:
        other.result()


@contextmanager
def one_for_blas() -> Iterator[None]:
    """Hold BLAS to one thread in the whole process; who comes first sets the limit, who leaves last takes it away."""
    process = _process
    with process.lock:
        if process.blas_holders == 0:
            process.blas = threadpool_limits(1, user_api="blas")
        process.blas_holders += 1
    try:
        yield
    finally:
        with process.lock:
            process.blas_holders -= 1
            if process.blas_holders == 0 and process.blas is not None:
                process.blas.restore_original_limits()
                process.blas = None
