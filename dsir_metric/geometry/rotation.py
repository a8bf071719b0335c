"""Rotations of space: the one in a matrix, and how far one turns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["angle_deg", "rotation"]


def rotation(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation (n, n) nearest to a `matrix` (n, n)."""
    left, _, right = np.linalg.svd(matrix)
    sign = np.ones(len(matrix))
    sign[-1] = np.linalg.det(left @ right)
    nearest: NDArray[np.float64] = left * sign @ right
    return nearest


def angle_deg(rotation: NDArray[np.float64]) -> float:
    """Angle by which a rotation (3, 3) turns, degrees from 0 to 180."""
    cosine = (np.trace(rotation) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
