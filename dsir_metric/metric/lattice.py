"""Displacements held on a lattice, compiled: B-splines of order 1 to 3 and displacement fields (order 1).

A point displaces by a weighted sum of the (order + 1)^3 coefficients around it; the weights are separable. Outside
the box `low <= index < high` nothing moves; inside, an index beyond the last coefficient is clamped to it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsir_metric.metric.compiled import Part, inlined, parallel

__all__ = ["displace", "pull_gradients", "scatter"]

Array = NDArray[Any]
_BLOCK = 1024  # points, about 100 microseconds: fewer are not worth a thread


@inlined
def _weigh(order: int, f: float, axis: int, w: Array, dw: Array) -> None:
    """Uniform B-spline weights of the order + 1 coefficients from the first one on, and their derivatives."""
    g = 1.0 - f
    if order == 1:
        w[axis, 0], w[axis, 1] = g, f
        dw[axis, 0], dw[axis, 1] = -1.0, 1.0
    elif order == 2:
        w[axis, 0], w[axis, 1], w[axis, 2] = 0.5 * g * g, 0.5 + f * g, 0.5 * f * f
        dw[axis, 0], dw[axis, 1], dw[axis, 2] = -g, g - f, f
    else:
        w[axis, 0], w[axis, 3] = g * g * g / 6.0, f * f * f / 6.0
        w[axis, 1], w[axis, 2] = 2.0 / 3.0 - 0.5 * f * f * (2.0 - f), 2.0 / 3.0 - 0.5 * g * g * (2.0 - g)
        dw[axis, 0], dw[axis, 3] = -0.5 * g * g, 0.5 * f * f
        dw[axis, 1], dw[axis, 2] = f * (1.5 * f - 2.0), g * (2.0 - 1.5 * g)


@inlined
def _support(
    points: Array,
    i: int,
    matrix: Array,
    offset: Array,
    order: int,
    low: Array,
    high: Array,
    base: Array,
    w: Array,
    dw: Array,
) -> bool:
    """First coefficient (x, y, z) around point i and the weights per axis; false where the point does not move."""
    x, y, z = points[i, 0], points[i, 1], points[i, 2]
    for axis in range(3):
        t = matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 2] * z + offset[axis]
        if not low[axis] <= t < high[axis]:
            return False
        start = t - 0.5 * (order - 1)
        base[axis] = math.floor(start)
        _weigh(order, start - base[axis], axis, w, dw)
    return True


@inlined
def _clamp(index: int, size: int) -> int:
    return min(max(index, 0), size - 1)


@parallel("points", _BLOCK)
def displace(
    part: Part,
    coefficients: Array,
    points: Array,
    matrix: Array,
    offset: Array,
    order: int,
    low: Array,
    high: Array,
    out: Array,
) -> None:
    """Move `points` (n, 3) mm by the lattice of `coefficients` (z, y, x, 3) mm, into `out` (n, 3).

    Continuous lattice index (x, y, z) of a point p is matrix @ p + offset; `low` and `high` (3,) bound what moves.
    """
    nz, ny, nx, _ = coefficients.shape
    base, w, dw = np.empty(3, np.int64), np.empty((3, 4)), np.empty((3, 4))
    for i in range(part[0], part[1]):
        ux = uy = uz = 0.0
        if _support(points, i, matrix, offset, order, low, high, base, w, dw):
            for k in range(order + 1):
                z = _clamp(base[2] + k, nz)
                for j in range(order + 1):
                    y = _clamp(base[1] + j, ny)
                    wyz = w[2, k] * w[1, j]
                    for h in range(order + 1):
                        x, weight = _clamp(base[0] + h, nx), wyz * w[0, h]
                        ux += weight * coefficients[z, y, x, 0]
                        uy += weight * coefficients[z, y, x, 1]
                        uz += weight * coefficients[z, y, x, 2]
        out[i, 0] = points[i, 0] + ux
        out[i, 1] = points[i, 1] + uy
        out[i, 2] = points[i, 2] + uz


@parallel("points", _BLOCK)
def pull_gradients(
    part: Part,
    coefficients: Array,
    points: Array,
    gradients: Array,
    matrix: Array,
    offset: Array,
    order: int,
    low: Array,
    high: Array,
    out: Array,
) -> None:
    """Transposed spatial Jacobian of `displace` at `points` times `gradients` (n, 3), into `out` (n, 3)."""
    nz, ny, nx, _ = coefficients.shape
    base, w, dw = np.empty(3, np.int64), np.empty((3, 4)), np.empty((3, 4))
    for i in range(part[0], part[1]):
        gx, gy, gz = gradients[i, 0], gradients[i, 1], gradients[i, 2]
        sx = sy = sz = 0.0
        if _support(points, i, matrix, offset, order, low, high, base, w, dw):
            for k in range(order + 1):
                z = _clamp(base[2] + k, nz)
                for j in range(order + 1):
                    y = _clamp(base[1] + j, ny)
                    row = slope = 0.0
                    for h in range(order + 1):
                        x = _clamp(base[0] + h, nx)
                        along = coefficients[z, y, x, 0] * gx
                        along += coefficients[z, y, x, 1] * gy
                        along += coefficients[z, y, x, 2] * gz
                        row += w[0, h] * along
                        slope += dw[0, h] * along
                    sx += w[1, j] * w[2, k] * slope
                    sy += dw[1, j] * w[2, k] * row
                    sz += w[1, j] * dw[2, k] * row
        for axis in range(3):
            out[i, axis] = gradients[i, axis] + sx * matrix[0, axis] + sy * matrix[1, axis] + sz * matrix[2, axis]


@parallel("out")
def scatter(
    part: Part,
    points: Array,
    gradients: Array,
    matrix: Array,
    offset: Array,
    order: int,
    low: Array,
    high: Array,
    out: Array,
) -> None:
    """Add the derivative of sum <gradient, displaced point> with respect to every coefficient to `out` (z, y, x, 3).

    Each part is some z layers of `out`: it runs through all points and adds only to its own. A coefficient thus
    receives its terms in the order of the points: the sum is the same to the bit for any number of parts.
    """
    nz, ny, nx, _ = out.shape
    first, last = np.int64(part[0]), np.int64(part[1])
    base, w, dw = np.empty(3, np.int64), np.empty((3, 4)), np.empty((3, 4))
    for i in range(len(points)):
        gx, gy, gz = gradients[i, 0], gradients[i, 1], gradients[i, 2]
        if gx == 0.0 and gy == 0.0 and gz == 0.0:
            continue
        if not _support(points, i, matrix, offset, order, low, high, base, w, dw):
            continue
        for k in range(order + 1):
            z = _clamp(base[2] + k, nz)
            if z < first or z >= last:
                continue
            for j in range(order + 1):
                y = _clamp(base[1] + j, ny)
                wyz = w[2, k] * w[1, j]
                for h in range(order + 1):
                    x, weight = _clamp(base[0] + h, nx), wyz * w[0, h]
                    out[z, y, x, 0] += weight * gx
                    out[z, y, x, 1] += weight * gy
                    out[z, y, x, 2] += weight * gz
