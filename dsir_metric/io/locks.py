"""Locks between processes, which the system frees when their owner dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows nobody is kept out
    fcntl = None  # type: ignore[assignment]

__all__ = ["lock", "locked"]


def lock(descriptor: int, *, wait: bool) -> bool | None:
    """Lock an open file or folder until it is closed.

    Returns
    -------
    bool or None
        Whether it is ours; None where locks cannot be had: on Windows and on some network file systems.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def locked(path: str | Path, *, wait: bool = True) -> Iterator[bool]:
    """Keep others, in this process or another, out of what `path` stands for; the system frees it if we die.

    Parameters
    ----------
    path : str or Path
        A file, made where there is none and left behind.
    wait : bool
        Until it is free.

    Yields
    ------
    bool
        Whether it is ours: False where someone else has it and `wait` is False. It is True where locks cannot be had:
        on Windows, on some network file systems, in a folder that cannot be written to.
    """
    had = True
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(path).open("ab"))
        except OSError:
            pass
        else:
            had = lock(file.fileno(), wait=wait) is not False
        yield had
