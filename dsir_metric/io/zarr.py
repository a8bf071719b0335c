"""Read OME-Zarr images, by level, channel, time point and slice.

A path names a store (`scan.ome.zarr`: its first and finest level) or the folder of a level in it (`scan.ome.zarr/2`),
and after `#` a channel or time point where there are several: `scan.ome.zarr#channel=1`, or with a level
`scan.ome.zarr/2#channel=1,time=0`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import DataError, DsirError, GeometryError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.io.chunks import check_stored, missing_chunks, read_metadata
from dsir_metric.io.compressed import check_compressed
from dsir_metric.io.ngff import Metadata, parse
from dsir_metric.packages import Package

__all__ = ["MARKS", "NUMBERS", "ZARR", "Slices", "ZarrImage", "is_zarr", "open_zarr", "read_zarr", "store_of"]

Slices = tuple[slice, slice, slice]

ZARR = Package("zarr", "zarr", "3.0.8")
MARKS = ("zarr.json", ".zgroup", ".zarray")  # files of which one is in every group and array
NUMBERS = "iuf"  # kinds of NumPy data types
_SPACE = ("x", "y", "z")
_SELECTABLE = {"c": "channel", "t": "time"}
_PLURAL = {"c": "channels", "t": "time points"}
_ADDRESS = re.compile(r"[a-z][a-z0-9+]+:/")
_CHOICE = re.compile(r"(channel|time)=(\d+)")
_DEEPEST = 3  # folders from an array up to the group that describes it
_MOST_SPARSE = 1000  # chunks that are missing for one that is there; a scan has more than that of its background


def is_zarr(path: str | Path) -> bool:
    """Whether a path names a Zarr store, or something in one, by its ending or by what is there."""
    path = Path(path)
    try:
        if path.is_file():
            return False
        folder, _ = _split(path)
        marked = any((folder / m).exists() for m in MARKS)
    except OSError:  # such as a name that is too long
        return False
    return marked or any(part.lower().endswith(".zarr") for part in folder.parts)


def store_of(path: str | Path) -> Path:
    """The folder that ends in .zarr on the way to what `path` names, or else that folder itself."""
    folder, _ = _split(Path(path))
    return next((p for p in (folder, *folder.parents) if p.name.lower().endswith(".zarr")), folder)


@dataclass(frozen=True, eq=False)
class ZarrImage:
    """One level of an OME-Zarr image, of which nothing but the metadata was read yet.

    `image[z, y, x]`, three slices, reads a block (z, y, x, channels) in native byte order; z is 1 for a plane.

    Parameters
    ----------
    name : str
        As the user wrote it, for messages.
    grid : Grid
        Where the voxels lie, LPS mm.
    channels : int
        Of each voxel that is read.
    array : zarr.Array
    axes : tuple of str
        Of the array.
    fixed : mapping
        The index along each axis that is not read.
    """

    name: str
    grid: Grid
    channels: int
    array: Any
    axes: tuple[str, ...]
    fixed: Mapping[str, int]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is read: that of the array, uint8 for truth values and float32 for half precision."""
        stored = np.dtype(self.array.dtype)
        if stored.kind == "b":
            return np.dtype(np.uint8)
        return np.dtype(np.float32) if stored.char == "e" else stored.newbyteorder("=")

    def __getitem__(self, where: Slices) -> NDArray[Any]:
        slices: dict[str, slice] = dict(zip("zyx", where, strict=True))
        index = tuple(self.fixed.get(a, slices.get(a, slice(None))) for a in self.axes)
        with _damages(self.name):
            check_compressed(self.array, index, self.name)
            block = np.asarray(self.array[index])
        left = [a for a in self.axes if a not in self.fixed]
        for axis in "zc":
            if axis not in left:
                block, left = block[..., None], [*left, axis]
        return np.ascontiguousarray(block.transpose([left.index(a) for a in "zyxc"]), self.dtype)

    def image(self) -> sitk.Image:
        """All of it as a `sitk.Image`, 3-D or 2-D, of one or several components."""
        values = self[:, :, :]
        vector = self.channels > 1
        return self.grid.stamp(sitk.GetImageFromArray(values if vector else values[..., 0], isVector=vector))


def open_zarr(path: str | Path, *, scalar: bool = False) -> ZarrImage:
    """Open an image in a Zarr store, looking at its metadata only.

    Parameters
    ----------
    path : str or Path
        See the top of this module.
    scalar : bool
        Refuse several channels.

    Warns
    -----
    RuntimeWarning
        If units, orientation or chunks are missing, with what is taken instead.

    Raises
    ------
    MissingDependencyError
        If zarr is not installed.
    DataError
        If there is nothing, no OME-Zarr image of version 0.4 or 0.5, a damaged one, or another level, channel or time
        point than was asked for.
    ShapeError
        If there are several time points, or several channels with `scalar`, and none was chosen.
    GeometryError
        If its voxels lie nowhere.
    """
    if _ADDRESS.match(str(path)):
        raise DataError(f"{path}: is an address; images are read from disk: download the store first")
    ZARR.check()
    folder, choice = _split(Path(path))
    if not store_of(folder).is_dir():
        raise DataError(f"{path}: there is no such store")
    with _damages(str(path)):
        level = _find(folder, str(path))
        grid = level.grid(str(path))
        fixed = _chosen(level, folder, choice, scalar)
        if np.dtype(level.array.dtype).kind not in NUMBERS + "b":
            raise ShapeError(f"{path}: has voxels of type {level.array.dtype}; real numbers are expected")
        _check_chunks(level, str(path))
    axes = level.metadata.axes
    channels = level.shape[axes.index("c")] if "c" in axes and "c" not in fixed else 1
    return ZarrImage(str(path), grid, channels, level.array, axes, fixed)


def read_zarr(path: str | Path, *, scalar: bool = False) -> sitk.Image:
    """Read an image from a Zarr store: 3-D or 2-D, the channels as components.

    Parameters, warnings and errors are those of `open_zarr`.
    """
    return open_zarr(path, scalar=scalar).image()


@dataclass(frozen=True, eq=False)
class _Level:
    """Array of a level, what its group says, and its path in the group."""

    array: Any
    metadata: Metadata
    path: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.array.shape)

    def grid(self, name: str) -> Grid:
        try:
            return self.metadata.grid(self.path, self.shape)
        except (GeometryError, ShapeError) as error:
            raise type(error)(f"{name}: {error}") from error


def _find(folder: Path, name: str) -> _Level:
    """The level in `folder`, or the finest one of the image there."""
    import zarr

    for root in (folder, *folder.parents[:_DEEPEST]):
        said = _attributes(root, name)
        if _is_image(said):
            metadata = parse(said, name)
            level = next(iter(metadata.levels)) if root == folder else folder.relative_to(root).as_posix()
            if level not in metadata.levels:
                raise DataError(f"{name}: there is no such level; {root} has {', '.join(metadata.levels)}")
            check_stored(root / level, name)
            return _Level(zarr.open_array(root / level, mode="r"), metadata, level)
    if not folder.is_dir():
        raise DataError(f"{name}: there is no such image in {store_of(folder)}")
    inner = sorted(p.name for p in folder.iterdir() if p.is_dir() and _is_image(_attributes(p, name)))
    hint = f"it has the images {', '.join(inner)}: give one, as {folder / inner[0]}" if inner else "give one that is"
    raise DataError(f"{name}: is no OME-Zarr image, which has `multiscales` among its attributes; {hint}")


def _attributes(folder: Path, name: str) -> dict[str, Any]:
    """Attributes of a group or array of Zarr format 3 or 2, empty where there are none."""
    for mark, key in (("zarr.json", "attributes"), (".zattrs", None)):
        if (folder / mark).is_file():
            content = read_metadata(folder / mark, name)
            return dict(content.get(key, {}) if key else content)
    return {}


def _is_image(said: Mapping[str, Any]) -> bool:
    return "multiscales" in said.get("ome", said)


def _chosen(level: _Level, folder: Path, choice: str, scalar: bool) -> dict[str, int]:
    """The index along each axis of the array that is not read."""
    asked = _asked(folder, choice)
    fixed = {}
    for axis, size in zip(level.metadata.axes, level.shape, strict=True):
        if axis in _SPACE:
            continue
        kind = _SELECTABLE.get(axis, "")
        number = asked.pop(kind, 0 if size == 1 else None)
        if number is None and axis == "c" and not scalar:
            continue
        if number is None:
            raise ShapeError(f"{folder}: {_several(level, axis, size)}{_hint(folder, kind, choice)}")
        if number >= size:
            raise DataError(f"{folder}: {kind}={number} was asked for; there are {size}, the first is {kind}=0")
        fixed[axis] = number
    if asked:
        raise DataError(f"{folder}: has no axis of {' and '.join(asked)}; leave out #{choice}")
    return fixed


def _asked(folder: Path, choice: str) -> dict[str, int]:
    found = [_CHOICE.fullmatch(part) for part in choice.split(",")] if choice else []
    if not all(found):
        raise DataError(f"{folder}: #{choice} is not understood; write #channel=0, #time=0 or #channel=0,time=0")
    return {part[1]: int(part[2]) for part in found if part}


def _several(level: _Level, axis: str, size: int) -> str:
    names = [name for name in level.metadata.channel_names if name] if axis == "c" else []
    told = f" ({', '.join(names)})" if names else ""
    return f"has {size} {_PLURAL.get(axis, f'images along the axis {axis}')}{told}, one is expected; "


def _hint(folder: Path, kind: str, choice: str) -> str:
    if not kind:
        return "write it to a store of its own"
    return f"choose it, as with {folder}#{f'{choice},' if choice else ''}{kind}=0"


def _check_chunks(level: _Level, name: str) -> None:
    """Zarr takes a chunk that is missing for background: right if it was never written, wrong if it was lost."""
    missing, count = missing_chunks(level.array)
    if missing and (level.metadata.ours or missing > _MOST_SPARSE * (count - missing)):
        raise DataError(f"{name}: {missing} of {count} chunks are missing; copy the store again")
    if missing:
        warnings.warn(
            f"{name}: {missing} of {count} chunks are missing and read as {level.array.fill_value}; right if that is "
            "the background, else copy the store again",
            RuntimeWarning,
            stacklevel=2,
        )


def _split(path: Path) -> tuple[Path, str]:
    """Folder, and what follows the last #."""
    if "#" not in path.name or path.exists():
        return path, ""
    name, _, choice = path.name.rpartition("#")
    return path.with_name(name) if name else path.parent, choice  # scan.ome.zarr/#channel=1


@contextmanager
def _damages(name: str) -> Iterator[None]:
    """Whatever goes wrong in a store that is not as it should be, as one line."""
    try:
        yield
    except (DsirError, MemoryError, Warning):
        raise
    except Exception as error:
        lines = str(error).splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise DataError(f"{name}: is truncated or damaged ({reason}); copy the store again") from error
