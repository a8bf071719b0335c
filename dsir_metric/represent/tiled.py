"""A volume through the network of this machine, in tiles that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import ModelFileError
from dsir_metric.represent.network import Network
from dsir_metric.represent.tiling import Box, Shape, Tile, core_of, tiles

__all__ = ["WORKING_BYTES", "TiledNetwork"]

WORKING_BYTES = 2 << 30


class TiledNetwork:
    """An open model that takes a volume of any size.

    Parameters
    ----------
    network : Network
    tile : int or None
        Edge of a tile's core in voxels. None takes the largest that needs about 2 GiB of working memory.
    """

    def __init__(self, network: Network, tile: int | None = None) -> None:
        self.network = network
        self.card = network.card
        self._tile = tile

    @property
    def provider(self) -> str:
        """Execution provider in use."""
        return self.network.provider

    def describe(self, scaled: NDArray[np.float32], out: NDArray[np.float32], crop: Box | None = None) -> None:
        """Write the descriptors of a volume (z, y, x) in [0, 1], or of a `crop` of it, into `out` (z, y, x, channels).

        Raises
        ------
        ModelFileError
            If the network answers with NaN or infinity.
        """
        features = self.features(scaled)
        if crop is None:
            self.describe_features(features, out)
            return
        halo = self.card.head_halo
        near = tuple(slice(max(s.start - halo, 0), s.stop + halo) for s in crop)
        features = np.ascontiguousarray(features[:, *near])
        values = np.empty((*features.shape[1:], self.card.channels), np.float32)
        self.describe_features(features, values)
        out[:] = values[tuple(slice(s.start - n.start, s.stop - n.start) for s, n in zip(crop, near, strict=True))]

    def features(self, scaled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Feature map (features, z, y, x) of a whole volume (z, y, x) in [0, 1]."""
        features = np.empty((self.card.features, *scaled.shape), np.float32)
        for tile in self.image_tiles(scaled.shape):
            features[:, *tile.core] = self.network.features(scaled[tile.source])[:, *tile.inner]
        return features

    def describe_features(self, features: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Descriptors of a whole feature map (features, z, y, x), written into `out` (z, y, x, channels)."""
        for tile in self.feature_tiles(out.shape[:3]):
            piece = self.network.descriptors(features[:, *tile.source])[tile.inner]
            if not np.isfinite(np.vdot(piece, piece)):
                raise self.diverged()
            out[tile.core] = piece

    def image_tiles(self, shape: Shape) -> Iterator[Tile]:
        """Tiles of a volume (z, y, x) for the first half of the network."""
        card, most = self.card, WORKING_BYTES // self.card.bytes_per_voxel
        return tiles(shape, core_of(shape, self._tile, card.halo, card.multiple, most), card.halo)

    def feature_tiles(self, shape: Shape) -> Iterator[Tile]:
        """Tiles of a feature map of a volume (z, y, x) for the second half of the network."""
        card, most = self.card, WORKING_BYTES // self.card.head_bytes_per_voxel
        return tiles(shape, core_of(shape, self._tile, card.head_halo, 1, most), card.head_halo)

    def diverged(self) -> ModelFileError:
        """What to raise when the network answers with NaN or infinity."""
        name = self.card.name
        return ModelFileError(f"model {name!r} made NaN or infinite descriptors; export or train it again")
