"""How many requests are computed at once, and how many wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Full", "Turnstile"]

Result = TypeVar("Result")


class Full(Exception):  # noqa: N818  # a state rather than an error
    """No further request may wait."""


class Turnstile:
    """Lets `concurrency` calls run at once, in threads, and `queue` more wait.

    A call keeps its place until it ends, even if whoever waited for it has gone: it needs its memory until then.

    Parameters
    ----------
    concurrency, queue : int
    """

    def __init__(self, concurrency: int, queue: int) -> None:
        self._threads = ThreadPoolExecutor(concurrency, "dsir-metric-request")
        self._most = concurrency + queue
        self._places = threading.Semaphore(self._most)

    async def run(self, call: Callable[[], Result], abandon: Callable[[], None] = lambda: None) -> Result:
        """Result of `call`, when it was its turn.

        Parameters
        ----------
        call : callable
        abandon : callable
            Called when nobody waits for the result any more, to end `call` early.

        Raises
        ------
        Full
            At once, if too many wait.
        """
        if not self._places.acquire(blocking=False):
            raise Full(f"busy: {self._most} requests are computed or wait; come back later")
        future = self._threads.submit(call)
        future.add_done_callback(lambda _: self._places.release())
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            abandon()
            raise
