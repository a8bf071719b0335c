"""Volumes turned so that their axes run as nearly as they can along L, P and S.

A scan can be stored along any axes, forwards or backwards; the header says which. The network is not blind to that
(its kernels have a front and a back, its grid a first voxel), so it always sees the axes in the same order.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dsir_metric.geometry import Grid
from dsir_metric.io import Boxes

__all__ = ["CanonicalBoxes", "canonical_axes", "canonical_box", "canonical_grid", "canonical_view"]


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


def canonical_box(box: tuple[slice, slice, slice], grid: Grid) -> tuple[slice, slice, slice]:
    """Where the voxels of `box`, slices along z, y, x of `grid`, lie in `canonical_view`."""
    order, flips = canonical_axes(grid)
    parts = [box[axis] for axis in order]
    for k in flips:
        size = grid.shape[order[k]]
        parts[k] = slice(size - parts[k].stop, size - parts[k].start)
    return parts[0], parts[1], parts[2]


class CanonicalBoxes:
    """`canonical_view` of what can only be written box by box, by one thread at a time.

    Parameters
    ----------
    out : Boxes
        Takes boxes (z, y, x) of values (z, y, x, channels) along the axes of `grid`.
    grid : Grid
    """

    def __init__(self, out: Boxes, grid: Grid) -> None:
        self._out, self._shape, self._lock = out, grid.shape, Lock()
        self._order, self._flips = canonical_axes(grid)

    def __setitem__(self, box: tuple[slice, slice, slice], values: NDArray[np.float32]) -> None:
        """Write `values` (z, y, x, channels) into `box`, both along the canonical axes."""
        parts = dict(zip(self._order, box, strict=True))
        for k in self._flips:
            axis, part = self._order[k], box[k]
            parts[axis] = slice(self._shape[axis] - part.stop, self._shape[axis] - part.start)
        back = np.argsort(self._order).tolist()
        with self._lock:
            self._out[parts[0], parts[1], parts[2]] = np.flip(values, self._flips).transpose(*back, 3)


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
