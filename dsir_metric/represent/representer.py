"""One scan to its representation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, DataError, ModelFileError
from dsir_metric.geometry import Grid
from dsir_metric.io import check_image
from dsir_metric.represent.card import ModelCard
from dsir_metric.represent.intensity import IntensityRule, resolve_intensity
from dsir_metric.represent.loading import open_network
from dsir_metric.represent.network import Network
from dsir_metric.represent.orientation import canonical_view
from dsir_metric.represent.representation import Representation
from dsir_metric.represent.tiling import Shape, Tile, choose_core, tiles

__all__ = ["Representer"]

WORKING_BYTES = 2 << 30


class Representer:
    """Turns scans into representations.

    Parameters
    ----------
    model : str or Path
        "default", another shipped model, or an .onnx file made by `dsir-metric export`.
    device : str
        "auto" (CUDA where it runs, else the CPU), "cpu" or "cuda" (the CPU with a warning where it does not run).
    threads : int or None
        CPU threads; None for every core.
    tile : int or None
        Edge of a tile's core in voxels. None takes the largest that needs about 2 GiB of working memory. The result is
        the same, bit for bit.

    Attributes
    ----------
    card : ModelCard
    provider : str
        What runs the network, in ONNX Runtime's words.

    Raises
    ------
    ModelFileError
        If the model is absent, no ONNX, or has no card that fits it, see `load_card`.
    MissingDependencyError
        If ONNX Runtime is absent or installed twice.
    ConfigError
        If `device`, `threads` or `tile` is out of range.

    Examples
    --------
    >>> representer = Representer()  # doctest: +SKIP
    >>> dsir = representer(sitk.ReadImage("t1.nii.gz"))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path = "default",
        device: str = "auto",
        threads: int | None = None,
        tile: int | None = None,
    ) -> None:
        if tile is not None and tile < 1:
            raise ConfigError(f"tile is {tile}; give the edge of a tile in voxels, or none to have it chosen")
        self._network = open_network(model, device, threads)
        self._tile = tile

    @property
    def network(self) -> Network:
        """The open model."""
        return self._network

    @property
    def card(self) -> ModelCard:
        """Card of the model."""
        return self._network.card

    @property
    def provider(self) -> str:
        """Execution provider in use."""
        return self._network.provider

    @property
    def model_hash(self) -> str:
        """SHA-256 of the weights."""
        return self.card.weights_hash

    def __call__(self, image: sitk.Image, intensity: str | IntensityRule = "auto") -> Representation:
        """Represent a scan on its own grid.

        Parameters
        ----------
        image : sitk.Image
            Scalar, 3-D, any size, spacing and orientation. A 2-D image is taken for the middle of a slab of slices that
            are all like it, thick enough for the network to see (almost) nothing else.
        intensity : str or IntensityRule
            Rule, or its name; see `resolve_intensity`. "auto" is what the model's card says.

        Returns
        -------
        Representation
            Unit vectors, float32 (z, y, x, channels), same voxels as `image` (z is 1 for a 2-D one). However the header
            orders the axes, a place in space gets the same descriptor.

        Raises
        ------
        ShapeError, GeometryError, DataError
            See `dsir_metric.io.check_image`; DataError also if the intensity rule leaves no contrast.
        ConfigError
            If `intensity` is unknown.
        ModelFileError
            If the network answers with NaN or infinity.
        """
        scaled, grid, rule = self.prepare(image, intensity, plane=True)
        values = np.empty((*grid.shape, self.card.channels), np.float32)
        if grid.dimension == 2:
            canonical_view(values, grid)[:] = self._middle_of_slab(scaled)
        else:
            self._describe(self._features(scaled), canonical_view(values, grid))
        return Representation(values, grid, self.provenance(rule))

    def prepare(
        self, image: sitk.Image, intensity: str | IntensityRule = "auto", *, plane: bool = False
    ) -> tuple[NDArray[np.float32], Grid, IntensityRule]:
        """What the network is given for a scan.

        Parameters
        ----------
        image, intensity
            As for a call; so are the errors.
        plane : bool
            Take 2-D images too: one slice.

        Returns
        -------
        scaled : ndarray of float32, shape (z, y, x)
            Intensities in [0, 1], turned as `canonical_view` does.
        grid : Grid
            Of `image`.
        rule : IntensityRule
            What scaled them.
        """
        image = check_image(image, "image", plane=plane)
        grid = Grid.of(image)
        raw = np.ascontiguousarray(canonical_view(sitk.GetArrayViewFromImage(image).reshape(grid.shape), grid))
        rule = intensity if isinstance(intensity, IntensityRule) else self.rule(raw, intensity)
        scaled = rule.apply(raw)
        if scaled.min() == scaled.max():
            raise DataError(
                f"image: nothing lies within the intensities {rule.low:g} to {rule.high:g}; it has {raw.min():g} to "
                f"{raw.max():g}: choose another intensity rule"
            )
        return scaled, grid, rule

    def rule(self, values: NDArray[np.float32], intensity: str = "auto") -> IntensityRule:
        """The intensity rule that `intensity` names, for an image with these values."""
        return resolve_intensity(values, self.card.intensity if intensity == "auto" else intensity)

    def image_tiles(self, shape: Shape) -> Iterator[Tile]:
        """Tiles of a volume (z, y, x) for the first half of the network."""
        card = self.card
        return tiles(shape, self._core(shape, card.halo, card.multiple, card.bytes_per_voxel), card.halo)

    def feature_tiles(self, shape: Shape) -> Iterator[Tile]:
        """Tiles of a feature map of a volume (z, y, x) for the second half of the network."""
        card = self.card
        return tiles(shape, self._core(shape, card.head_halo, 1, card.head_bytes_per_voxel), card.head_halo)

    def diverged(self) -> ModelFileError:
        """What to raise when the network answers with NaN or infinity."""
        name = self.card.name
        return ModelFileError(f"model {name!r} made NaN or infinite descriptors; export or train it again")

    def _features(self, scaled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Feature map (features, z, y, x) of a whole volume (z, y, x) in [0, 1]."""
        features = np.empty((self.card.features, *scaled.shape), np.float32)
        for tile in self.image_tiles(scaled.shape):
            features[:, *tile.core] = self._network.features(scaled[tile.source])[:, *tile.inner]
        return features

    def _middle_of_slab(self, scaled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Descriptors (1, y, x, channels) of a slice (1, y, x) amid `halo` others like it.

        Twice as many would leave nothing else to be seen; the cosine with those descriptors is above 0.9999.
        """
        card = self.card
        depth, middle = card.halo + 1, card.halo // 2
        features = self._features(np.broadcast_to(scaled, (depth, *scaled.shape[1:])))
        low, high = max(middle - card.head_halo, 0), min(middle + card.head_halo + 1, depth)
        values = np.empty((high - low, *scaled.shape[1:], card.channels), np.float32)
        self._describe(features[:, low:high], values)
        return values[[middle - low]]

    def _describe(self, features: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Descriptors of a whole feature map, written into `out` (z, y, x, channels)."""
        for tile in self.feature_tiles(out.shape[:3]):
            piece = self._network.descriptors(features[:, *tile.source])[tile.inner]
            if not np.isfinite(np.vdot(piece, piece)):
                raise self.diverged()
            out[tile.core] = piece

    def _core(self, shape: Shape, halo: int, multiple: int, bytes_per_voxel: int) -> Shape:
        if self._tile is not None:
            edge = -(-self._tile // multiple) * multiple
            return (edge, edge, edge)
        return choose_core(shape, halo, multiple, WORKING_BYTES // bytes_per_voxel)

    def provenance(self, rule: IntensityRule) -> dict[str, object]:
        """What made descriptors of an image that `rule` scaled; see `Representation`."""
        return {
            "model": self.card.name,
            "model_hash": self.model_hash,
            "provider": self.provider,
            "intensity": rule.kind,
            "intensity_low": rule.low,
            "intensity_high": rule.high,
            "intensity_detected": rule.detected,
        }
