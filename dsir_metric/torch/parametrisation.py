"""Two ways to write a smooth field by coefficients: a cubic B-spline lattice, and one vector a voxel.

Either gives the field (1, 3, z, y, x) on a grid, components x, y, z along the axes of the grid, in its voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.register.freeform import FreeForm
from dsir_metric.torch.regularity import diffusion
from dsir_metric.torch.warp import resize

__all__ = ["BSplineField", "DenseField", "Field", "to_mm"]


class Field(Protocol):
    """A field on the voxels of `grid` that depends linearly on coefficients."""

    grid: Grid

    def values(self, coefficients: Tensor) -> Tensor:
        """The field, (1, 3, z, y, x), in voxels."""
        ...

    def penalty(self, coefficients: Tensor) -> Tensor:
        """Weighted lack of smoothness, no unit."""
        ...


class BSplineField:
    """A free-form deformation; coefficients (3, cz, cy, cx) in LPS mm, those of `FreeForm`.

    Parameters
    ----------
    freeform : FreeForm
    grid : Grid
        Along the axes of the lattice.
    weights : tuple of float
        Of diffusion (no unit) and of bending (mm^2), see `FreeForm.smoothness`.
    device : torch.device
    """

    def __init__(self, freeform: FreeForm, grid: Grid, weights: tuple[float, float], device: torch.device) -> None:
        self.grid, self.shape = grid, freeform.shape
        self._bases = [_tensor(b, device) for b in freeform.bases(grid)]
        self._terms = [(w, [_tensor(g, device) for g in grams]) for w, grams in freeform.quadratic_terms(*weights)]
        self._to_voxels = _tensor(grid.inverse_matrix, device)

    def values(self, coefficients: Tensor) -> Tensor:
        """See `Field`."""
        return torch.einsum("ij,jzyx->izyx", self._to_voxels, _separable(coefficients, self._bases))[None]

    def penalty(self, coefficients: Tensor) -> Tensor:
        """See `Field`; the exact integral over the box."""
        half = torch.zeros_like(coefficients)
        for weight, grams in self._terms:
            half = half + weight * _separable(coefficients, grams)
        return (half * coefficients).sum()


class DenseField:
    """One vector a voxel; coefficients (1, 3, z, y, x), components x, y, z along the axes, in half edges of the grid.

    Parameters
    ----------
    grid : Grid
    weight : float
        Of diffusion.
    device : torch.device
    """

    def __init__(self, grid: Grid, weight: float, device: torch.device) -> None:
        self.grid, self.shape, self._weight = grid, (1, 3, *grid.shape), weight
        self._half_edges = torch.tensor(grid.size, dtype=torch.float32, device=device).view(1, 3, 1, 1, 1) / 2

    def values(self, coefficients: Tensor) -> Tensor:
        """See `Field`."""
        return coefficients * self._half_edges

    def penalty(self, coefficients: Tensor) -> Tensor:
        """See `Field`."""
        return self._weight * diffusion(self.values(coefficients), self.grid.spacing_mm)

    def coefficients(self, values: Tensor) -> Tensor:
        """Coefficients of a field in voxels of any grid over the same box."""
        return resize(values, self.grid.shape) / self._half_edges

    def refined(self, coarse: Tensor) -> Tensor:
        """Coefficients of the same field, from those on another grid over the same box."""
        return F.interpolate(coarse, size=self.grid.shape, mode="trilinear", align_corners=False)


def to_mm(values: Tensor, grid: Grid) -> DisplacementField:
    """A field in voxels along the axes of `grid`, (1, 3, z, y, x), in LPS mm."""
    return DisplacementField.from_voxels(values[0].detach().cpu().numpy(), grid)


def _tensor(array: NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32).to(device)


def _separable(coefficients: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """Rows of z, y, x applied to the three last axes of (3, cz, cy, cx)."""
    along_z, along_y, along_x = bases
    parts, cz, cy, cx = coefficients.shape
    out = (along_z @ coefficients.reshape(parts, cz, cy * cx)).reshape(-1, cy, cx)
    return (along_y @ out @ along_x.T).reshape(parts, len(along_z), len(along_y), len(along_x))
