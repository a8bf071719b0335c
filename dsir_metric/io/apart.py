"""Refuse to write over what is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from dsir_metric.errors import ConfigError
from dsir_metric.io.zarr import is_zarr, store_of

__all__ = ["check_apart"]

_Identity = tuple[int, int]  # device and inode: the same for all names, links and spellings of a file


def check_apart(inputs: Iterable[tuple[str, Path]], outputs: Iterable[Path]) -> None:
    """See that no output is an input, lies in one, or has one in it. Nothing but names is looked at.

    Parameters
    ----------
    inputs : iterable of (str, Path)
        What each file or Zarr store is, and where; one that does not exist is passed over.
    outputs : iterable of Path
        Files and Zarr stores that will be written or removed, whether they exist or not.

    Raises
    ------
    ConfigError
        If an output and an input are one file, by whatever links, letter case or mounts.
    """
    read: dict[_Identity, tuple[str, Path]] = {}
    for name, path in inputs:
        path = store_of(path) if is_zarr(path) else path
        found = _identity(path)
        if found is not None:
            read.setdefault(found, (name, path))
    folders_read = {found for found, (_, path) in read.items() if path.is_dir()}
    folders_written: dict[_Identity, Path] = {}
    above = cache(_above)  # most files lie in a few folders
    for output in outputs:
        found = _identity(output)
        if found in read:
            raise _refused(output, *read[found])
        if found is not None and output.is_dir():
            folders_written[found] = output
        for folder in above(output.parent) if folders_read else ():
            if folder in folders_read:
                raise _refused(output, *read[folder])
    for name, path in read.values():
        for folder in above(path.parent) if folders_written else ():
            if folder in folders_written:
                raise _refused(folders_written[folder], name, path)


def _refused(output: Path, name: str, path: Path) -> ConfigError:
    return ConfigError(
        f"{output}: would be written over, but {name} {path} is read from it; choose another output"
        if output == path
        else f"{output}: would be written over, but it is, holds or lies in {name} {path}; choose another output"
    )


def _identity(path: Path) -> _Identity | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a null byte
        return None
    return status.st_dev, status.st_ino


def _above(folder: Path) -> list[_Identity]:
    """A folder and all that it lies in, so far as they exist."""
    real = Path(os.path.realpath(folder))
    return [found for found in map(_identity, (real, *real.parents)) if found is not None]
