"""Write a file whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
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

__all__ = ["atomic", "locked", "prepare_folder", "sweep", "write_json"]

_TOKEN_BYTES = 4  # of the random part of a temporary name


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, renamed to it when the block ends well and deleted when it does not.

    Several files that belong together are entered into one `contextlib.ExitStack`: then none appears before all are
    written.

    Parameters
    ----------
    path : str or Path
        The file to write. The temporary name ends as this one does, since SimpleITK picks the format by the ending.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    DataError
        If writing fails in the operating system or in SimpleITK.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(_TOKEN_BYTES)}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be written ({_reason(error)})") from error
    finally:
        temporary.unlink(missing_ok=True)


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
        probe = folder / f".{secrets.token_hex(_TOKEN_BYTES)}-probe"
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
    """Delete the temporary files that a process left in a folder when it was killed; nobody may be writing there."""
    for path in Path(folder).glob("." + _TOKEN_BYTES * 2 * "[0-9a-f]" + "-*"):
        path.unlink(missing_ok=True)


def write_json(content: Mapping[str, object], path: str | Path) -> None:
    """Write a mapping as indented UTF-8 JSON; NumPy numbers and arrays and paths are taken, NaN becomes null."""
    with atomic(path) as temporary:
        text = json.dumps(_jsonable(content), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


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
