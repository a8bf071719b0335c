"""Write a file, or a folder that is one thing, whole or not at all; and several that belong together."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dsir_metric.errors import DataError
from dsir_metric.io.room import refusal
from dsir_metric.io.scratch import claimed, remove, settled, sweep, temporary_name

__all__ = ["atomic", "json_text", "prepare_folder", "scratch_folder", "write_json", "write_together"]

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_PROBE = bytes(4096)  # a block of most file systems


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, renamed to it when the block ends well and deleted when it does not.

    Parameters
    ----------
    path : str or Path
        The file to write, or the folder where the name ends in .zarr. The temporary name ends as this one does, since
        SimpleITK picks the format by the ending.

    Yields
    ------
    Path
        An empty file to be written, or folder to be filled. A folder takes the place of one that is there, with all
        that is in it.

    Raises
    ------
    DataError
        If writing fails in the operating system or in SimpleITK.
    """
    path = Path(path)
    with _draft(path) as temporary, _reported(path, temporary):
        yield temporary
        with settled(temporary):
            _publish(temporary, path)


def write_together(writers: Mapping[Path, Callable[[Path], object]], obsolete: Iterable[Path] = ()) -> None:
    """Write files that belong together; none appears before all are written.

    The last one vouches for the others: the one that is there goes first and the new one comes when all the others are
    in place, so that at no moment it stands beside files of another run.

    Parameters
    ----------
    writers : mapping of Path to callable
        What writes each file, called in this order with a temporary name; see `atomic`.
    obsolete : iterable of Path
        Files and folders to delete, such as those of a run before.

    Raises
    ------
    DataError
        If one cannot be written; then none of them has appeared or changed.
    """
    with ExitStack() as drafts:
        written = {}
        for path, write in writers.items():
            written[path] = temporary = drafts.enter_context(_draft(path))
            with _reported(path, temporary):
                write(temporary)
                drafts.enter_context(settled(temporary))
        with _reported(path, temporary):  # the last one
            for old in (path, *obsolete):
                remove(old)
        for path, temporary in written.items():
            with _reported(path, temporary):
                _publish(temporary, path)


@contextmanager
def scratch_folder(parent: str | Path) -> Iterator[Path]:
    """A hidden folder in `parent`, which is deleted when the block ends, or swept if we are killed.

    Raises
    ------
    DataError
        If writing fails in the operating system or in SimpleITK.
    """
    parent = Path(parent)
    folder = temporary_name(parent / "scratch")
    try:
        with _reported(parent, folder), claimed(folder, folder=True):
            yield folder
    finally:
        remove(folder)


def prepare_folder(path: str | Path) -> Path:
    """Make an output folder, with its parents, try to write in it, and delete what killed runs left there.

    Raises
    ------
    DataError
        If it cannot be made, is a file, or refuses a file. Call this before a long computation.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        probe = temporary_name(folder / "probe")
        try:
            probe.write_bytes(_PROBE)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to ({error.strerror}); choose another output folder") from error
    return folder


def write_json(content: Mapping[str, object], path: str | Path) -> None:
    """Write a mapping as indented UTF-8 JSON; NumPy numbers and arrays and paths are taken, NaN becomes null."""
    with atomic(path) as temporary:
        temporary.write_text(json_text(content), encoding="utf-8")


def json_text(content: Mapping[str, object]) -> str:
    """The text that `write_json` writes."""
    text = json.dumps(_jsonable(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace").decode()  # names of files that are not UTF-8, as JSON escapes them


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A temporary file or folder for `path`, ours as long as the block lasts."""
    folder, temporary = path.suffix.lower() == ".zarr", temporary_name(path)
    try:
        with ExitStack() as stack:
            with _reported(path, temporary):
                if path.is_dir() and not folder:
                    raise DataError(f"{path}: cannot be written (a folder has this name); choose another name")
                stack.enter_context(claimed(temporary, folder=folder))
            yield temporary
    finally:
        remove(temporary)


@contextmanager
def _reported(path: Path, temporary: Path) -> Iterator[None]:
    """Tell what goes wrong with `temporary` as an error of `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise refusal(path, temporary, error) from error


def _publish(temporary: Path, path: Path) -> None:
    """Give the finished file or folder its name."""
    if temporary.is_dir() and path.is_dir():
        _exchange(temporary, path)
    else:
        os.replace(temporary, path)


def _exchange(new: Path, old: Path) -> None:
    """Let two folders change names: at once on Linux, with a moment when `old` is absent elsewhere."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        failed = rename(_HERE, os.fsencode(new), _HERE, os.fsencode(old), _EXCHANGE)
    except (AttributeError, OSError, TypeError):  # not Linux, or an old one
        failed = True
    if failed:
        aside = temporary_name(old)
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
