"""How many threads torch uses for a while: its number is one for the process, and for each thread that asked before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

from dsir_metric.threads import forked

__all__ = ["torch_threads"]


class _Numbers:
    """The number before anyone changed it, for as long as someone does."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._holders, self._before = 0, 0

    def take(self) -> int:
        """The number before; to be given back."""
        with self.lock:
            if self._holders == 0:
                self._before = torch.get_num_threads()
            self._holders += 1
            return self._before

    def give_back(self) -> None:
        """Set the number before, in this thread too."""
        with self.lock:
            self._holders -= 1
            torch.set_num_threads(self._before)


_numbers = _Numbers()


def _begin_child() -> None:
    _numbers.lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


@contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Let torch use `count` threads (None: as many as before) for a while; how many it does use.

    In a forked process it is one: torch's OpenMP waits for ever there for the threads of the parent.
    """
    before = _numbers.take()
    try:
        used = 1 if forked() else count or before
        torch.set_num_threads(used)
        yield used
    finally:
        _numbers.give_back()
