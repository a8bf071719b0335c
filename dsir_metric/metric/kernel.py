"""Cosine of two descriptor fields and its exact spatial derivative, compiled.

The moving field is trilinear between voxel centres. Like ITK's linear interpolator it is defined for continuous
indices in [-0.5, n - 0.5) on each axis, and constant over the outer half voxel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsir_metric.metric.compiled import Part, inlined, parallel

__all__ = ["cell", "continuous_index", "cosine_and_gradient", "interpolate", "is_inside", "keep_inside_mask"]

Array = NDArray[Any]
_TINY = 1e-20  # product of squared lengths below which a descriptor counts as absent
_BLOCK = 512  # points, about 70 microseconds: fewer are not worth a thread


@inlined
def continuous_index(point: Array, matrix: Array, offset: Array) -> tuple[float, float, float]:
    """Index x, y, z of a point: matrix @ point + offset."""
    x, y, z = point[0], point[1], point[2]
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + offset[0],
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + offset[1],
        matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + offset[2],
    )


@inlined
def is_inside(x: float, y: float, z: float, shape: tuple[int, ...]) -> bool:
    """Whether an index lies in the box of a volume (z, y, x, ...)."""
    return -0.5 <= x < shape[2] - 0.5 and -0.5 <= y < shape[1] - 0.5 and -0.5 <= z < shape[0] - 0.5


@inlined
def cell(t: float, size: int) -> tuple[int, int, Any]:
    """The two voxels around `t` on one axis, clamped to the image, and the weight of the second."""
    below = math.floor(t)
    return max(below, 0), min(below + 1, size - 1), np.float32(t - below)


@inlined
def _products(
    count: int, f: Array, m: Array, y0: int, y1: int, z0: int, z1: int, x0: int, x1: int, wx: Any, wy: Any, wz: Any
) -> tuple[Any, ...]:
    """Inner products of f, of m interpolated, and of the derivative of m along x, y, z, all in one pass."""
    c000, c001, c010, c011 = m[z0, y0, x0], m[z0, y0, x1], m[z0, y1, x0], m[z0, y1, x1]
    c100, c101, c110, c111 = m[z1, y0, x0], m[z1, y0, x1], m[z1, y1, x0], m[z1, y1, x1]
    ff = fm = mm = fx = fy = fz = mx = my = mz = np.float32(0)
    for c in range(count):
        dx00, dx01, dx10, dx11 = c001[c] - c000[c], c011[c] - c010[c], c101[c] - c100[c], c111[c] - c110[c]
        low0, low1 = c000[c] + wx * dx00, c100[c] + wx * dx10
        dy0, dy1 = c010[c] + wx * dx01 - low0, c110[c] + wx * dx11 - low1
        low = low0 + wy * dy0
        dz = low1 + wy * dy1 - low
        dx0, dx1 = dx00 + wy * (dx01 - dx00), dx10 + wy * (dx11 - dx10)
        dx, dy = dx0 + wz * (dx1 - dx0), dy0 + wz * (dy1 - dy0)
        value = low + wz * dz
        fixed = f[c]
        ff += fixed * fixed
        fm += fixed * value
        mm += value * value
        fx += fixed * dx
        fy += fixed * dy
        fz += fixed * dz
        mx += value * dx
        my += value * dy
        mz += value * dz
    return ff, fm, mm, fx, fy, fz, mx, my, mz


@parallel("points", _BLOCK)
def cosine_and_gradient(
    part: Part,
    fixed: Array,
    rows: Array,
    moving: Array,
    points: Array,
    matrix: Array,
    offset: Array,
    valid: Array,
    cosine: Array,
    gradient: Array,
) -> None:
    """Cosine of fixed and moving descriptors at each point, and its derivative with respect to that point.

    With f the fixed and m the interpolated moving descriptor, cos = f.m / (|f| |m|) and
    d cos = f.dm / (|f| |m|) - cos (m.dm) / |m|^2. Where |f| |m| vanishes both are 0 and the point stays valid.
    Each point is computed by itself, so the result does not depend on the number of threads.

    Parameters
    ----------
    fixed : ndarray of float32, shape (voxels, channels)
        Fixed descriptors, of any length.
    rows : ndarray of int64, shape (n,)
        Row of `fixed` that belongs to each point.
    moving : ndarray of float32, shape (z, y, x, channels)
        Moving descriptors, C-contiguous.
    points : ndarray of float64, shape (n, 3)
        Points of the moving image, LPS mm.
    matrix, offset : ndarray of float64, shapes (3, 3) and (3,)
        Continuous moving index (x, y, z) of a point p is matrix @ p + offset.
    valid : ndarray of bool, shape (n,)
        In: points to look at. Out: those of them that lie inside the moving image.
    cosine : ndarray of float64, shape (n,)
        Out: cosine, 0 where not valid.
    gradient : ndarray of float64, shape (n, 3)
        Out: derivative of the cosine with respect to the point, per mm, 0 where not valid.
    """
    channels = moving.shape[3]
    for i in range(part[0], part[1]):
        cosine[i] = gradient[i, 0] = gradient[i, 1] = gradient[i, 2] = 0.0
        x, y, z = continuous_index(points[i], matrix, offset)
        valid[i] = valid[i] and is_inside(x, y, z, moving.shape)
        if not valid[i]:
            continue
        x0, x1, wx = cell(x, moving.shape[2])
        y0, y1, wy = cell(y, moving.shape[1])
        z0, z1, wz = cell(z, moving.shape[0])
        f = fixed[rows[i]]
        if channels == 24:  # the default model: a constant loop length lets the compiler unroll, a fifth faster
            sums = _products(24, f, moving, y0, y1, z0, z1, x0, x1, wx, wy, wz)
        else:
            sums = _products(channels, f, moving, y0, y1, z0, z1, x0, x1, wx, wy, wz)
        ff, fm, mm, fx, fy, fz, mx, my, mz = sums
        squared = float(ff) * float(mm)
        if squared <= _TINY:
            continue
        scale = 1.0 / math.sqrt(squared)
        cos = fm * scale
        shrink = cos / mm
        gx, gy, gz = fx * scale - shrink * mx, fy * scale - shrink * my, fz * scale - shrink * mz
        cosine[i] = cos
        for axis in range(3):
            gradient[i, axis] = gx * matrix[0, axis] + gy * matrix[1, axis] + gz * matrix[2, axis]


@parallel("points", _BLOCK)
def interpolate(
    part: Part, image: Array, points: Array, matrix: Array, offset: Array, values: Array, valid: Array
) -> None:
    """Trilinear descriptors of `image` (z, y, x, channels) at `points` (n, 3) mm, into `values` (n, channels).

    `valid` (n,) goes false where a point lies outside the image; `values` is 0 there.
    """
    for i in range(part[0], part[1]):
        values[i] = 0.0
        x, y, z = continuous_index(points[i], matrix, offset)
        valid[i] = valid[i] and is_inside(x, y, z, image.shape)
        if not valid[i]:
            continue
        x0, x1, wx = cell(x, image.shape[2])
        y0, y1, wy = cell(y, image.shape[1])
        z0, z1, wz = cell(z, image.shape[0])
        one = np.float32(1)
        for zi, wzi in ((z0, one - wz), (z1, wz)):
            for yi, wyi in ((y0, one - wy), (y1, wy)):
                for c in range(image.shape[3]):
                    row = image[zi, yi, x0, c] * (one - wx) + image[zi, yi, x1, c] * wx
                    values[i, c] += wzi * wyi * row


@parallel("points", _BLOCK)
def keep_inside_mask(part: Part, mask: Array, points: Array, matrix: Array, offset: Array, valid: Array) -> None:
    """Let `valid` (n,) go false where the voxel of `mask` (z, y, x) nearest to a point is 0 or there is none."""
    for i in range(part[0], part[1]):
        x, y, z = continuous_index(points[i], matrix, offset)
        inside = is_inside(x, y, z, mask.shape)
        if inside:
            inside = mask[math.floor(z + 0.5), math.floor(y + 0.5), math.floor(x + 0.5)] != 0
        valid[i] = valid[i] and inside
