"""Look at a NIfTI file before ITK does: ITK reads half a file, or a spacing of zero, without a word."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from dsir_metric.errors import DataError, GeometryError

__all__ = ["check_nifti"]

_CHUNK = 1 << 22


class _Layout(NamedTuple):
    """Formats and offsets of the header fields that matter."""

    dim: tuple[str, int]
    bitpix: tuple[str, int]
    pixdim: tuple[str, int]
    vox_offset: tuple[str, int]


_LAYOUTS = {  # by the length of the header: NIfTI-1, NIfTI-2
    348: _Layout(("8h", 40), ("h", 72), ("8f", 76), ("f", 108)),
    540: _Layout(("8q", 16), ("h", 14), ("8d", 104), ("q", 168)),
}


def check_nifti(path: Path) -> None:
    """Raise if a single-file NIfTI (.nii, .nii.gz) is cut short or has a spacing of zero.

    Raises
    ------
    DataError
        If the file is shorter than its header promises, or its compression is broken.
    GeometryError
        If a spacing of the first three axes is zero or not finite.
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


def _check(stream: BinaryIO, path: Path) -> None:
    header = stream.read(540)
    found = next((order for order in "<>" if _size(header, order) in _LAYOUTS), None)
    if found is None:
        raise DataError(f"{path}: is no NIfTI image, whatever its name says; give an image that ITK reads")
    layout = _LAYOUTS[_size(header, found)]
    try:
        dim, (bitpix,), pixdim, (offset,) = (struct.unpack_from(found + f, header, at) for f, at in layout)
    except struct.error as error:
        raise DataError(f"{path}: is truncated in its header; copy the file again") from error
    spacing = pixdim[1 : 1 + min(dim[0], 3)]
    if not all(math.isfinite(s) and s != 0 for s in spacing):
        raise GeometryError(f"{path}: the spacing {spacing} has a zero or is not finite; mend the header")
    promised = int(offset) + math.prod(max(n, 1) for n in dim[1 : 1 + dim[0]]) * bitpix // 8
    length = len(header)
    while chunk := stream.read(_CHUNK):
        length += len(chunk)
    if length < promised:
        raise DataError(f"{path}: is truncated: {promised} bytes are promised, {length} came; copy the file again")


def _size(header: bytes, order: str) -> int:
    return int(struct.unpack(order + "i", header[:4])[0]) if len(header) >= 348 else 0
