"""A volume in tiles that give the same bits as the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

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


def core_of(shape: Shape, edge: int | None, halo: int, multiple: int, most_voxels: int) -> Shape:
    """Core of the tiles of a volume: a cube of `edge` voxels, or more for a `multiple`; or what `choose_core` takes."""
    if edge is None:
        return choose_core(shape, halo, multiple, most_voxels)
    return (_ceil(edge, multiple),) * 3


def choose_core(shape: Shape, halo: int, multiple: int, most_voxels: int) -> Shape:
    """The fewest pieces whose tiles, halo and all, have no more than `most_voxels` voxels.

    The longest edge is cut first, so that tiles become cubes. A tile cannot be smaller than `multiple` and its halo,
    whatever `most_voxels` says.
    """
    pieces = [1, 1, 1]
    while True:
        core = [_ceil(-(-n // p), multiple) for n, p in zip(shape, pieces, strict=True)]
        voxels = 1
        for n, c in zip(shape, core, strict=True):
            voxels *= min(n, c + 2 * halo)
        longest = max(range(3), key=lambda axis: core[axis])
        if voxels <= most_voxels or core[longest] <= multiple:
            return (core[0], core[1], core[2])
        pieces[longest] += 1


def _along(start: int, size: int, core: int, halo: int) -> tuple[slice, slice, slice]:
    """Source, core and inner slice of one axis."""
    stop = min(start + core, size)
    low, high = max(start - halo, 0), min(stop + halo, size)
    return slice(low, high), slice(start, stop), slice(start - low, stop - low)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
