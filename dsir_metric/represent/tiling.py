"""A volume in tiles that give the same bits as the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "Shape", "Tile", "choose_core", "core_of", "cropped", "tiles"]

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Tile:
    """One piece of a volume; every box is three slices in z, y, x.

    Parameters
    ----------
    source : tuple of slice
        What the network reads: the core and its halo, cut at the volume's border.
    core : tuple of slice
        What the network is believed about. The cores of all tiles cover the volume once.
    inner : tuple of slice
        Where the core lies within `source`.
    """

    source: Box
    core: Box
    inner: Box

    @property
    def voxels(self) -> int:
        """Of `source`."""
        return prod(part.stop - part.start for part in self.source)

    def padded(self, multiple: int) -> int:
        """Voxels of `source` once the network has padded every edge to a multiple of `multiple`."""
        return prod(_ceil(part.stop - part.start, multiple) for part in self.source)


def tiles(shape: Shape, core: Shape, halo: int) -> Iterator[Tile]:
    """Tiles of a volume.

    Parameters
    ----------
    shape, core : tuple of int
        Size z, y, x of the volume and of a tile's core.
    halo : int
        Margin around the core. Tiles start at multiples of what divides both `halo` and `core`.
    """
    for start in product(*(range(0, n, c) for n, c in zip(shape, core, strict=True))):
        axes = [_along(s, n, c, halo) for s, n, c in zip(start, shape, core, strict=True)]
        yield Tile(*((z, y, x) for z, y, x in zip(*axes, strict=True)))


def cropped(pieces: Iterable[Tile], crop: Box) -> Iterator[Tile]:
    """What tiles of a volume have of a box in it; cores are then counted from the box's first voxel."""
    for tile in pieces:
        parts = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(tile.core, crop, strict=True)]
        if all(part.start < part.stop for part in parts):
            z, y, x = (_moved(part, -box.start) for part, box in zip(parts, crop, strict=True))
            inner = (_moved(part, -source.start) for part, source in zip(parts, tile.source, strict=True))
            yield Tile(tile.source, (z, y, x), (next(inner), next(inner), next(inner)))


def core_of(
    shape: Shape,
    edge: int | None,
    halo: int,
    multiple: int,
    most_voxels: int,
    least: int = 1,
    *,
    padded: bool = False,
) -> Shape:
    """Core of the tiles of a volume: a cube of `edge` voxels, or more for a `multiple`; or what `choose_core` takes."""
    if edge is None:
        return choose_core(shape, halo, multiple, most_voxels, least, padded=padded)
    return (_ceil(edge, multiple),) * 3


def choose_core(
    shape: Shape, halo: int, multiple: int, most_voxels: int, least: int = 1, *, padded: bool = False
) -> Shape:
    """The core that leaves the fewest voxels to be read, halos and all, by tiles of no more than `most_voxels` voxels.

    Its edges are multiples of `multiple`, and not much below `least`, whatever `most_voxels` says. With `padded`, the
    voxels of a tile include those that pad its edges to multiples of `multiple`.
    """
    pad = multiple if padded else 1
    cores, largest, read = zip(*(_cuts(n, halo, multiple, least, pad) for n in shape), strict=True)
    fits = _outer(largest) <= most_voxels
    if not fits.any():
        return (cores[0][-1], cores[1][-1], cores[2][-1])
    z, y, x = np.unravel_index(np.argmin(np.where(fits, _outer(read), np.inf)), fits.shape)
    return (cores[0][z], cores[1][y], cores[2][x])


def _cuts(size: int, halo: int, multiple: int, least: int, pad: int) -> tuple[list[int], list[int], list[int]]:
    """Cores along one axis, the longest first; the longest source that each has, and all its sources together.

    Sources are rounded up to multiples of `pad`.
    """
    pieces = range(1, -(-size // max(least, multiple)) + 1)
    cores = sorted({_ceil(-(-size // p), multiple) for p in pieces}, reverse=True)
    lengths = [_source_lengths(size, core, halo, pad) for core in cores]
    return cores, [int(cut.max()) for cut in lengths], [int(cut.sum()) for cut in lengths]


def _source_lengths(size: int, core: int, halo: int, pad: int) -> NDArray[np.int64]:
    """Length of every source along one axis, rounded up to multiples of `pad`."""
    start = np.arange(0, size, core, dtype=np.int64)
    lengths = np.minimum(start + core + halo, size) - np.maximum(start - halo, 0)
    rounded: NDArray[np.int64] = -(-lengths // pad) * pad
    return rounded


def _outer(along: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Products of one number of each of three axes, (z, y, x)."""
    z, y, x = (np.asarray(numbers, float) for numbers in along)
    products: NDArray[np.float64] = z[:, None, None] * y[:, None] * x
    return products


def _along(start: int, size: int, core: int, halo: int) -> tuple[slice, slice, slice]:
    """Source, core and inner slice of one axis."""
    stop = min(start + core, size)
    low, high = max(start - halo, 0), min(stop + halo, size)
    return slice(low, high), slice(start, stop), slice(start - low, stop - low)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
