"""A volume through the network of this machine, in tiles that fit into memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, ModelFileError
from dsir_metric.io import Boxes, FileArray, reserve
from dsir_metric.represent.network import Network
from dsir_metric.represent.plan import Plan, computed_voxels, make_plan
from dsir_metric.represent.tiling import Box, Shape, Tile, cropped, tiles

__all__ = ["TiledNetwork"]

_PROBE = 56  # edge, in voxels, of the cube that is timed


class TiledNetwork:
    """An open model that takes a volume of any size.

    Parameters
    ----------
    network : Network
    tile : int or None
        Edge of a tile's core in voxels; chosen by default.
    memory_bytes : int or None
        What the process may have; by default a tile has about 2 GiB, and nothing else is limited.
    """

    def __init__(self, network: Network, tile: int | None = None, memory_bytes: int | None = None) -> None:
        self.network = network
        self.card = network.card
        self._tile, self._memory_bytes = tile, memory_bytes

    def within(self, memory_bytes: int | None) -> TiledNetwork:
        """The same open model with another memory."""
        return TiledNetwork(self.network, self._tile, memory_bytes)

    @property
    def provider(self) -> str:
        """Execution provider in use."""
        return self.network.provider

    def describe(
        self,
        scaled: NDArray[np.float32],
        out: Boxes,
        crop: Box | None = None,
        *,
        held: int = 0,
        scratch: Path | None = None,
        on_tile: Callable[[], None] = lambda: None,
    ) -> None:
        """Write the descriptors of a volume (z, y, x) in [0, 1], or of a `crop` of it, into `out` (z, y, x, channels).

        Parameters
        ----------
        scaled : ndarray of float32, shape (z, y, x)
        out : ndarray or Boxes
        crop : tuple of slice, optional
        held : int
            Bytes that the caller holds meanwhile, apart from `scaled` and an array `out`.
        scratch : Path, optional
            Folder for the feature map where it is too large for the memory.
        on_tile : callable
            Called before every tile. What it raises ends the computation.

        Raises
        ------
        ModelFileError
            If the network answers with NaN or infinity.
        ConfigError
            If the memory cannot hold the smallest tile.
        """
        held += scaled.nbytes + (out.nbytes if isinstance(out, np.ndarray) else 0)
        plan = self.plan(scaled.shape, held, streamed=scratch is not None)
        if plan.lacking_bytes and self._memory_bytes is not None:
            raise ConfigError(
                f"memory: {self._memory_bytes / 1e6:.0f} MB are too little for {' x '.join(map(str, scaled.shape))} "
                f"voxels; allow {plan.lacking_bytes / 1e6:.0f} MB more, or take smaller tiles or larger voxels"
            )
        with self._feature_map(plan, scaled.shape, scratch) as features:
            for tile in plan.image_tiles:
                on_tile()
                features[:, *tile.core] = self.network.features(scaled[tile.source])[:, *tile.inner]
            if crop is None:
                self._describe(features, plan.feature_tiles, out, on_tile)
            else:
                near, pieces = self._around(scaled.shape, crop, held + plan.feature_bytes)
                around = np.ascontiguousarray(features[:, *near])
                self._describe(around, pieces, out, on_tile)

    def cost(self, shape: Shape, crop: Box) -> int:
        """What it costs to describe a crop of a volume (z, y, x), in voxels; see `computed_voxels`."""
        held = 4 * int(np.prod(shape))
        _, pieces = self._around(shape, crop, held)
        return computed_voxels(self.card, self.plan(shape, held).image_tiles, pieces)

    def plan(self, shape: Shape, held: int | None = None, *, streamed: bool = False) -> Plan:
        """Tiles of a volume (z, y, x); see `make_plan`. Without `held`, it and its descriptors are all there is."""
        if held is None:
            held = 4 * (1 + self.card.channels) * int(np.prod(shape))
        return make_plan(
            self.card, shape, tile=self._tile, memory_bytes=self._memory_bytes, held=held, streamed=streamed
        )

    def least_bytes(self, shape: Shape, held: int) -> int:
        """The least memory with which the plan of a volume (z, y, x) lacks none."""
        return 1 + make_plan(self.card, shape, tile=self._tile, memory_bytes=1, held=held).lacking_bytes

    def seconds(self, *plans: Plan) -> float:
        """About how long `plans` take; a small cube is timed for it."""
        image = np.random.default_rng(0).random((_PROBE, _PROBE, _PROBE), np.float32)
        features = self.network.features(image[:8, :8, :8])
        self.network.descriptors(features)  # the first run of all is slower
        start = time.perf_counter()
        features = self.network.features(image)
        middle = time.perf_counter()
        self.network.descriptors(features)
        halves = middle - start, time.perf_counter() - middle
        return sum(cost * read / image.size for plan in plans for cost, read in zip(halves, plan.work, strict=True))

    def least_cost(self, shape: Shape) -> int:
        """Less than describing any crop of a volume (z, y, x) costs; known without planning its tiles."""
        return computed_voxels(self.card, tiles(shape, shape, 0), ())

    def _describe(
        self,
        features: NDArray[np.float32] | FileArray,
        pieces: Iterable[Tile],
        out: Boxes,
        on_tile: Callable[[], None],
    ) -> None:
        """Descriptors of a feature map (features, z, y, x), those in the cores of tiles, into `out`."""
        for tile in pieces:
            on_tile()
            piece = self.network.descriptors(features[:, *tile.source])
            if not np.isfinite(np.vdot(piece, piece)):  # of the whole: a part would be copied for it
                raise self.diverged()
            out[tile.core] = piece[tile.inner]
            del piece  # not beside the next one

    def _around(self, shape: Shape, crop: Box, held: int) -> tuple[Box, Iterator[Tile]]:
        """A crop of a volume with what the head sees around it, and the tiles of that which the crop needs."""
        halo = self.card.head_halo
        near = tuple(slice(max(s.start - halo, 0), min(s.stop + halo, n)) for s, n in zip(crop, shape, strict=True))
        z, y, x = (s.stop - s.start for s in near)
        inside = tuple(slice(s.start - n.start, s.stop - n.start) for s, n in zip(crop, near, strict=True))
        plan = self.plan((z, y, x), held)
        return (near[0], near[1], near[2]), cropped(plan.feature_tiles, (inside[0], inside[1], inside[2]))

    @contextmanager
    def _feature_map(self, plan: Plan, shape: Shape, scratch: Path | None) -> Iterator[NDArray[np.float32] | FileArray]:
        """An empty feature map (features, z, y, x) for a volume, in memory or in a file that nobody else sees."""
        if plan.scratch and scratch is not None:
            with TemporaryFile(dir=scratch, buffering=0) as file:
                reserve(file, plan.feature_bytes, scratch, "the feature map")
                yield FileArray(file, (self.card.features, *shape))
        else:
            yield np.empty((self.card.features, *shape), np.float32)

    def diverged(self) -> ModelFileError:
        """What to raise when the network answers with NaN or infinity."""
        name = self.card.name
        return ModelFileError(f"model {name!r} made NaN or infinite descriptors; export or train it again")
