"""How large the body in a scan is, against an adult patient's."""

from __future__ import annotations

import math

import numpy as np

from dsir_metric.geometry.grid import Grid

__all__ = ["body_scale"]

_ADULT_MM = 170.0  # middle edge of a box around an adult's brain, which the defaults were chosen on
_SMALLEST_PART_MM = 40.0  # of a patient: the box around a prostate
_SMALL_PART_MM, _SMALL_VOXEL_MM = 100.0, 0.6  # smaller boxes in finer voxels show a finger, an ear or an animal
_LARGEST_MM = 800.0  # across: the widest field of view of CT
_LARGEST_VOXEL_MM = 8.5  # with which a lattice of 6 mm still makes sense


def body_scale(*grids: Grid) -> float:
    """Return the size of what scans show against an adult patient, from their boxes and voxels alone.

    Parameters
    ----------
    grids : Grid
        Of scans of the same anatomy. The middle one of the three edges of the smallest box counts, and the largest
        voxel.

    Returns
    -------
    float
        A power of two, so that lengths scale without rounding: 1 for any part of an adult or a child, about 1/8 for a
        mouse or a finger, more than 1 where the voxels are larger than a patient's ever are.
    """
    edge = min(float(np.median(grid.extent_mm)) for grid in grids)
    voxel = max(float(np.prod(grid.spacing_mm)) ** (1 / 3) for grid in grids)
    part = edge < _SMALLEST_PART_MM or (edge < _SMALL_PART_MM and voxel < _SMALL_VOXEL_MM)
    if part or edge > _LARGEST_MM:
        return _nearest_power(edge / _ADULT_MM)
    return max(1.0, _nearest_power(voxel / _LARGEST_VOXEL_MM))


def _nearest_power(ratio: float) -> float:
    return 2.0 ** round(math.log2(ratio))
