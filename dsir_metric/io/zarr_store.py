"""A Zarr store that can be shut: from then on none of zarr's threads writes into its folder.

Needs zarr, so it is imported where a store is written.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

__all__ = ["ClosingStore"]

_PATIENCE_S = 60.0  # to write a chunk; a network drive that hangs does not keep us for ever


class ClosingStore(LocalStore):
    """A new store in a folder that has no name of its own yet, so that files are written in place.

    zarr writes chunks from several threads and lets the others go on when one fails: they would make the folder again
    while it is removed. Here the first failure shuts the store; what comes afterwards is dropped.

    Parameters
    ----------
    root : Path
    read_only : bool
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._state = threading.Condition()
        self._writing, self._shut = 0, False

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file, in another thread."""
        await asyncio.to_thread(self._write, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write a file."""
        self._write(key, value)

    def shut(self) -> None:
        """Take nothing more, and wait until what is being written is written."""
        with self._state:
            self._shut = True
            self._state.wait_for(lambda: self._writing == 0, timeout=_PATIENCE_S)

    def _write(self, key: str, value: Buffer) -> None:
        with self._state:
            if self._shut:
                return
            self._writing += 1
        failed = True
        try:
            path = self.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value.to_bytes())
            failed = False
        finally:
            with self._state:
                self._writing -= 1
                self._shut |= failed
                self._state.notify_all()
