"""A Zarr store that fails once, and that can be shut: from then on none of zarr's threads writes into its folder.

Needs zarr, so it is imported where a store is written.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

__all__ = ["ClosingStore"]

_PATIENCE_S = 60.0  # to write some chunks; a network drive that hangs does not keep us for ever


class ClosingStore(LocalStore):
    """A new store in a folder that has no name of its own yet, so that files are written in place.

    zarr writes many chunks at once and leaves the others to themselves when one fails: they would make the folder again
    while it is removed, and complain on the screen. Here a failure is kept for `check`, and what comes after it is
    dropped.

    Parameters
    ----------
    root : Path
    read_only : bool
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._state = threading.Condition()
        self._writing, self._shut = 0, False
        self._failure: OSError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file, in another thread."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._write, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a file that is not there, in another thread."""
        if not (self.root / key).exists():
            await self.set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write a file."""
        self._write(key, value)

    def check(self) -> None:
        """Raise if a file could not be written.

        Raises
        ------
        OSError
        """
        if self._failure is not None:
            raise self._failure

    def shut(self) -> None:
        """Take nothing more, and wait for what is under way, which an interrupt leaves to itself."""
        with self._state:
            self._shut = True
            self._state.wait_for(lambda: self._writing == 0, timeout=_PATIENCE_S)
        if self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(_others(), self._loop).result(2 * _PATIENCE_S)

    def _write(self, key: str, value: Buffer) -> None:
        with self._state:
            if self._shut:
                return
            self._writing += 1
        try:
            path = self.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value.to_bytes())
        except OSError as error:
            self._failure, self._shut = error, True
        finally:
            with self._state:
                self._writing -= 1
                self._state.notify_all()


async def _others() -> None:
    """Wait until the other tasks of this event loop are done."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=_PATIENCE_S)
