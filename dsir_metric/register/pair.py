"""The two representations of a registration at several resolutions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.geometry import Grid
from dsir_metric.represent.foreground import foreground
from dsir_metric.represent.representation import Representation

__all__ = ["Level", "foreground", "pyramid"]


@dataclass(frozen=True)
class Level:
    """Both representations at one resolution, and where they count.

    Parameters
    ----------
    fixed, moving : Representation
    fixed_mask : sitk.Image
        Where the metric is taken, on the grid of `fixed`.
    moving_mask : sitk.Image or None
    """

    fixed: Representation
    moving: Representation
    fixed_mask: sitk.Image
    moving_mask: sitk.Image | None

    @property
    def spacing_mm(self) -> float:
        """Largest voxel edge of the fixed representation, mm."""
        return max(self.fixed.grid.spacing_mm)

    def halved(self) -> Level:
        """The level of twice the voxel size."""
        fixed, moving = _halved(self.fixed), _halved(self.moving)
        mask = sitk.Resample(self.fixed_mask, fixed.grid.image(), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        return Level(fixed, moving, mask, self.moving_mask)

    def points_mm(self, most: int, seed: int) -> NDArray[np.float64]:
        """Up to `most` masked voxel centres of the fixed grid, (n, 3) LPS mm, drawn without replacement."""
        inside = np.flatnonzero(sitk.GetArrayViewFromImage(self.fixed_mask))
        if len(inside) > most:
            inside = np.sort(np.random.default_rng(seed).choice(inside, most, replace=False))
        z, y, x = np.unravel_index(inside, self.fixed.grid.shape)
        return self.fixed.grid.to_physical(np.stack([x, y, z], axis=-1))


def pyramid(finest: Level, coarsest_mm: float = 7.0) -> list[Level]:
    """Levels from coarse to fine, each of half the voxel size, down to `finest`; the coarsest near `coarsest_mm`."""
    levels = [finest]
    while levels[0].spacing_mm < coarsest_mm / 1.5 and min(levels[0].fixed.grid.size + levels[0].moving.grid.size) >= 16:
        levels.insert(0, levels[0].halved())
    return levels


def _halved(image: Representation) -> Representation:
    """Means of 2 x 2 x 2 voxels; the last layer of an odd size is repeated."""
    values = image.values
    for axis in range(3):
        if values.shape[axis] % 2:
            values = np.concatenate([values, values.take([-1], axis)], axis)
        pair = (slice(None),) * axis
        values = (values[(*pair, slice(0, None, 2))] + values[(*pair, slice(1, None, 2))]) * np.float32(0.5)
    grid = image.grid
    size = (values.shape[2], values.shape[1], values.shape[0])
    spacing = tuple(2 * s for s in grid.spacing_mm)
    origin = grid.to_physical((0.5, 0.5, 0.5))
    halved = Grid(size, (spacing[0], spacing[1], spacing[2]), tuple(origin.tolist()), grid.direction)
    return Representation(np.ascontiguousarray(values), halved, image.provenance)
