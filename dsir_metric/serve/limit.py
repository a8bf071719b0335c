"""How many requests are computed at once, and how many wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Full", "Turnstile"]

Result = TypeVar("Result")


class Full(Exception):  # noqa: N818  # a state rather than an error
    """No further request may wait."""


class Turnstile:
    """Lets `concurrency` calls run at once, in threads, and `queue` more wait.

    Parameters
    ----------
    concurrency, queue : int
    """

    def __init__(self, concurrency: int, queue: int) -> None:
        self._places = asyncio.Semaphore(concurrency)
        self._most = concurrency + queue
        self._inside = 0

    async def run(self, call: Callable[[], Result]) -> Result:
        """Result of `call`, when it was its turn.

        Raises
        ------
        Full
            At once, if too many wait.
        """
        if self._inside >= self._most:
            raise Full(f"busy: {self._most} requests are computed or wait; come back later")
        self._inside += 1
        try:
            async with self._places:
                return await asyncio.to_thread(call)
        finally:
            self._inside -= 1
