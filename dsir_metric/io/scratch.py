"""Files under temporary names: held by their writer while it lives, deleted by anyone once it is dead."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dsir_metric.io.locks import lock

__all__ = ["claimed", "remove", "settled", "sweep", "temporary_name"]

_POSIX = os.name == "posix"
_TAIL = 50  # characters kept of a name: with the prefix at most 229 bytes of UTF-8, file systems take 255
_NAME = re.compile(r"\.dsir-(?P<host>[0-9a-f]{8})-[0-9a-f]{12}-")
_FORMER = re.compile(  # what version 0.1.0 left, which had no locks
    r"\.[0-9a-f]{8}-(table\.csv|result\.json|(transform|inverse)\.h5|moved(_labels)?\.[a-z.]+)"
)
_FOREIGN_S = 3600.0  # a file of another machine is left alone so long: locks need not be known across machines
_UNLOCKABLE_S = 86400.0  # the same where the file system has no locks at all


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` which tells the machine it was made on, and ends as `path` does."""
    return path.with_name(f".dsir-{_host()}-{secrets.token_hex(6)}-{path.name[-_TAIL:]}")


@contextmanager
def claimed(path: Path, *, folder: bool = False) -> Iterator[None]:
    """Make an empty file or folder and lock it as long as the block lasts; the system frees the lock if we die.

    Parameters
    ----------
    path : Path
        See `temporary_name`.
    folder : bool

    Raises
    ------
    OSError
        If it cannot be made.
    """
    while True:
        descriptor = _create(path, folder)
        if descriptor is None:
            yield
            return
        with _closing(descriptor):
            lock(descriptor, wait=True)
            if _is_at(descriptor, path):  # else a sweep came between
                yield
                return


@contextmanager
def settled(path: Path) -> Iterator[None]:
    """Have a file on the disk that was written, and hold it, should a library have made it anew under its name.

    Raises
    ------
    OSError
        If a network drive or a quota refuses only now what was taken before.
    """
    if path.is_dir() or not _POSIX:
        yield
        return
    descriptor = os.open(path, os.O_RDWR)
    with _closing(descriptor):
        lock(descriptor, wait=False)
        os.fsync(descriptor)
        yield


def sweep(folder: str | Path) -> None:
    """Delete what processes that were killed left in a folder under temporary names; what others write now stays."""
    with suppress(OSError):
        for path in Path(folder).iterdir():
            found = _NAME.match(path.name)
            if found is not None or _FORMER.fullmatch(path.name):
                with suppress(OSError):
                    _sweep(path, ours=found is None or found["host"] == _host())


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sweep(path: Path, *, ours: bool) -> None:
    """Delete a file or folder unless it may be in use; `ours` is what this machine made."""
    age_s = time.time() - path.lstat().st_mtime
    if not ours and age_s < _FOREIGN_S:
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks a file only for writers
    with _closing(descriptor):
        free = lock(descriptor, wait=False)
        if free or (free is None and age_s > _UNLOCKABLE_S):
            remove(path)


@contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def _create(path: Path, folder: bool) -> int | None:
    """Make an empty file or folder and open it; Windows does not rename what is open, so there it is not."""
    if folder:
        path.mkdir()
    else:
        path.touch(exist_ok=False)
    return os.open(path, os.O_RDONLY if folder else os.O_RDWR) if _POSIX else None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _host() -> str:
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
