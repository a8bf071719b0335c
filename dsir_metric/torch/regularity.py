"""How smooth a displacement is and where it folds, as losses.

A displacement u is (batch, 3, z, y, x), components x, y, z, in voxels of its own grid: phi(i) = i + u(i). With
`spacing_mm` it is turned into mm and derived by mm, so that an anisotropic grid counts all directions alike. An
axis of length 1 counts as constant.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import isfinite

import torch
from torch import Tensor

from dsir_metric.errors import GeometryError, ShapeError

__all__ = ["bending", "diffusion", "fold_penalty", "jacobian_determinant"]

Triple = tuple[float, float, float]


def diffusion(displacement: Tensor, spacing_mm: Triple | None = None) -> Tensor:
    """Mean squared Frobenius norm of the gradient of u, by differences of neighbours.

    Differences of neighbours, unlike central ones, see a displacement that alternates from voxel to voxel.

    Parameters
    ----------
    displacement : Tensor, shape (batch, 3, z, y, x)
        Voxels.
    spacing_mm : tuple of float, optional
        x, y, z. Without it derivatives are voxels by voxel.

    Returns
    -------
    Tensor, scalar
        No unit (mm/mm or voxels/voxel, squared).

    Raises
    ------
    ShapeError
        If the shape is another.
    GeometryError
        If the spacing is not three positive numbers.
    """
    displacement = _checked(displacement)
    unit, spacing = _units(displacement, spacing_mm)
    total = displacement.new_zeros(())
    for axis in range(3):
        total = total + _energy(_difference(displacement, axis), unit / spacing[axis])
    return total


def bending(displacement: Tensor, spacing_mm: Triple | None = None) -> Tensor:
    """Mean squared Frobenius norm of the second derivatives of u; the mixed ones count twice.

    Parameters
    ----------
    displacement : Tensor, shape (batch, 3, z, y, x)
        Voxels.
    spacing_mm : tuple of float, optional
        x, y, z. Without it derivatives are voxels by voxel^2.

    Returns
    -------
    Tensor, scalar
        Per mm^2; without `spacing_mm` per voxel^2.

    Raises
    ------
    ShapeError
        If the shape is another.
    GeometryError
        If the spacing is not three positive numbers.

    References
    ----------
    Rueckert et al., Nonrigid registration using free-form deformations, IEEE Transactions on Medical Imaging 18, 1999.
    """
    displacement = _checked(displacement)
    unit, spacing = _units(displacement, spacing_mm)
    total = displacement.new_zeros(())
    for first, second in combinations_with_replacement(range(3), 2):
        curvature = _difference(_difference(displacement, first), second)
        times = 1 if first == second else 2
        total = total + times * _energy(curvature, unit / (spacing[first] * spacing[second]))
    return total


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Determinant of d phi / d i at each voxel: 1 keeps the volume, 0 or less folds.

    Central differences, one-sided at the border, as `dsir_metric.geometry.DisplacementField` has it.

    Parameters
    ----------
    displacement : Tensor, shape (batch, 3, z, y, x)
        Voxels. The spacing of the grid makes no difference.

    Returns
    -------
    Tensor, shape (batch, z, y, x)

    Raises
    ------
    ShapeError
        If the shape is another.
    """
    displacement = _checked(displacement)
    slopes = [_slope(displacement, axis) for axis in range(3)]
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = (
        [slope[:, k] + (k == axis) for k in range(3)] for axis, slope in enumerate(slopes)
    )
    return ax * (by * cz - bz * cy) - bx * (ay * cz - az * cy) + cx * (ay * bz - az * by)


def fold_penalty(displacement: Tensor, smallest: float = 0.0) -> Tensor:
    """Mean of what the Jacobian determinant lacks to `smallest`; 0 where it lacks nothing.

    Parameters
    ----------
    displacement : Tensor, shape (batch, 3, z, y, x)
        Voxels.
    smallest : float
        Determinant from which on a voxel costs nothing.

    Returns
    -------
    Tensor, scalar

    Raises
    ------
    ShapeError
        If the shape is another.
    """
    return torch.relu(smallest - jacobian_determinant(displacement)).mean()


def _checked(displacement: Tensor) -> Tensor:
    """The displacement in float32 or wider."""
    if displacement.ndim != 5 or displacement.shape[1] != 3 or displacement.numel() == 0:
        raise ShapeError(f"a displacement of shape (batch, 3, z, y, x) is expected; {tuple(displacement.shape)} came")
    return displacement.to(torch.promote_types(displacement.dtype, torch.float32))


def _units(displacement: Tensor, spacing_mm: Triple | None) -> tuple[Tensor, Triple]:
    """Size of a voxel along each component, (1, 3, 1, 1, 1), and along x, y, z; all 1 without a spacing."""
    spacing = spacing_mm or (1.0, 1.0, 1.0)
    if len(spacing) != 3 or not all(isfinite(s) and s > 0 for s in spacing):
        raise GeometryError(f"spacing_mm is three positive numbers, x, y, z; {spacing} came")
    return displacement.new_tensor(spacing).view(1, 3, 1, 1, 1), spacing


def _difference(values: Tensor, axis: int) -> Tensor:
    """Differences of neighbours along x, y or z (0, 1, 2), one fewer than there were voxels."""
    return values.diff(dim=-1 - axis)


def _energy(values: Tensor, factor: Tensor) -> Tensor:
    """Mean over the places of the squared length of `factor` times the vectors; 0 where no place is left."""
    if values.numel() == 0:
        return values.new_zeros(())
    return (values * factor).square().mean() * 3


def _slope(values: Tensor, axis: int) -> Tensor:
    dim = values.ndim - 1 - axis
    if values.shape[dim] == 1:
        return torch.zeros_like(values)
    (slope,) = torch.gradient(values, dim=dim)
    return slope
