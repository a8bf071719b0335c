"""How a volume goes through the network within a given memory: its tiles, and what they need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from dsir_metric.represent.card import ModelCard
from dsir_metric.represent.tiling import Shape, Tile, core_of, tiles

__all__ = ["PROCESS_BYTES", "WORKING_BYTES", "Plan", "computed_voxels", "make_plan"]

WORKING_BYTES = 2 << 30  # of a tile, where no limit is given
PROCESS_BYTES = 350_000_000  # Python, the libraries and an open model, measured
_LEAST_CORE = 32  # smaller tiles are hardly more than halo
_FEATURE_SHARE = 16  # a feature map that takes more than this part of the memory goes to the disk, if it may


@dataclass(frozen=True)
class Plan:
    """Tiles of a volume for both halves of the network, and what they need.

    Parameters
    ----------
    image_tiles, feature_tiles : tuple of Tile
        Of the volume, for the first half, and of the feature map, for the second.
    tile_bytes : int
        Working memory of the largest.
    feature_bytes : int
        Size of the feature map between the halves.
    scratch : bool
        Whether that is kept on disk.
    lacking_bytes : int
        How much more memory it needs than there is: even small tiles are too large then.
    """

    image_tiles: tuple[Tile, ...]
    feature_tiles: tuple[Tile, ...]
    tile_bytes: int
    feature_bytes: int
    scratch: bool
    lacking_bytes: int = 0

    @property
    def tiles(self) -> int:
        """Number of tiles of both halves."""
        return len(self.image_tiles) + len(self.feature_tiles)

    @property
    def work(self) -> tuple[int, int]:
        """Voxels that either half reads, halos and all."""
        return sum(tile.voxels for tile in self.image_tiles), sum(tile.voxels for tile in self.feature_tiles)


def make_plan(
    card: ModelCard,
    shape: Shape,
    *,
    tile: int | None = None,
    memory_bytes: int | None = None,
    held: int = 0,
    streamed: bool = False,
) -> Plan:
    """The plan that leaves the network least to do.

    Parameters
    ----------
    card : ModelCard
    shape : tuple of int
        Size z, y, x of the volume.
    tile : int, optional
        Edge of a tile's core in voxels; chosen by default.
    memory_bytes : int, optional
        What the process may have; by default a tile has about 2 GiB.
    held : int
        Bytes of them that are taken meanwhile, apart from `PROCESS_BYTES` and the feature map.
    streamed : bool
        Whether the feature map may go to the disk.

    """
    room = WORKING_BYTES if memory_bytes is None else memory_bytes - PROCESS_BYTES - held
    feature_bytes = 4 * card.features * prod(shape)
    scratch = streamed and feature_bytes * _FEATURE_SHARE > room
    if memory_bytes is not None and not scratch:
        room -= feature_bytes
    most = max(room, 0) // card.bytes_per_voxel
    first = core_of(shape, tile, card.halo, card.multiple, most, _LEAST_CORE, padded=True)
    second = core_of(shape, tile, card.head_halo, 1, max(room, 0) // card.head_bytes_per_voxel, _LEAST_CORE)
    image_tiles = tuple(tiles(shape, first, card.halo))
    feature_tiles = tuple(tiles(shape, second, card.head_halo))
    needed = max(
        card.bytes_per_voxel * max(piece.padded(card.multiple) for piece in image_tiles),
        card.head_bytes_per_voxel * max(piece.voxels for piece in feature_tiles),
    )
    lacking = 0 if memory_bytes is None else max(needed - room, 0)
    return Plan(image_tiles, feature_tiles, needed, feature_bytes, scratch, lacking)


def computed_voxels(card: ModelCard, image_tiles: Iterable[Tile], feature_tiles: Iterable[Tile]) -> int:
    """What tiles cost: the voxels that either half of the network computes, halos and padding included, on average.

    A volume that is one tile, with edges that need no padding, costs as many as it has.
    """
    first = sum(tile.padded(card.multiple) for tile in image_tiles)
    return (first + sum(tile.voxels for tile in feature_tiles)) // 2
