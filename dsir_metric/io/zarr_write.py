"""Write OME-Zarr images, whole or by slices, and so that a store appears complete or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import DTypeLike, NDArray

from dsir_metric.errors import DataError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.io.atomic import atomic
from dsir_metric.io.ngff import ATTRIBUTE, Version, attributes
from dsir_metric.io.zarr import MARKS, NUMBERS, ZARR, Slices

__all__ = ["ComponentsWriter", "open_components_zarr", "put_zarr", "write_zarr"]

_EDGE = 64  # voxels of a chunk along each axis: a megabyte of float32


def write_zarr(
    image: sitk.Image,
    path: str | Path,
    *,
    version: Version = "0.5",
    provenance: Mapping[str, object] | None = None,
) -> None:
    """Write a 3-D or 2-D image as an OME-Zarr store of one level, whole or not at all.

    Parameters
    ----------
    image : sitk.Image
        Of one or several components, which become channels.
    path : str or Path
        Ends in .zarr; a store there is replaced.
    version : {"0.4", "0.5"}
        Of OME-Zarr; 0.4 is Zarr format 2, 0.5 is 3.
    provenance : mapping, optional
        Kept in our attribute; fit for JSON.

    Warns
    -----
    RuntimeWarning
        If the direction is not the identity, which other programs will not see.

    Raises
    ------
    MissingDependencyError
        If zarr is not installed.
    DataError
        If the store cannot be written, or a folder that is no store is in its place.
    ShapeError
        If the image is neither 3-D nor 2-D, or complex.
    GeometryError
        If its direction is not orthonormal.
    """
    if sitk.GetArrayViewFromImage(image).dtype.kind not in NUMBERS:
        raise ShapeError(f"{path}: voxels of type {image.GetPixelIDTypeAsString()} came; real numbers are expected")
    ZARR.check()
    _check_place(Path(path))
    with atomic(path) as temporary:
        put_zarr(image, temporary, version, provenance)


def put_zarr(
    image: sitk.Image, folder: Path, version: Version = "0.5", provenance: Mapping[str, object] | None = None
) -> None:
    """Write an image of real numbers into an empty folder; see `write_zarr`, and `write_together`.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    grid, components = Grid.of(image), image.GetNumberOfComponentsPerPixel()
    values = sitk.GetArrayViewFromImage(image)
    channels = components if components > 1 else None
    with _array(folder, grid, channels, values.dtype, version, provenance) as array:
        array[...] = np.moveaxis(values, -1, 0) if components > 1 else values


class ComponentsWriter:
    """Takes the voxels of an image of several components, block by block; see `open_components_zarr`."""

    def __init__(self, array: Any, grid: Grid, channels: int) -> None:
        self._array, self._grid, self._channels = array, grid, channels

    def __setitem__(self, where: Slices, block: NDArray[Any]) -> None:
        spans = [s.indices(n) for s, n in zip(where, self._grid.shape, strict=True)]
        expected = (*(len(range(*span)) for span in spans), self._channels)
        if np.shape(block) != expected:
            raise ShapeError(f"a block of shape {expected} (z, y, x, channels) is expected; {np.shape(block)} came")
        plane = self._grid.dimension == 2
        channels_first = np.moveaxis(block[0] if plane else block, -1, 0)
        self._array[(slice(None), *where[plane:])] = channels_first
        self._array.store.check()


@contextmanager
def open_components_zarr(
    path: str | Path,
    grid: Grid,
    channels: int,
    dtype: DTypeLike = np.float32,
    *,
    version: Version = "0.5",
    provenance: Mapping[str, object] | None = None,
) -> Iterator[ComponentsWriter]:
    """Write an image of several components, such as a representation, by blocks that need not be those of the store.

    Parameters
    ----------
    path : str or Path
        Ends in .zarr; a store there is replaced when the block ends well, and left as it is when it does not.
    grid : Grid
    channels : int
    dtype : data type
    version, provenance
        See `write_zarr`.

    Yields
    ------
    ComponentsWriter
        `out[z, y, x] = block`: slices of step 1, and an array (z, y, x, channels), z being 1 on a plane. Every voxel
        should come, in any order, from one thread at a time.

    Raises
    ------
    DataError
        If the block ends well although a chunk has got no voxel.
    MissingDependencyError, DataError, ShapeError, GeometryError
        As `write_zarr`, which warns as this does, too.

    Notes
    -----
    The array is (c, z, y, x) in chunks of one channel and 64 voxels along each axis: a viewer reads one channel. A
    block is written at once; where it covers a chunk in part, that chunk is read and written again.

    Examples
    --------
    >>> with open_components_zarr("dsir.ome.zarr", grid, 24) as out:  # doctest: +SKIP
    ...     for z in range(0, grid.shape[0], 64):
    ...         out[z : z + 64, :, :] = slab(z)
    """
    ZARR.check()
    _check_place(Path(path))
    with (
        atomic(path) as temporary,
        _array(temporary, grid, channels, np.dtype(dtype), version, provenance) as array,
    ):
        yield ComponentsWriter(array, grid, channels)
        missing = array.nchunks - array.nchunks_initialized
        if missing:
            raise DataError(f"{path}: {missing} of {array.nchunks} chunks were not given; write every voxel")


@contextmanager
def _array(
    folder: Path,
    grid: Grid,
    channels: int | None,
    dtype: np.dtype[Any],
    version: Version,
    provenance: Mapping[str, object] | None,
) -> Iterator[Any]:
    """The array of a new store in an empty folder; when the block ends, nobody writes there any more."""
    import zarr

    from dsir_metric.io.zarr_store import ClosingStore

    if not np.allclose(grid.direction, np.eye(3).ravel(), atol=1e-6):
        warnings.warn(
            f"OME-Zarr has no direction cosines; they are kept in the attribute {ATTRIBUTE}, which other programs do "
            "not read: to them the image lies along the axes",
            RuntimeWarning,
            stacklevel=2,
        )
    shape = (*([channels] if channels else []), *grid.shape[3 - grid.dimension :])
    store = ClosingStore(folder)
    try:
        group = zarr.create_group(
            store,
            zarr_format=3 if version == "0.5" else 2,
            attributes=attributes(grid, channels is not None, version, provenance),
        )
        array = group.create_array(
            "0",
            shape=shape,
            dtype=dtype,
            chunks=(*([1] if channels else []), *(min(n, _EDGE) for n in shape[channels is not None :])),
            config={"write_empty_chunks": True},
            **_encoding(version, shape),
        )
        store.check()
        yield array
        store.check()
    finally:
        store.shut()


def _encoding(version: Version, shape: tuple[int, ...]) -> dict[str, Any]:
    """How chunks are stored: compressed, with a checksum (Blosc has none, and reads on where a chunk is cut off)."""
    if version == "0.4":
        from numcodecs import GZip

        return {"compressors": GZip(1), "chunk_key_encoding": {"name": "v2", "separator": "/"}}
    from zarr.codecs import ZstdCodec

    return {"compressors": ZstdCodec(level=1, checksum=True), "dimension_names": "czyx"[-len(shape) :]}


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise DataError(f"{path}: cannot be written ({path.parent} is no folder); make it first")
    if path.is_file():
        raise DataError(f"{path}: is a file; delete it first, or choose another name for the store")
    if path.is_dir() and any(path.iterdir()) and not any((path / mark).exists() for mark in MARKS):
        raise DataError(f"{path}: is a folder with other things in it; choose another name for the store")
