"""Volumes turned so that their axes run as nearly as they can along L, P and S.

A scan can be stored along any axes, forwards or backwards; the header says which. The network is not blind to that
(its kernels have a front and a back, its grid a first voxel), so it always sees the axes in the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dsir_metric.geometry import Grid

__all__ = ["canonical_axes", "canonical_grid", "canonical_view"]


def canonical_axes(grid: Grid) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """How `canonical_view` turns arrays (z, y, x, ...) on `grid`.

    Returns
    -------
    order : tuple of int
        The axis of the array that becomes its first, second and third.
    flips : tuple of int
        Those of the three, as they are then numbered, that run backwards.
    """
    order, signs = _nearest_axes(grid)
    return (2 - order[2], 2 - order[1], 2 - order[0]), tuple(2 - k for k in range(3) if signs[k] < 0)


def canonical_view(values: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """A view of `values` (z, y, x, ...) on `grid` whose axes are those of `canonical_grid(grid)`."""
    order, flips = canonical_axes(grid)
    turned: NDArray[Any] = values.transpose(*order, *range(3, values.ndim))
    return np.flip(turned, flips)


def canonical_grid(grid: Grid) -> Grid:
    """The same voxels with the index axes in the order, and with the signs, nearest to x, y, z of LPS.

    The third axis of a 2-D grid stays the third.
    """
    order, signs = _nearest_axes(grid)
    first = np.zeros(3)
    for k in range(3):
        if signs[k] < 0:
            first[order[k]] = grid.size[order[k]] - 1
    x, y, z = order
    origin = grid.to_physical(first)
    direction = np.reshape(grid.direction, (3, 3))[:, order] * signs
    return Grid(
        (grid.size[x], grid.size[y], grid.size[z]),
        (grid.spacing_mm[x], grid.spacing_mm[y], grid.spacing_mm[z]),
        (float(origin[0]), float(origin[1]), float(origin[2])),
        tuple(float(v) for v in direction.ravel()),
        grid.dimension,
    )


def _nearest_axes(grid: Grid) -> tuple[list[int], list[float]]:
    """For each of L, P, S: the index axis (0 = x) that runs along it, and whether forwards (1) or backwards (-1)."""
    direction = np.reshape(grid.direction, (3, 3))
    order = [int(k) for k in linear_sum_assignment(-np.abs(direction))[1]]
    return order, [1.0 if direction[k, order[k]] >= 0 else -1.0 for k in range(3)]
