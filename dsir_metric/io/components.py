"""Images of many components that are larger than memory: written to their file box by box, in place at the end."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import DataError
from dsir_metric.geometry import Grid
from dsir_metric.io.atomic import atomic
from dsir_metric.io.zarr_write import open_components_zarr

__all__ = ["STREAMED", "Boxes", "FileArray", "open_components", "reserve"]

_ALIGNMENT = 64  # bytes; so that what maps the file into memory finds its numbers aligned


class Boxes(Protocol):
    """What can be written box by box: an array, or a file that is one."""

    def __setitem__(self, box: tuple[slice, slice, slice], values: NDArray[np.float32], /) -> None:
        """Write `values` (z, y, x, channels) where `box` (slices z, y, x) is."""
        ...


class FileArray:
    """An array of little-endian float32 in a file, read and written box by box; none of it stays in memory.

    Parameters
    ----------
    file : binary file
        Open for what is done with it.
    shape : tuple of int
        The last axis is the fastest.
    offset : int
        Bytes before the first number.
    """

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], offset: int = 0) -> None:
        self._file, self._shape, self._offset = file, shape, offset

    def __setitem__(self, box: tuple[slice, ...], values: NDArray[np.float32]) -> None:
        """Write `values` into `box`: a slice, of step 1, for each of the first axes; the others are whole."""
        shape, positions = self._rows(box)
        axes = next(k for k in range(len(shape) + 1) if math.prod(shape[:k]) == len(positions))
        for position, index in zip(positions, np.ndindex(*shape[:axes]), strict=True):
            row = np.ascontiguousarray(values[index], "<f4")  # of `values` as a whole there is no copy
            self._file.seek(position)
            if self._file.write(row.data) < row.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getitem__(self, box: tuple[slice, ...]) -> NDArray[np.float32]:
        """What is in `box`, see `__setitem__`."""
        shape, positions = self._rows(box)
        rows = np.empty((len(positions), math.prod(shape) // len(positions)), "<f4")
        for position, row in zip(positions, rows, strict=True):
            self._file.seek(position)
            self._file.readinto(row.data)  # type: ignore[attr-defined]
        return rows.reshape(shape)

    def _rows(self, box: tuple[slice, ...]) -> tuple[tuple[int, ...], list[int]]:
        """Shape of a box, and the byte at which each of its pieces that lie together in the file begins."""
        whole = (slice(None),) * (len(self._shape) - len(box))
        spans = [range(*part.indices(n)) for part, n in zip((*box, *whole), self._shape, strict=True)]
        cut = [k for k, (span, n) in enumerate(zip(spans, self._shape, strict=True)) if len(span) < n]
        positions = np.array([self._offset])
        for k, span in enumerate(spans[: max(cut, default=0) + 1]):
            stride = 4 * math.prod(self._shape[k + 1 :])
            starts = np.array(span if k < max(cut, default=0) else span[:1])
            positions = (positions[:, None] + stride * starts).ravel()
        return tuple(map(len, spans)), positions.tolist()


def open_components(
    path: str | Path, grid: Grid, channels: int, provenance: Mapping[str, object] | None = None
) -> AbstractContextManager[Boxes]:
    """A new image file with `channels` float32 components a voxel, to be written box by box.

    Parameters
    ----------
    path : str or Path
        Its ending, one of `STREAMED`, is the format. ".mha" is an uncompressed MetaImage: behind its header lies an
        array (z, y, x, channels), which `numpy.memmap` opens as it is. ".zarr" is a store, see `open_components_zarr`.
    grid : Grid
        Of the image, LPS mm.
    channels : int
    provenance : mapping, optional
        What made the values; a store keeps it, a MetaImage has no place for it.

    Yields
    ------
    Boxes
        Takes `out[z, y, x] = values`, slices of step 1 and values (z, y, x, channels), z being 0:1 for a 2-D grid.
        The file appears when the block ends well; when it does not, nothing is left.

    Raises
    ------
    DataError
        If the ending is no such format, the disk has no room for it, or writing fails.
    """
    opener = STREAMED.get(Path(path).suffix)
    if opener is None:
        raise DataError(f"{path}: cannot be written piece by piece; use one of {', '.join(STREAMED)}")
    return opener(Path(path), grid, channels, provenance)


def reserve(file: BinaryIO, size: int, folder: Path, what: str) -> None:
    """Make a new file in `folder` as long as it will be, so that the disk cannot be full later, where the system can.

    Raises
    ------
    DataError
        If the disk has no room; `what` begins the message.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DataError(
            f"{what}: needs {size / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free in {folder}; free some, or "
            "choose another folder"
        )
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def _open_mha(path: Path, grid: Grid, channels: int, _: Mapping[str, object] | None) -> Iterator[Boxes]:
    header = _mha_header(grid, channels)
    shape = (*grid.shape, channels)
    with atomic(path) as temporary, temporary.open("wb") as file:
        reserve(file, len(header) + 4 * math.prod(shape), path.parent, str(path))
        file.write(header)
        yield FileArray(file, shape, len(header))


def _mha_header(grid: Grid, channels: int) -> bytes:
    """Header of an uncompressed MetaImage; its matrix has the direction of an index axis in each row."""
    axes = grid.dimension
    direction = np.reshape(grid.direction, (3, 3))[:axes, :axes].T
    lines = {
        "ObjectType": "Image",
        "NDims": str(axes),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _numbers(direction.ravel().tolist()),
        "Offset": _numbers(grid.origin_mm[:axes]),
        "ElementSpacing": _numbers(grid.spacing_mm[:axes]),
        "DimSize": " ".join(map(str, grid.size[:axes])),
        "ElementNumberOfChannels": str(channels),
        "ElementType": "MET_FLOAT",
    }
    head = "".join(f"{name} = {value}\n" for name, value in lines.items())
    comment, end = "Comment = ", "\nElementDataFile = LOCAL\n"
    short = -(len(head) + len(comment) + len(end) + 1) % _ALIGNMENT
    return (head + comment + "." * (short + 1) + end).encode("ascii")


def _numbers(values: tuple[float, ...] | list[float]) -> str:
    return " ".join(repr(float(value)) for value in values)


def _open_zarr(
    path: Path, grid: Grid, channels: int, provenance: Mapping[str, object] | None
) -> AbstractContextManager[Boxes]:
    return open_components_zarr(path, grid, channels, provenance=provenance)


_Opener = Callable[[Path, Grid, int, Mapping[str, object] | None], AbstractContextManager[Boxes]]
STREAMED: dict[str, _Opener] = {".mha": _open_mha, ".zarr": _open_zarr}
