"""Small files that somebody else wrote: only regular files are opened, and only so much of them is read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["open_regular", "read_text"]


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; a FIFO, which would wait for a writer, a device or a folder is refused.

    Raises
    ------
    OSError
        If there is no such file, it is not a regular one, or the name cannot be that of a file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a NUL, or a letter that the file system cannot encode
        raise OSError(errno.EINVAL, "the name is not valid") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        folder = stat.S_ISDIR(mode)
        raise OSError(errno.EISDIR if folder else errno.EINVAL, "it is a folder" if folder else "not a regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: str | Path, most_bytes: int) -> str:
    """Content of a file in UTF-8, with or without a byte order mark.

    Raises
    ------
    OSError
        See `open_regular`; also if the file has more than `most_bytes` bytes.
    UnicodeDecodeError
        If it is not UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes} bytes")
    return content.decode("utf-8-sig")
