"""The memory that requests and answers take, of all clients together: what does not fit is not read."""

from __future__ import annotations

import asyncio
import ctypes
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dsir_metric.serve.limit import Full

__all__ = ["Held", "Late", "Room"]

_PIECE_BYTES = 1 << 18  # what a client must send within its grace to be called neither stalled nor slow
_LOOK_S = 0.05  # between two looks for room
_TRIM_S = 1.0  # after the last request, when what is freed is returned


class Late(Exception):  # noqa: N818  # the client is late
    """A request did not come in time."""


class Held:
    """One client's share of the room.

    Parameters
    ----------
    size : int
        Bytes.
    grace_s : float
        Seconds within which a piece must come; a client that is slower makes room for others.
    """

    def __init__(self, size: int, grace_s: float) -> None:
        self.size = size
        self._grace_s = grace_s
        self._came, self._mark_s = 0, time.monotonic()
        self._limit: asyncio.Timeout | None = None

    @asynccontextmanager
    async def coming(self, patience_s: float | None = None) -> AsyncIterator[None]:
        """While the request is read.

        Raises
        ------
        Late
            If it takes longer than `patience_s`, or is slow and others need the room.
        """
        try:
            async with asyncio.timeout(patience_s) as self._limit:
                yield
        except TimeoutError as error:
            raise Late("the request came too slowly; come back later") from error
        finally:
            self._limit = None

    def progress(self, count: int) -> None:
        """So many bytes came."""
        self._came += count
        if self._came >= _PIECE_BYTES:
            self._came, self._mark_s = 0, time.monotonic()

    @property
    def slow_s(self) -> float:
        """For how long it has been slow; negative while it is not."""
        return time.monotonic() - self._mark_s - self._grace_s if self._limit is not None else -1.0

    def give_up(self) -> None:
        """Stop reading the request."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(0.0)
        self._limit = None


class Room:
    """Bytes that requests and answers may take.

    Parameters
    ----------
    size : int
        Bytes of all of them.
    waiting : int
        Requests that may wait for room; further ones are sent away at once.
    patience_s : float
        Seconds that a request waits.
    """

    def __init__(self, size: int, waiting: int, patience_s: float) -> None:
        self._size, self._most_waiting, self._patience_s = size, waiting, patience_s
        self._held: set[Held] = set()
        self._waiting = 0
        self._trimming: asyncio.TimerHandle | None = None

    @property
    def taken(self) -> int:
        """Bytes that are taken."""
        return sum(held.size for held in self._held)

    async def enter(self, size: int, grace_s: float) -> Held:
        """Take room, when there is some.

        Parameters
        ----------
        size : int
            Bytes.
        grace_s : float
            See `Held`.

        Raises
        ------
        Full
            If too many wait for room, or there is none for too long.
        """
        if not self._fits(size):
            await self._wait(size)
        held = Held(size, grace_s)
        self._held.add(held)
        return held

    def leave(self, held: Held) -> None:
        """Give room back."""
        self._held.discard(held)
        if not self._held:
            if self._trimming is not None:
                self._trimming.cancel()
            self._trimming = asyncio.get_running_loop().call_later(_TRIM_S, self._trim)

    @asynccontextmanager
    async def share(self, size: int, grace_s: float) -> AsyncIterator[Held]:
        """Room for as long as the context lasts; raises as `enter`."""
        held = await self.enter(size, grace_s)
        try:
            yield held
        finally:
            self.leave(held)

    async def _wait(self, size: int) -> None:
        if self._waiting >= self._most_waiting:
            raise Full(f"busy: {self._waiting} requests wait to be read; come back later")
        self._waiting += 1
        latest = time.monotonic() + self._patience_s
        try:
            while not self._fits(size):
                if time.monotonic() > latest:
                    raise Full(f"busy: {self.taken} bytes of requests and answers are held; come back later")
                self._make_way()
                await asyncio.sleep(_LOOK_S)
        finally:
            self._waiting -= 1

    def _fits(self, size: int) -> bool:
        return not self._held or self.taken + size <= self._size

    def _make_way(self) -> None:
        """Give up the request that has been slow for longest."""
        slowest = max(self._held, key=lambda held: held.slow_s)
        if slowest.slow_s > 0:
            slowest.give_up()

    def _trim(self) -> None:
        """Give the memory that is free to the system, which glibc, full of gRPC's small pieces, does not by itself."""
        if sys.platform == "linux" and not self._held:
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
