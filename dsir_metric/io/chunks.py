"""What of a Zarr array is stored: its files are counted, rather than the chunks that its metadata claim."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsir_metric.errors import DataError

__all__ = ["check_stored", "missing_chunks", "read_metadata"]

_MOST_METADATA = 1 << 24  # bytes of one file of metadata; those of real stores have some thousands


def read_metadata(path: Path, name: str) -> Any:
    """The content of a file of metadata, JSON in UTF-8.

    Raises
    ------
    DataError
        If it is no regular file, or a large one; `name` begins the message.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_METADATA:
        raise DataError(
            f"{name}: {path.name} must be a file of at most {_MOST_METADATA >> 20} MB; the store is damaged"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def check_stored(folder: Path, name: str) -> None:
    """See that an array is of files alone, and that none of its codecs runs what a chunk says.

    Raises
    ------
    DataError
        If there is a pipe or a device, which would block whoever opens it; or if chunks are pickled.
    """
    for path in _files(folder):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{name}: {path} is a pipe or a device; copy the store again")
    for mark in (".zarray", "zarr.json"):
        if (folder / mark).exists():
            said: Mapping[str, Any] = read_metadata(folder / mark, name)
            codecs = json.dumps([said.get(key) for key in ("codecs", "filters", "compressor")])
            if "pickle" in codecs:
                raise DataError(f"{name}: its chunks are pickled, and reading them could run any program; convert it")


def missing_chunks(array: Any) -> tuple[int, int]:
    """How many chunks of a Zarr array on disk are not stored, and how many there are; shards, where they are in such.

    `Array.nchunks_initialized` goes through all that the metadata claim, with a search through the files for each.
    """
    edges = array.shards or array.chunks
    grid = [-(-size // edge) for size, edge in zip(array.shape, edges, strict=True)]
    folder = Path(array.store.root) / array.path
    stored = sum(_is_chunk(path.relative_to(folder).as_posix(), grid, array) for path in _files(folder))
    return math.prod(grid) - stored, math.prod(grid)


def _is_chunk(key: str, grid: list[int], array: Any) -> bool:
    place = tuple(int(number) for number in re.findall(r"\d{1,18}", key))
    inside = len(place) == len(grid) and all(index < count for index, count in zip(place, grid, strict=True))
    return inside and bool(array.metadata.encode_chunk_key(place) == key)


def _files(folder: Path) -> Iterator[Path]:
    """All that is in a folder but folders; links that lead nowhere are not there."""
    for root, _, names in os.walk(folder):
        yield from (path for name in names if (path := Path(root, name)).exists())
