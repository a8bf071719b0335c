"""The two representations of a registration at several resolutions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

from dsir_metric.geometry import Grid
from dsir_metric.metric import CosineMetric, Sampling
from dsir_metric.represent.representation import Representation

__all__ = ["Level", "pyramid"]

_COARSEST_MM = 5.0


@dataclass(frozen=True)
class Level:
    """Both representations at one resolution, and where they count.

    Parameters
    ----------
    fixed, moving : Representation
    fixed_mask : sitk.Image
        Where the metric is taken, on the grid of `fixed`.
    moving_mask : sitk.Image or None
    after : sitk.Transform or None
        Applied after whatever is being sought, on the way into the moving image.
    """

    fixed: Representation
    moving: Representation
    fixed_mask: sitk.Image
    moving_mask: sitk.Image | None = None
    after: sitk.Transform | None = None

    @property
    def spacing_mm(self) -> float:
        """Largest voxel edge of the fixed representation, mm."""
        return max(self.fixed.grid.spacing_mm)

    def halved(self) -> Level:
        """The level of twice the voxel size."""
        fixed, moving = _halved(self.fixed), _halved(self.moving)
        mask = sitk.Resample(self.fixed_mask, fixed.grid.image(), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        return replace(self, fixed=fixed, moving=moving, fixed_mask=mask)

    def metric(self, most_points: int | None = None, seed: int = 0) -> CosineMetric:
        """The metric of this level on its masked voxels, or on a random sample of about `most_points` of them."""
        inside = int(np.count_nonzero(sitk.GetArrayViewFromImage(self.fixed_mask)))
        share = 1.0 if most_points is None else min(1.0, most_points / max(inside, 1))
        return CosineMetric(
            self.fixed,
            self.moving,
            fixed_mask=self.fixed_mask,
            moving_mask=self.moving_mask,
            sampling=Sampling("none") if share == 1.0 else Sampling("random", share, seed),
            moving_initial=self.after,
        )


def pyramid(finest: Level) -> list[Level]:
    """Levels from coarse to fine, each of half the voxel size, down to `finest`.

    The coarsest has voxels of 5 to 10 mm, or smaller ones where an image would have fewer than 12 along an edge.
    """
    levels = [finest]
    while levels[0].spacing_mm < _COARSEST_MM and min(*levels[0].fixed.grid.size, *levels[0].moving.grid.size) >= 24:
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
