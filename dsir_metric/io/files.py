"""Files before anything reads them: there, regular, and under a name that every reader takes."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dsir_metric.errors import DataError

__all__ = ["aliased", "named_for_itk", "regular_file"]


def regular_file(path: str | Path, advice: str = "give a file") -> Path:
    """The path of a regular file that may be read; a pipe would block whoever opens it.

    Parameters
    ----------
    path : str or Path
    advice : str
        What to do where a folder is in its place.

    Raises
    ------
    DataError
        If there is none, its name is too long, it may not be read, or it is a folder, a pipe or a device.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a null character
        raise DataError(f"{str(path)!r}: is no name of a file ({error})") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: is a folder; {advice}")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: is a pipe or a device; copy what it holds to a file first")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: cannot be read (permission denied)")
    return path


@contextmanager
def aliased(files: Mapping[str, Path]) -> Iterator[str]:
    """Give files other names in a folder of their own, for a reader that looks beside the file it is given.

    The NIfTI library opens `x.nii` when it is asked for `x.nii.gz` and both are there, and SimpleITK takes names in
    UTF-8 only.

    Parameters
    ----------
    files : mapping
        Real paths by the names they get.

    Yields
    ------
    str
        The path of the first one.
    """
    with tempfile.TemporaryDirectory(prefix="dsir-") as folder:
        yield os.path.join(folder, next(iter(files))) if _linked(files, folder) else str(next(iter(files.values())))


@contextmanager
def named_for_itk(path: Path) -> Iterator[str]:
    """The name under which ITK writes a file: one that is not UTF-8 gets a link, since it would end the process.

    Parameters
    ----------
    path : Path
        The file, or where it will be.

    Yields
    ------
    str
        A name with the ending of `path`.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        ending = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
        with aliased({f"target{ending}": path}) as name:
            yield name
    else:
        yield str(path)


def _linked(files: Mapping[str, Path], folder: str) -> bool:
    """Whether every file got its name: on Windows links are a privilege."""
    try:
        for name, path in files.items():
            os.symlink(path.absolute(), os.path.join(folder, name))
    except OSError:
        return False
    return True
