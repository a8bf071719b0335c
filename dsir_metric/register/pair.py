"""The two representations of a registration at several resolutions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.geometry import Grid
from dsir_metric.metric import CosineMetric, Sampling
from dsir_metric.metric.compiled import Part, parallel
from dsir_metric.metric.information import MutualInformation
from dsir_metric.register.linear import as_affine, composite
from dsir_metric.represent.representation import Representation

__all__ = ["Level", "aligned", "may_halve", "pyramid", "through"]

_COARSEST_MM = 5.0
_LEAST_TO_HALVE = 24  # voxels


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
    scans : tuple of Representation, optional
        The scans themselves: one channel, intensities in [0, 1]. Both are in voxels of one size, so that scans that are
        the same are interpolated the same.
    """

    fixed: Representation
    moving: Representation
    fixed_mask: sitk.Image
    moving_mask: sitk.Image | None = None
    after: sitk.Transform | None = None
    scans: tuple[Representation, Representation] | None = None

    @property
    def spacing_mm(self) -> float:
        """Largest voxel edge of the fixed representation, mm."""
        return max(self.fixed.grid.spacing_mm)

    def halved(self) -> Level:
        """The level of twice the voxel size."""
        fixed, moving = _halved(self.fixed), _halved(self.moving)
        mask = sitk.Resample(self.fixed_mask, fixed.grid.image(), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        scans = None if self.scans is None else (_halved(self.scans[0]), _halved(self.scans[1]))
        return replace(self, fixed=fixed, moving=moving, fixed_mask=mask, scans=scans)

    @property
    def points_mm(self) -> NDArray[np.float64]:
        """Points of the fixed mask, (n, 3), LPS mm."""
        points: NDArray[np.float64] = self.fixed.grid.points_mm()[sitk.GetArrayViewFromImage(self.fixed_mask) != 0]
        return points

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

    def information(self) -> MutualInformation | None:
        """Mutual information of the scans on the masked voxels; None where there are no scans."""
        if self.scans is None:
            return None
        fixed, moving = self.scans
        return MutualInformation(
            fixed.values[sitk.GetArrayViewFromImage(self.fixed_mask) != 0, 0],
            moving.values[..., 0],
            moving.grid,
            moving_mask=self.moving_mask,
            moving_initial=self.after,
        )


def pyramid(finest: Level) -> list[Level]:
    """Levels from coarse to fine, each of half the voxel size, down to `finest`.

    The coarsest has voxels of 5 to 10 mm, or smaller ones where an image would have fewer than 12 along an edge.
    """
    levels = [finest]
    while may_halve(levels[0].fixed.grid, levels[0].moving.grid):
        levels.insert(0, levels[0].halved())
    return levels


def may_halve(fixed: Grid, moving: Grid) -> bool:
    """Whether a pyramid goes on below a level on these grids."""
    return max(fixed.spacing_mm) < _COARSEST_MM and min(*fixed.size, *moving.size) >= _LEAST_TO_HALVE


def through(level: Level, linear: NDArray[np.float64]) -> sitk.CompositeTransform:
    """Fixed to moving points: `linear` (4, 4), LPS mm, then `after`."""
    return composite(level.after, as_affine(linear, level.fixed.grid.centre_mm))


def aligned(level: Level, linear: NDArray[np.float64]) -> Level:
    """The level with the moving side brought onto the fixed grid by `linear` (4, 4) and `after`, resampled once.

    Vectors are no longer of unit length. What maps outside the moving image, or its mask, is left out of the mask.
    """
    transform = through(level, linear)
    moving = level.moving.resampled(level.fixed.grid, transform, extend=True)
    inside = level.moving.grid.image() + 1 if level.moving_mask is None else level.moving_mask
    reached = sitk.Resample(inside, level.fixed_mask, transform, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    mask = sitk.Cast(sitk.And(level.fixed_mask != 0, reached != 0), sitk.sitkUInt8)
    scans = None
    if level.scans is not None:
        scans = (level.scans[0], level.scans[1].resampled(level.fixed.grid, transform, extend=True))
    return Level(level.fixed, moving, mask, scans=scans)


def _halved(image: Representation) -> Representation:
    """Means of 2 x 2 x 2 voxels; the last layer of an odd size counts twice."""
    z, y, x, channels = image.values.shape
    values = np.empty((-(-z // 2), -(-y // 2), -(-x // 2), channels), np.float32)
    _average(np.ascontiguousarray(image.values, np.float32), values)
    return replace(image, values=values, grid=image.grid.halved())


@parallel("coarse")
def _average(part: Part, fine: NDArray[np.float32], coarse: NDArray[np.float32]) -> None:
    """Mean of the 2 x 2 x 2 voxels of `fine` (z, y, x, channels) into each voxel of `coarse`, edges repeated."""
    last_z, last_y, last_x = fine.shape[0] - 1, fine.shape[1] - 1, fine.shape[2] - 1
    for z in range(part[0], part[1]):
        for y in range(coarse.shape[1]):
            for x in range(coarse.shape[2]):
                out = coarse[z, y, x]
                out[:] = 0.0
                for corner in range(8):
                    k = min(2 * z + corner // 4, last_z)
                    j = min(2 * y + corner // 2 % 2, last_y)
                    i = min(2 * x + corner % 2, last_x)
                    for c in range(fine.shape[3]):
                        out[c] += np.float32(0.125) * fine[k, j, i, c]
