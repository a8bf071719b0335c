"""GIPL (.gipl, .gipl.gz): ITK takes half a file without a word."""

from __future__ import annotations

import struct
from pathlib import Path

from dsir_metric.errors import DataError
from dsir_metric.io.header import Header, check_sizes, read_start

__all__ = ["ENDINGS", "inspect"]

ENDINGS = (".gipl", ".gipl.gz")

_LENGTH = 256  # bytes of the header, big-endian
_MAGIC = (0xEFFFE9B0, 0x2AE389B8)  # at its end, of the two versions
_VOXEL_BYTES = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}


def inspect(path: Path) -> Header:
    """What a GIPL image promises.

    Raises
    ------
    DataError
        If it is none, or its header is cut short or damaged.
    """
    name = str(path)
    header, zipped = read_start(path, _LENGTH, name)
    if len(header) < _LENGTH or struct.unpack_from(">I", header, 252)[0] not in _MAGIC:
        raise DataError(f"{name}: is truncated in its header, or no image that ITK reads as GIPL; give another")
    *sizes, kind = struct.unpack_from(">4HH", header)
    if kind not in _VOXEL_BYTES:
        raise DataError(f"{name}: the data type must be one of GIPL's, got {kind}; the header is damaged")
    size_bytes = check_sizes((*sizes[:3], sizes[3] or 1), name) * _VOXEL_BYTES[kind]
    alias = {"scan.gipl" + (".gz" if zipped else ""): path}
    if zipped:
        return Header("GiplImageIO", alias, path, 0, "gzip", size_bytes, skipped=_LENGTH)
    return Header("GiplImageIO", alias, path, _LENGTH, "raw", size_bytes)
