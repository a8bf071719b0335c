"""Free-form deformation: a cubic B-spline displacement on a lattice, its transpose and its smoothness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError
from dsir_metric.geometry import DisplacementField, Grid

__all__ = ["FreeForm"]

Array = NDArray[np.float64]
_MOST_CONTROL_POINTS = 4_000_000  # L-BFGS keeps some twenty vectors of three numbers each: 2 GB
# Chosen on tuning pairs, of one patient and of two.
_DIFFUSION_SHARE = 1 / 3
_BENDING_PENALTY = 0.0127  # of a pair that the weight of bending suits, in units of the cosine
_ROUGHNESS_PER_MM6 = 1.7e-8  # up to which displacements look like those between scans of one patient


def _cubic(t: Array, derivative: int) -> Array:
    """Weights (n, 4), or their derivatives, of the four cubic B-splines over a cell at t in [0, 1]."""
    one = np.ones_like(t)
    rows = {
        0: [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6],
        1: [-((1 - t) ** 2) / 2, 1.5 * t**2 - 2 * t, -1.5 * t**2 + t + 0.5, t**2 / 2],
        2: [1 - t, 3 * t - 2, 1 - 3 * t, t * one],
    }
    return np.stack(rows[derivative], axis=-1)


class FreeForm:
    """Displacement u(x), LPS mm, of a B-spline lattice over the box of a grid.

    Parameters
    ----------
    grid : Grid
        The box is that of its voxels; the lattice runs along its axes.
    lattice_mm : float
        Wanted distance of control points; made smaller where needed to divide the box into whole cells.

    Raises
    ------
    ConfigError
        If there would be more than 4 million control points.

    Notes
    -----
    Coefficients are arrays (3, cz, cy, cx), in mm, with three more control points than cells on each axis: raveled,
    they are the parameters of a `sitk.BSplineTransform`. Evaluation on a grid is separable: three matrix products.
    """

    def __init__(self, grid: Grid, lattice_mm: float) -> None:
        self.grid = grid
        self.cells = np.maximum(np.ceil(grid.extent_mm / lattice_mm - 1e-9).astype(int), 1)
        count = math.prod(int(n) + 3 for n in self.cells)
        if count > _MOST_CONTROL_POINTS:
            raise ConfigError(
                f"lattice_mm must give up to {_MOST_CONTROL_POINTS} control points, got {count} at {lattice_mm:g} mm; "
                "take a larger distance"
            )
        self.step_mm = grid.extent_mm / self.cells

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the coefficients (3, cz, cy, cx)."""
        return (3, int(self.cells[2]) + 3, int(self.cells[1]) + 3, int(self.cells[0]) + 3)

    def _rows(self, axis: int, positions: Array, derivative: int = 0) -> Array:
        """(n, coefficients) weights along `axis` (0 = x) at positions in cells from the edge of the box."""
        cell = np.clip(np.floor(positions).astype(int), 0, self.cells[axis] - 1)
        weights = _cubic(positions - cell, derivative)
        rows = np.zeros((len(positions), self.cells[axis] + 3))
        np.put_along_axis(rows, cell[:, None] + np.arange(4), weights, axis=1)
        return rows

    def bases(self, grid: Grid) -> tuple[Array, Array, Array]:
        """Weights (z, y, x) that take coefficients to the voxels of `grid`, whose axes and box are the lattice's."""
        edge = self.grid.to_physical((-0.5, -0.5, -0.5))
        axes = np.reshape(self.grid.direction, (3, 3))
        start = (np.asarray(grid.origin_mm) - edge) @ axes
        steps = np.asarray(grid.spacing_mm)
        x, y, z = (self._rows(a, (start[a] + np.arange(grid.size[a]) * steps[a]) / self.step_mm[a]) for a in range(3))
        return z, y, x

    @staticmethod
    def evaluate(coefficients: Array, bases: Sequence[Array]) -> Array:
        """Displacements (3, z, y, x) mm on the grid of `bases`."""
        along_z, along_y, along_x = bases
        parts, cz, cy, cx = coefficients.shape
        out: Array = np.matmul(along_z, coefficients.reshape(parts, cz, cy * cx))
        out = np.matmul(along_y, out.reshape(-1, cy, cx))
        return (out.reshape(-1, cx) @ along_x.T).reshape(parts, len(along_z), len(along_y), len(along_x))

    @staticmethod
    def transpose(gradients: Array, bases: Sequence[Array]) -> Array:
        """Derivative with respect to the coefficients, from derivatives (3, z, y, x) with respect to displacements."""
        along_z, along_y, along_x = bases
        parts, z, y, x = gradients.shape
        out: Array = gradients.reshape(-1, x) @ along_x
        out = np.matmul(along_y.T, out.reshape(parts * z, y, -1))
        out = np.matmul(along_z.T, out.reshape(parts, z, -1))
        return out.reshape(parts, along_z.shape[1], along_y.shape[1], along_x.shape[1])

    @cached_property
    def _grams(self) -> list[list[Array]]:
        """grams[axis][k]: mean product of the k-th derivatives (per mm) of each two basis functions, axes z, y, x."""
        nodes, weights = np.polynomial.legendre.leggauss(4)
        out = []
        for axis in (2, 1, 0):
            count = int(self.cells[axis])
            positions = (np.arange(count)[:, None] + (nodes + 1) / 2).ravel()
            mass = np.tile(weights / 2, count) / count
            rows = [self._rows(axis, positions, k) / self.step_mm[axis] ** k for k in range(3)]
            out.append([r.T @ (mass[:, None] * r) for r in rows])
        return out

    def quadratic_terms(self, diffusion: float, bending_mm2: float) -> list[tuple[float, list[Array]]]:
        """Weights and Gram matrices (z, y, x) of `smoothness`: it is the sum of weight * <c, G c>, G their product."""
        orders = [(diffusion, o) for o in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
        orders += [(bending_mm2, o) for o in ((2, 0, 0), (0, 2, 0), (0, 0, 2))]
        orders += [(2 * bending_mm2, o) for o in ((1, 1, 0), (1, 0, 1), (0, 1, 1))]
        return [(weight, [self._grams[a][k] for a, k in enumerate(order)]) for weight, order in orders]

    def smoothness(self, coefficients: Array, diffusion: float, bending_mm2: float) -> tuple[float, Array]:
        """Smoothness penalty over the box, by exact integrals, and its derivative with respect to the coefficients.

        It is diffusion * mean |grad u|^2 + bending * mean |grad grad u|^2, Frobenius norms.
        """
        half = np.zeros(coefficients.shape)
        for weight, grams in self.quadratic_terms(diffusion, bending_mm2):
            half += weight * self.evaluate(coefficients, grams)
        return float((half * coefficients).sum()), 2 * half

    def adapted(self, coefficients: Array, diffusion: float, bending_mm2: float) -> tuple[float, float]:
        """Weights of smoothness for a finer lattice, from what they have left in `coefficients` of a coarser one.

        Diffusion holds displacements where descriptors say little. On a lattice that starts near the truth it is in the
        way, as every stretch costs: a third of it is left.

        Were displacements drawn from the prior that a weight w of bending stands for, its penalty p = w E, with E the
        bending energy, would be the same for every pair. It is not: where it is small, a heavier weight had done, where
        it is large, the pair asks for a lighter one. As E falls about with the square root of w, p is as it should be
        at w (b / p)^2; this factor is held between 1/2 and 2.

        Between people displacements have short waves too, which such weights all but hide. What is left of them shows
        in E / D, with D the mean squared gradient: the mean squared wave number. Where p (E / D)^3 is above what scans
        of one patient have, however far apart they lie, the weight falls with its fifth power, to w / 16 at most.

        Parameters
        ----------
        coefficients : ndarray of float64, shape (3, cz, cy, cx), mm
        diffusion, bending_mm2 : float
            Those they were found with; bending in mm^2.

        Returns
        -------
        diffusion, bending_mm2 : float
        """
        energy, _ = self.smoothness(coefficients, 0.0, 1.0)
        gradient, _ = self.smoothness(coefficients, 1.0, 0.0)
        penalty = max(bending_mm2 * energy, 1e-9)
        size = min(max((_BENDING_PENALTY / penalty) ** 2, 0.5), 2.0)
        roughness = penalty * (energy / max(gradient, 1e-12)) ** 3
        length = (_ROUGHNESS_PER_MM6 / max(roughness, _ROUGHNESS_PER_MM6)) ** 5
        return _DIFFUSION_SHARE * diffusion, max(size * length, 1 / 16) * bending_mm2

    def refine(self, coefficients: Array, finer: FreeForm) -> Array:
        """Coefficients on a `finer` lattice over the same box with (nearly) the same displacement: least squares."""
        fits: list[Array] = []
        for axis in (2, 1, 0):
            share = np.linspace(0, 1, 4 * int(finer.cells[axis]) + 1)
            old, new = self._rows(axis, share * self.cells[axis]), finer._rows(axis, share * finer.cells[axis])
            fits.append(np.asarray(np.linalg.lstsq(new, old, rcond=None)[0], float))
        return self.evaluate(coefficients, fits)

    def approximate(self, field: DisplacementField) -> Array:
        """Coefficients whose displacement is nearest to that of a `field` along the lattice's axes: least squares."""
        inverses = [np.asarray(np.linalg.pinv(basis), float) for basis in self.bases(field.grid)]
        return self.evaluate(np.ascontiguousarray(np.moveaxis(field.values, -1, 0)), inverses)

    def to_transform(self, coefficients: Array) -> sitk.BSplineTransform:
        """The same displacement as a SimpleITK transform (identity outside the box)."""
        transform = sitk.BSplineTransform(3, 3)
        transform.SetTransformDomainDirection(self.grid.direction)
        transform.SetTransformDomainOrigin(self.grid.to_physical((-0.5, -0.5, -0.5)).tolist())
        transform.SetTransformDomainPhysicalDimensions(self.grid.extent_mm.tolist())
        transform.SetTransformDomainMeshSize([int(n) for n in self.cells])
        transform.SetParameters(coefficients.ravel().tolist())
        return transform
