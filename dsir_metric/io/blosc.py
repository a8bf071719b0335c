"""Chunks that Blosc compressed: it reads on where one is cut off, but each says at its beginning how long it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from dsir_metric.errors import DataError

__all__ = ["check_blosc"]

_HEAD = 16  # bytes that a chunk begins with; the last four are its length, little-endian


def check_blosc(array: Any, index: Sequence[int | slice], name: str) -> None:
    """See that the chunks of a block that is about to be read are whole, where Blosc would not see it.

    Parameters
    ----------
    array : zarr.Array
        On disk. Of shards there is nothing to see: their index, with a checksum, is at their end.
    index : sequence of int or slice
        Of the block, along each axis.
    name : str
        Begins the message.

    Raises
    ------
    DataError
        At a chunk that is cut off.
    """
    outermost = array.compressors[-1:]
    if array.shards is not None or not any("blosc" in type(codec).__name__.lower() for codec in outermost):
        return
    for path in _chunks(array, index):
        if not path.is_file():  # background
            continue
        with path.open("rb") as file:
            head = file.read(_HEAD)
        size, said = path.stat().st_size, int.from_bytes(head[12:], "little")
        if len(head) < _HEAD or size < said:
            raise DataError(f"{name}: {path} is truncated ({size} bytes are there); copy the store again")


def _chunks(array: Any, index: Sequence[int | slice]) -> Iterator[Path]:
    """Files of the chunks that a block touches."""
    folder = Path(array.store.root) / array.path
    along = []
    for where, size, edge in zip(index, array.shape, array.chunks, strict=True):
        voxels = range(size)[where] if isinstance(where, slice) else (where,)
        along.append(sorted({voxel // edge for voxel in voxels}))
    return (folder / array.metadata.encode_chunk_key(place) for place in product(*along))
