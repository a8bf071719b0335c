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
        What each file or Zarr store is, and where; what is neither, such as the name of a model, is passed over.
    outputs : iterable of Path
        Files and Zarr stores that will be written or removed, whether they exist or not.

    Raises
    ------
    ConfigError
        If an output and an input are one file, by whatever links, letter case or mounts.
    """
    read = _read(inputs)
    folders_read = {found for found, (_, path) in read.items() if not path.is_file()}
    folders_written: dict[_Identity, Path] = {}
    above = cache(_above)  # most files lie in a few folders
    for output in outputs:
        found = _identity(output)
        if found is not None and found in read:
            raise _refused(output, *read[found])
        for folder in above(output.parent) & folders_read if folders_read else ():
            raise _refused(output, *read[folder])
        if found is not None and output.is_dir():
            folders_written[found] = output
    if folders_written:
        for name, path in read.values():
            for folder in above(path.parent) & folders_written.keys():
                raise _refused(folders_written[folder], name, path)


def _read(inputs: Iterable[tuple[str, Path]]) -> dict[_Identity, tuple[str, Path]]:
    """Inputs that exist; of what lies in a Zarr store, the store."""
    read: dict[_Identity, tuple[str, Path]] = {}
    seen: set[Path] = set()  # a template is in every row of a table
    for name, path in inputs:
        if path in seen:
            continue
        seen.add(path)
        found = _identity(path) if path.is_file() else _identity(store_of(path)) if is_zarr(path) else None
        if found is not None:
            read.setdefault(found, (name, path))
    return read


def _refused(output: Path, name: str, path: Path) -> ConfigError:
    what = name if path == output else f"{name} ({path})"
    return ConfigError(f"{output}: would be written over {what}, which is read; choose another output")


def _identity(path: Path) -> _Identity | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a null byte
        return None
    return status.st_dev, status.st_ino


def _above(folder: Path) -> frozenset[_Identity]:
    """A folder and all that it lies in, so far as they exist."""
    real = Path(os.path.realpath(folder))
    return frozenset(found for found in map(_identity, (real, *real.parents)) if found is not None)
