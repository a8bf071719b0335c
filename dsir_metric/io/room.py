"""Room on a disk: looked for before a file is written, and missed in words that help."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dsir_metric.errors import DataError

__all__ = ["check_room", "refusal"]

_PROBE_BYTES = 1 << 20  # more than the rest of a last block of any file system
_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some space, or choose another folder",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another file system",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk or the network fails; choose another folder",
}
_OTHER_FOLDER = "choose another folder"


def check_room(path: Path, size: int) -> None:
    """See that the file `path`, which is there and empty, can take `size` bytes, by disk, quota and limits.

    Raises
    ------
    OSError
        If it cannot.
    """
    with path.open("r+b") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        finally:
            file.truncate(0)


def refusal(path: Path, temporary: Path, error: Exception) -> DataError:
    """What to tell when writing `path` under a temporary name has failed.

    A library such as ITK does not give the reason of the system; `temporary`, which must still hold what was written,
    is asked for it.
    """
    cause = error if isinstance(error, OSError) and error.strerror else _cause(temporary)
    if cause is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return DataError(f"{path}: cannot be written ({lines[-1] if lines else type(error).__name__})")
    remedy = _REMEDIES.get(cause.errno or 0, _OTHER_FOLDER)
    return DataError(f"{path}: cannot be written ({cause.strerror}); {remedy}")


def _cause(temporary: Path) -> OSError | None:
    """Why nothing more can be written to `temporary`."""
    try:
        with (temporary / "probe" if temporary.is_dir() else temporary).open("ab") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None
