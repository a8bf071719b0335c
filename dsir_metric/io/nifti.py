"""Look at a NIfTI file before ITK does, which takes half a file, a spacing of zero and NaN voxels without a word."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

import numpy as np

from dsir_metric.errors import DataError, GeometryError

__all__ = ["check_nifti", "is_whole"]

_CHUNK = 1 << 22
_MOST_HEADER = 1 << 12  # bytes; extensions of a header are not written here
_FLOATS = {16: "f4", 64: "f8"}  # the data types that can hold NaN


class _Layout(NamedTuple):
    """Formats and offsets of the header fields that matter."""

    dim: tuple[str, int]
    datatype: tuple[str, int]
    bitpix: tuple[str, int]
    pixdim: tuple[str, int]
    vox_offset: tuple[str, int]


_ORDERS: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
_LAYOUTS = {  # by the length of the header: NIfTI-1, NIfTI-2
    348: _Layout(("8h", 40), ("h", 70), ("h", 72), ("8f", 76), ("f", 108)),
    540: _Layout(("8q", 16), ("h", 12), ("h", 14), ("8d", 104), ("q", 168)),
}


def check_nifti(path: Path) -> None:
    """Raise if a single-file NIfTI (.nii, .nii.gz) is cut short, has a spacing of zero, or holds NaN.

    Raises
    ------
    DataError
        If the file is shorter than its header promises, its compression is broken, or voxels are NaN or infinite.
    GeometryError
        If a spacing of the first three axes is zero or not finite.

    References
    ----------
    https://nifti.nimh.nih.gov/nifti-1 and https://nifti.nimh.nih.gov/nifti-2, the two headers.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            _check(cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: is truncated or damaged ({error}); copy the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def is_whole(path: Path, voxel_bytes: int) -> bool:
    """Whether a single-file NIfTI that was written a moment ago has so many bytes of voxels, by its length.

    ITK's writer says nothing when the disk is full. A zipped file ends with its length, modulo 2^32, before it was
    zipped.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        length = file.seek(-4 if zipped else 0, os.SEEK_END)
        if zipped:
            length = int.from_bytes(file.read(4), "little")
    return (length - voxel_bytes) % 2**32 < _MOST_HEADER


def _check(stream: BinaryIO, path: Path) -> None:
    header = stream.read(4)
    lengths = {order: int.from_bytes(header, name) for order, name in _ORDERS.items()}
    order = next((o for o, length in lengths.items() if length in _LAYOUTS), None)
    if order is None:
        raise DataError(f"{path}: is no NIfTI image, whatever its name says; give an image that ITK reads")
    header += stream.read(lengths[order] - 4)
    if len(header) < lengths[order]:
        raise DataError(f"{path}: is truncated in its header; copy the file again")
    layout = _LAYOUTS[lengths[order]]
    dim, (datatype,), (bitpix,), pixdim, (offset,) = (struct.unpack_from(order + f, header, at) for f, at in layout)
    spacing = pixdim[1 : 1 + min(dim[0], 3)]
    if not all(math.isfinite(s) and s != 0 for s in spacing):
        raise GeometryError(f"{path}: the spacing {spacing} has a zero or is not finite; mend the header")
    promised = math.prod(max(n, 1) for n in dim[1 : 1 + dim[0]]) * bitpix // 8
    stream.read(max(int(offset) - len(header), 0))
    came, broken = _scan(stream, promised, order + _FLOATS[datatype] if datatype in _FLOATS else None)
    if came < promised:
        raise DataError(f"{path}: is truncated: {promised} bytes of voxels are promised, {came} came; copy it again")
    if broken:
        raise DataError(f"{path}: {broken} voxels are NaN or infinite; replace them, by 0 or air, before")


def _scan(stream: BinaryIO, length: int, floats: str | None) -> tuple[int, int]:
    """Bytes that came of `length`, and how many voxels among them are not finite."""
    came = broken = 0
    while chunk := stream.read(min(_CHUNK, length - came)):
        came += len(chunk)
        if floats and len(chunk) % int(floats[-1]) == 0:
            broken += int((~np.isfinite(np.frombuffer(chunk, floats))).sum())
    return came, broken
