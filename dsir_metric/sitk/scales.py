"""What one unit of each parameter does to points, so that parameters of different units can share a step.

The rules are those of ITK's `RegistrationParameterScalesEstimator` family. For linear transforms they look at the
corner voxels of the virtual domain. For B-splines and displacement fields the scales look at a box of voxels
around its centre, and the size of a step at all voxels.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate

from dsir_metric.geometry import Grid
from dsir_metric.metric.transforms import point_map
from dsir_metric.sitk.position import FieldPosition, Position
from dsir_metric.sitk.settings import ScalesChoice

__all__ = ["ScaleEstimator"]

Vector = NDArray[np.float64]
_EPSILON = sys.float_info.epsilon


@dataclass(frozen=True)
class ScaleEstimator:
    """Scales of parameters and of steps on one level.

    Parameters
    ----------
    choice : ScalesChoice
        Kind ("physical shift", "index shift" or "jacobian"), radius of the central box, size of the probing step.
    position : Position
        The transform that is optimised, at its present parameters.
    moving_initial : sitk.Transform or None
        Applied after it.
    virtual, moving : Grid
        The virtual domain of this level; the moving image, whose voxels index shifts are counted in.
    """

    choice: ScalesChoice
    position: Position
    moving_initial: Any
    virtual: Grid
    moving: Grid

    def maximum_step(self) -> float:
        """The default length of a step: the smallest spacing of the virtual domain, mm."""
        return min(self.virtual.spacing_mm)

    def scales(self) -> Vector:
        """One scale for each (local) parameter."""
        if self.choice.kind == "jacobian":
            return self._mean_squared_jacobian()
        shifts = self._bspline_shifts() if self.position.is_bspline else self._probed_shifts()
        moves = shifts > _EPSILON
        if not moves.any():
            return np.ones_like(shifts)
        smallest = shifts[moves].min()
        if self.position.is_bspline:
            return np.full_like(shifts, smallest)
        return np.asarray((np.where(moves, shifts, smallest) / self.choice.small_variation) ** 2)

    def step_scale(self, step: Vector) -> float:
        """How far a step moves points: at most, or on average for the Jacobian; mm or voxels."""
        if self.choice.kind == "jacobian":
            return float(np.linalg.norm(self._directional(step, self._step_grid), axis=1).mean())
        if self._is_local:
            return self._largest_shift(step, self._step_grid)
        largest = np.abs(step).max(initial=0.0)
        if largest <= _EPSILON:
            return 0.0
        factor = self.choice.small_variation / largest
        return float(self._largest_shift(step * factor, self._step_grid) / factor)

    def step_limit(self, step: Vector) -> float:
        """What `step_scale` cannot exceed: for thousands of coefficients a quick bound, otherwise itself.

        A B-spline moves no point further than the coefficient that moves furthest, nor does a field whose update is
        smoothed. To ask all voxels, as `step_scale` does, takes longer than the metric on a sample of them.
        """
        position = self.position
        averages = position.is_bspline or (isinstance(position, FieldPosition) and position.only_update_is_smoothed)
        if not averages or not (self.moving_initial is None or self.moving_initial.IsLinear()):
            return self.step_scale(step)
        axes = -1 if position.is_field else 0
        moves = step.reshape((-1, self._axes) if position.is_field else (self._axes, -1))
        stretch = np.linalg.norm(self._in_unit(self._component_shifts()), 2)
        return float(stretch * np.linalg.norm(moves, axis=axes).max(initial=0.0))

    @property
    def _is_local(self) -> bool:
        return self.position.is_field or self.position.is_bspline

    @cached_property
    def _corners(self) -> Grid:
        size = np.asarray(self.virtual.size)
        spacing = np.asarray(self.virtual.spacing_mm) * np.maximum(size - 1, 1)
        return replace(self.virtual, size=_ints(np.minimum(size, 2)), spacing_mm=_floats(spacing))

    @cached_property
    def _centre(self) -> Grid:
        middle = (np.asarray(self.virtual.size) - 1) // 2
        low = np.maximum(middle - self.choice.central_region_radius, 0)
        high = np.minimum(middle + self.choice.central_region_radius, np.asarray(self.virtual.size) - 1)
        origin = self.virtual.to_physical(low)
        return replace(self.virtual, size=_ints(high - low + 1), origin_mm=_floats(origin))

    @property
    def _step_grid(self) -> Grid:
        return self.virtual if self._is_local else self._corners

    @property
    def _scale_grid(self) -> Grid:
        return self._centre if self._is_local else self._corners

    def _map(self, grid: Grid) -> Vector:
        """Where the voxel centres of a grid go, (n, 3), x fastest, LPS mm."""
        points = grid.points_mm().reshape(-1, 3)
        return self._after(point_map(self.position.transform, self._axes).map(points))

    def _after(self, points: Vector) -> Vector:
        return points if self.moving_initial is None else point_map(self.moving_initial, self._axes).map(points)

    @property
    def _axes(self) -> int:
        return self.virtual.dimension

    def _in_unit(self, shifts: Vector) -> Vector:
        return shifts @ self.moving.inverse_matrix.T if self.choice.kind == "index shift" else shifts

    def _largest_shift(self, step: Vector, grid: Grid) -> float:
        before = self.position.parameters
        start = self._map(grid)
        self.position.step(step)
        shifts = self._in_unit(self._map(grid) - start)
        self.position.move_to(before)
        return float(np.linalg.norm(shifts, axis=1).max())

    def _probed_shifts(self) -> Vector:
        """Largest shift by `small_variation` of each (local) parameter."""
        count = self.position.parameters.size
        offset = _offset_of_centre(self.position, self.virtual) if isinstance(self.position, FieldPosition) else 0
        shifts = []
        for k in range(self.position.local_size):
            step = np.zeros(count)
            step[offset + k] = self.choice.small_variation
            shifts.append(self._largest_shift(step, self._scale_grid))
        return np.array(shifts)

    def _bspline_shifts(self) -> Vector:
        """The same for a B-spline, from its basis functions: probing thousands of coefficients would take minutes."""
        largest = _largest_weights(self.position.transform, self._centre)
        lengths = np.linalg.norm(self._in_unit(self._component_shifts()), axis=1)
        return np.asarray(np.outer(lengths, largest).ravel() * self.choice.small_variation)

    def _component_shifts(self) -> Vector:
        """Where unit displacements along each axis go under the moving initial transform, at the centre; rows."""
        units = self._after(np.vstack([np.zeros(3), np.eye(3)[: self._axes]]) + self.virtual.centre_mm)
        return np.asarray(units[1:] - units[0])

    def _directional(self, step: Vector, grid: Grid) -> Vector:
        """Derivative of the mapped points of a grid along `step`, by central differences."""
        before = self.position.parameters
        size = 1e-4 / max(np.abs(step).max(initial=0.0), _EPSILON)
        self.position.move_to(before + size * step)
        forward = self._map(grid)
        self.position.move_to(before - size * step)
        backward = self._map(grid)
        self.position.move_to(before)
        return np.asarray((forward - backward) / (2 * size))

    def _mean_squared_jacobian(self) -> Vector:
        lengths = (self._component_shifts() ** 2).sum(axis=1)
        if self.position.is_field:
            return np.asarray(lengths)
        if self.position.is_bspline:
            return np.asarray(np.outer(lengths, _mean_squared_weights(self.position.transform, self._centre)).ravel())
        steps = np.eye(self.position.local_size)
        return np.array([(self._directional(step, self._corners) ** 2).sum(axis=1).mean() for step in steps])


def _ints(values: Any) -> tuple[int, int, int]:
    return (int(values[0]), int(values[1]), int(values[2]))


def _floats(values: Any) -> tuple[float, float, float]:
    return (float(values[0]), float(values[1]), float(values[2]))


def _offset_of_centre(position: FieldPosition, virtual: Grid) -> int:
    """Place of the first parameter of the voxel at the centre of the virtual domain."""
    middle = virtual.to_physical((np.asarray(virtual.size) - 1) // 2)
    x, y, z = np.clip(np.rint(position.grid.to_index(middle)).astype(int), 0, np.asarray(position.grid.size) - 1)
    return position.local_size * int(np.ravel_multi_index((z, y, x), position.grid.shape))


def _basis(transform: Any, grid: Grid) -> tuple[Vector, Vector, Vector]:
    """Values of the B-spline's one-dimensional basis functions at the points of a grid: (points, controls) an axis.

    In 2-D, those along z are one everywhere.
    """
    lattice = Grid.of(transform.GetCoefficientImages()[0])
    order = transform.GetOrder()
    kernel = interpolate.BSpline.basis_element(np.arange(order + 2) - (order + 1) / 2, extrapolate=False)
    index = lattice.to_index(grid.points_mm().reshape(-1, 3))
    axes = [np.nan_to_num(kernel(index[:, [d]] - np.arange(lattice.size[d]))) for d in range(lattice.dimension)]
    x, y, z = (*axes, np.ones((len(index), 1)))[:3]
    return x, y, z


def _largest_weights(transform: Any, grid: Grid) -> Vector:
    x, y, z = _basis(transform, grid)
    plane = (y[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    return np.array([(plane * z[:, [k]]).max(axis=0) for k in range(z.shape[1])]).ravel()


def _mean_squared_weights(transform: Any, grid: Grid) -> Vector:
    x, y, z = _basis(transform, grid)
    return np.asarray(np.einsum("nk,nj,ni->kji", z**2, y**2, x**2, optimize=True).ravel() / len(x))
