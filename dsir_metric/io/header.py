"""What the header of an image file promises, held against the file before ITK allocates anything."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import DataError, ShapeError

__all__ = ["Header", "check_sizes", "read_start", "reading"]

_CHUNK = 1 << 22  # bytes read at a time
_DEFLATE = 1032  # the most bytes that one byte of deflate can become; https://zlib.net/zlib_tech.html
_GZIP = b"\x1f\x8b"  # how gzip begins
_GZIP_HEADER, _ANY_HEADER = 31, 47  # wbits of zlib: a window of 2^15, the header of gzip, or of zlib or gzip
_MOST_AXES = 5  # SimpleITK's images have up to five


@dataclass(frozen=True, eq=False)
class Header:
    """The promise of a header.

    Parameters
    ----------
    image_io : str
        The reader of ITK for this format.
    files : mapping
        The files of the image by the names under which ITK finds them; the one to open comes first.
    data : Path
        The file with the voxels.
    offset : int
        Byte of the file at which the voxels, or the compressed stream, begin.
    coding : {"raw", "gzip", "zlib"}
    size_bytes : int
        Length of the voxels, uncompressed.
    skipped : int
        Bytes before the voxels once they are uncompressed.
    floats : str, optional
        NumPy data type of voxels that the reader would make finite without a word.
    axes : ndarray (3, 3), optional
        Columns are the index axes in LPS, where the reader refuses those that are not orthogonal.
    intent : str
        What the file calls its meaning, where it does.
    """

    image_io: str
    files: Mapping[str, Path]
    data: Path
    offset: int
    coding: Literal["raw", "gzip", "zlib"]
    size_bytes: int
    skipped: int = 0
    floats: str | None = None
    axes: NDArray[np.float64] | None = None
    intent: str = ""

    def check_length(self, name: str) -> None:
        """See that the file can hold what is promised, by its length alone.

        Raises
        ------
        DataError
            If it is too short; `name` begins the message.
        """
        length = self.data.stat().st_size
        most = length - self.offset if self.coding == "raw" else length * _DEFLATE
        if most < self.size_bytes:
            raise _truncated(name, self.size_bytes, max(most, 0) if self.coding == "raw" else None)

    def check_data(self, name: str) -> None:
        """See that all voxels are in the file, unzipping it on the way; and that those of `floats` are finite.

        Raises
        ------
        DataError
            If the file is cut short, its compression is damaged, or voxels are NaN or infinite.
        """
        self.check_length(name)
        if self.coding == "raw" and self.floats is None:
            return
        with reading(name), self.data.open("rb") as file:
            came, broken = self._scan(file)
        if came < self.size_bytes:
            raise _truncated(name, self.size_bytes, came)
        if broken:
            raise DataError(f"{name}: {broken} voxels are NaN or infinite; replace them, by 0 or air, before")

    def _scan(self, file: BinaryIO) -> tuple[int, int]:
        """How many bytes of voxels there are, and how many voxels among them are not finite."""
        came, broken, rest = 0, 0, b""
        for chunk in self._voxels(file):
            came += len(chunk)
            if self.floats:
                chunk = rest + chunk
                whole = len(chunk) - len(chunk) % np.dtype(self.floats).itemsize
                broken += int((~np.isfinite(np.frombuffer(chunk[:whole], self.floats))).sum())
                rest = chunk[whole:]
        return came, broken

    def _voxels(self, file: BinaryIO) -> Iterator[bytes]:
        file.seek(self.offset)
        begin, end = self.skipped, self.skipped + self.size_bytes
        for chunk in {"raw": _plain, "gzip": _gunzipped, "zlib": _inflated}[self.coding](file):
            yield chunk[max(begin, 0) : max(end, 0)]
            begin, end = begin - len(chunk), end - len(chunk)
            if end <= 0:
                break


def read_start(path: Path, length: int, name: str) -> tuple[bytes, bool]:
    """The first bytes of a file, unzipped where it begins as gzip does, and whether it does.

    Raises
    ------
    DataError
        If it cannot be read; `name` begins the message.
    """
    with reading(name), path.open("rb") as file:
        zipped = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        return (gzip.GzipFile(fileobj=file) if zipped else file).read(length), zipped


def check_sizes(sizes: tuple[int, ...], name: str) -> int:
    """The number of voxels of an image of these sizes.

    Raises
    ------
    DataError
        If a size is not positive.
    ShapeError
        If there are more axes than any reader takes.
    """
    if not sizes or min(sizes) < 1:
        raise DataError(f"{name}: the sizes of its axes must be positive, got {sizes}; the header is damaged")
    if sum(n > 1 for n in sizes) > _MOST_AXES:
        raise ShapeError(f"{name}: has {len(sizes)} axes {sizes}; a scalar 3-D image is expected")
    return math.prod(sizes)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into one line that begins with `name`."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name}: is truncated or damaged ({error}); copy the file again") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from error


def _plain(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(_CHUNK), b"")


def _gunzipped(file: BinaryIO) -> Iterator[bytes]:
    """What the members of a gzip file hold, one after another; what is no member ends it, as for gunzip."""
    unzip = zlib.decompressobj(_GZIP_HEADER)
    while piece := unzip.unconsumed_tail or unzip.unused_data or file.read(_CHUNK):
        if unzip.eof:
            piece = piece if len(piece) >= len(_GZIP) else piece + file.read(_CHUNK)
            if not piece.startswith(_GZIP):
                return
            unzip = zlib.decompressobj(_GZIP_HEADER)
        yield unzip.decompress(piece, _CHUNK)


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    unzip = zlib.decompressobj(_ANY_HEADER)
    while not unzip.eof and (piece := unzip.unconsumed_tail or file.read(_CHUNK)):
        yield unzip.decompress(piece, _CHUNK)


def _truncated(name: str, promised: int, came: int | None) -> DataError:
    told = "which the file cannot hold" if came is None else f"{came} came"
    return DataError(f"{name}: is truncated: {promised} bytes of voxels are promised, {told}; copy it again")
