"""Compressed chunks of a Zarr array, judged by how they begin before they are unpacked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from dsir_metric.errors import DataError

__all__ = ["check_compressed"]

_HEAD = 18  # bytes that tell: a Blosc header has 16, that of a Zstandard frame up to 18
_ZSTD = bytes.fromhex("28b52ffd")
_SLACK = 8, 1 << 16  # what filters may add to the bytes of a chunk: a factor, as from int8 to int64, and a header


def check_compressed(array: Any, index: Sequence[int | slice], name: str) -> None:
    """See that the chunks of a block that is about to be read are whole, and unpack to about the size of a chunk.

    Blosc reads on where a chunk is cut off. A chunk of some kB can hold GB of zeros.

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
        At a chunk that is cut off, or larger than what the metadata say.
    """
    if array.shards is not None:
        return
    outermost = "".join(type(codec).__name__.lower() for codec in array.compressors[-1:])
    most = _SLACK[0] * math.prod(array.chunks) * array.dtype.itemsize + _SLACK[1]
    for path in _chunks(array, index):
        if not path.is_file():  # background
            continue
        with path.open("rb") as file:
            head = file.read(_HEAD)
        size = path.stat().st_size
        if "blosc" in outermost and (len(head) < 16 or size < int.from_bytes(head[12:16], "little")):
            raise DataError(f"{name}: {path} is truncated ({size} bytes are there); copy the store again")
        unpacked = max(size, _unpacked(head, outermost))
        if unpacked > most:
            raise DataError(
                f"{name}: {path} holds {unpacked} bytes, far more than a chunk of this array has; copy the store again"
            )


def _unpacked(head: bytes, codec: str) -> int:
    """How many bytes a chunk says it holds; 0 where it does not.

    References
    ----------
    https://www.blosc.org/c-blosc2/format/chunk_format.html; RFC 8878, section 3.1.1.1, for Zstandard.
    """
    if "blosc" in codec:
        return int.from_bytes(head[4:8], "little")
    if not head.startswith(_ZSTD) or len(head) < 5:
        return 0
    kind, single, dictionary = head[4] >> 6, head[4] >> 5 & 1, (0, 1, 2, 4)[head[4] & 3]
    length = (single, 2, 4, 8)[kind]
    begin = 5 + (not single) + dictionary
    return int.from_bytes(head[begin : begin + length], "little") + (256 if kind == 1 else 0)


def _chunks(array: Any, index: Sequence[int | slice]) -> Iterator[Path]:
    """Files of the chunks that a block touches."""
    folder = Path(array.store.root) / array.path
    along = []
    for where, size, edge in zip(index, array.shape, array.chunks, strict=True):
        first, last = (where, where) if isinstance(where, int) else (where.indices(size)[0], where.indices(size)[1] - 1)
        along.append(range(first // edge, last // edge + 1))
    return (folder / array.metadata.encode_chunk_key(place) for place in product(*along))
