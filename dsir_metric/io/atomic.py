"""Write a file, or a folder that is one thing, whole or not at all."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dsir_metric.errors import DataError

try:
    import fcntl
except ImportError:  # on Windows nobody is kept out
    fcntl = None  # type: ignore[assignment]

__all__ = ["atomic", "locked", "prepare_folder", "remove", "sweep", "write_json"]

_TOKEN_BYTES = 4  # of the random part of a temporary name
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, renamed to it when the block ends well and deleted when it does not.

    Several files that belong together are entered into one `contextlib.ExitStack`: then none appears before all are
    written.

    Parameters
    ----------
    path : str or Path
        The file or folder to write. The temporary name ends as this one does, since SimpleITK picks the format by the
        ending.

    Yields
    ------
    Path
        Where to write a file or make a folder. A folder takes the place of one that is there, with all that is in it.

    Raises
    ------
    DataError
        If writing fails in the operating system or in SimpleITK.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            _exchange(temporary, path)
        else:
            os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be written ({_reason(error)})") from error
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def prepare_folder(path: str | Path) -> Path:
    """Make an output folder, with its parents, and try to write in it.

    Raises
    ------
    DataError
        If it cannot be made, is a file, or refuses a file. Call this before a long computation.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary(folder / "probe")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to ({error.strerror}); choose another output folder") from error
    return folder


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
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            had = False
        except OSError:
            pass
        yield had


def sweep(folder: str | Path) -> None:
    """Delete what a process left in a folder under temporary names when it was killed; nobody may be writing there."""
    for path in Path(folder).glob("." + _TOKEN_BYTES * 2 * "[0-9a-f]" + "-*"):
        remove(path)


def write_json(content: Mapping[str, object], path: str | Path) -> None:
    """Write a mapping as indented UTF-8 JSON; NumPy numbers and arrays and paths are taken, NaN becomes null."""
    with atomic(path) as temporary:
        text = json.dumps(_jsonable(content), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(_TOKEN_BYTES)}-{path.name}")


def _exchange(new: Path, old: Path) -> None:
    """Let two folders change names: at once on Linux, with a moment when `old` is absent elsewhere."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        failed = rename(_HERE, os.fsencode(new), _HERE, os.fsencode(old), _EXCHANGE)
    except (AttributeError, OSError, TypeError):  # not Linux, or an old one
        failed = True
    if failed:
        aside = _temporary(old)
        os.replace(old, aside)
        os.replace(new, old)
        os.replace(aside, new)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _reason(error: Exception) -> str:
    """The last line of an exception that says something, without SimpleITK's C++ file names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
