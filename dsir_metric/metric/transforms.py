"""The chain rule from points to the parameters of any SimpleITK transform.

`point_map` turns a transform into a `PointMap`, which maps points and carries derivatives back, first to the point
that came in, then to the parameters. It follows ITK to the letter: which points a B-spline moves, how a displacement
field ends, the order inside a composite transform, and that only the transform added last has free parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, ShapeError
from dsir_metric.geometry import Grid, named
from dsir_metric.metric import lattice
from dsir_metric.metric.compiled import Part, parallel

__all__ = ["ChainMap", "LatticeMap", "LinearMap", "PointMap", "concrete", "point_map"]

Points = NDArray[np.float64]
_BLOCK = 4096  # points summed in one go; fixed, so that sums do not depend on the number of threads
_REACH_MM = 100.0  # length over which the matrix of a linear transform is probed
_STEP = 1e-5  # parameter step of the central differences


class PointMap(Protocol):
    """A map of points with its derivatives; points and gradients are float64 arrays (n, 3), LPS mm."""

    @property
    def parameters(self) -> int:
        """Number of free parameters."""
        ...

    def map(self, points: Points) -> Points:
        """Where `points` go."""
        ...

    def pull_to_points(self, points: Points, gradients: Points) -> Points:
        """Gradients with respect to the mapped points, carried back to `points`: J(p)^T g."""
        ...

    def pull_to_parameters(self, points: Points, gradients: Points, into: NDArray[np.float64]) -> None:
        """Add the derivative of sum <g, map(p)> with respect to each parameter to `into` (parameters,)."""
        ...


class LinearMap:
    """p -> A p + b, whatever the parameters mean: their effect on A and b is read from the transform itself.

    Parameters
    ----------
    transform : sitk.Transform
        Any transform whose `IsLinear()` holds; one of the plane leaves z as it is.
    """

    def __init__(self, transform: sitk.Transform) -> None:
        self._transform = transform
        self.matrix, self.offset = _matrix_and_offset(transform)

    @property
    def parameters(self) -> int:
        """Number of free parameters."""
        return int(self._transform.GetNumberOfParameters())

    @cached_property
    def sensitivities(self) -> NDArray[np.float64]:
        """Derivative of (A, b) with respect to each parameter, (parameters, 3, 4), by central differences."""
        probe = type(self._transform)(self._transform)
        centre = np.array(probe.GetParameters())
        step = _STEP * _room_of_versor(probe)
        slopes = np.empty((len(centre), 3, 4))
        for k in range(len(centre)):
            ends = []
            for sign in (1, -1):
                moved = centre.copy()
                moved[k] += sign * step
                probe.SetParameters(moved.tolist())
                ends.append((moved[k], np.column_stack(_matrix_and_offset(probe))))
            slopes[k] = (ends[0][1] - ends[1][1]) / (ends[0][0] - ends[1][0])
        return slopes

    def map(self, points: Points) -> Points:
        """Where `points` go."""
        out = np.empty_like(points)
        _apply(points, self.matrix, self.offset, out)
        return out

    def pull_to_points(self, points: Points, gradients: Points) -> Points:
        """Gradients with respect to the mapped points, carried back to `points`: A^T g."""
        out = np.empty_like(gradients)
        _apply(gradients, np.ascontiguousarray(self.matrix.T), np.zeros(3), out)
        return out

    def pull_to_parameters(self, points: Points, gradients: Points, into: NDArray[np.float64]) -> None:
        """Add <dA, sum g p^T> + <db, sum g> for each parameter to `into`."""
        sums = np.empty(((len(points) + _BLOCK - 1) // _BLOCK, 3, 4))
        _moments(points, gradients, sums)
        into += np.tensordot(self.sensitivities, sums.sum(axis=0), axes=2)


class LatticeMap:
    """p -> p + u(p) with u on a lattice: a B-spline transform or a displacement field.

    Parameters
    ----------
    grid : Grid
        Where the coefficients lie.
    coefficients : ndarray of float64, shape (z, y, x, dimension of the grid)
        Displacements in mm.
    order : int
        Order of the B-spline between coefficients.
    low, high : ndarray of float64, shape (3,)
        Points whose continuous index (x, y, z) is not in [low, high) stay where they are.
    component_first : bool
        Order of the parameters: all x components, then all y, then all z (B-spline), or interleaved (field).
    """

    def __init__(
        self,
        grid: Grid,
        coefficients: NDArray[np.float64],
        order: int,
        bounds: tuple[NDArray[np.float64], NDArray[np.float64]],
        *,
        component_first: bool,
    ) -> None:
        self._dimension = grid.dimension
        still = [(0, 0)] * 3 + [(0, 3 - grid.dimension)]
        self._coefficients = np.ascontiguousarray(np.pad(coefficients, still) if grid.dimension < 3 else coefficients)
        self._place = (grid.inverse_matrix, -grid.inverse_matrix @ np.array(grid.origin_mm), order, *bounds)
        self._component_first = component_first

    @classmethod
    def of_bspline(cls, transform: sitk.BSplineTransform) -> LatticeMap:
        """Map of a B-spline transform; the identity outside its valid region, as in ITK."""
        images, order = transform.GetCoefficientImages(), int(transform.GetOrder())
        if order == 0:
            raise ConfigError("a B-spline transform of order 0 moves no point in ITK: use order 1, 2 or 3")
        grid = Grid.of(images[0])
        coefficients = np.stack([sitk.GetArrayViewFromImage(i).reshape(grid.shape) for i in images], axis=-1)
        # ITK takes an index within 4 units in the last place of the border for one inside.
        margin, slack = 0.5 * (order - 1), 4 * np.finfo(float).eps
        low, high = np.full(3, margin), np.array(grid.size) - margin - 1
        low, high = low - slack * np.abs(low), high + slack * np.abs(high)
        low[grid.dimension :], high[grid.dimension :] = -0.5, 0.5
        return cls(grid, coefficients, order, (low, high), component_first=True)

    @classmethod
    def of_field(cls, transform: sitk.DisplacementFieldTransform) -> LatticeMap:
        """Map of a displacement field transform; zero displacement outside the field, as in ITK."""
        if transform.GetNumberOfParameters() == 0:
            raise ConfigError("the displacement field transform is empty: make it from a field image first")
        image = transform.GetDisplacementField()
        grid = Grid.of(image)
        bounds = (np.full(3, -0.5), np.array(grid.size) - 0.5)
        values = sitk.GetArrayFromImage(image).reshape(*grid.shape, grid.dimension)
        return cls(grid, values, 1, bounds, component_first=False)

    @property
    def parameters(self) -> int:
        """Number of free parameters."""
        return int(self._coefficients[..., : self._dimension].size)

    def map(self, points: Points) -> Points:
        """Where `points` go."""
        out = np.empty_like(points)
        lattice.displace(self._coefficients, points, *self._place, out)
        return out

    def pull_to_points(self, points: Points, gradients: Points) -> Points:
        """Gradients with respect to the mapped points, carried back to `points`: (I + du/dp)^T g."""
        out = np.empty_like(gradients)
        lattice.pull_gradients(self._coefficients, points, gradients, *self._place, out)
        return out

    def pull_to_parameters(self, points: Points, gradients: Points, into: NDArray[np.float64]) -> None:
        """Add the transpose of the interpolation, applied to `gradients`, to `into`."""
        shape = self._coefficients.shape
        at_once = not self._component_first and into.size == self._coefficients.size
        target = into.reshape(shape) if at_once else np.zeros(shape)
        lattice.scatter(points, gradients, *self._place, target)
        if not at_once:
            free = target[..., : self._dimension]
            into += (np.moveaxis(free, -1, 0) if self._component_first else free).ravel()


class ChainMap:
    """Maps one after another; the first one applied has the free parameters.

    Parameters
    ----------
    maps : sequence of PointMap
        In the order in which points pass through them.
    """

    def __init__(self, maps: Sequence[PointMap]) -> None:
        self._maps = list(maps)

    @property
    def parameters(self) -> int:
        """Number of free parameters."""
        return self._maps[0].parameters

    def map(self, points: Points) -> Points:
        """Where `points` go."""
        for step in self._maps:
            points = step.map(points)
        return points

    def pull_to_points(self, points: Points, gradients: Points) -> Points:
        """Gradients with respect to the mapped points, carried back to `points`."""
        return self._maps[0].pull_to_points(points, self._pull_to_first(points, gradients))

    def pull_to_parameters(self, points: Points, gradients: Points, into: NDArray[np.float64]) -> None:
        """Add the derivative with respect to the parameters of the first map to `into`."""
        self._maps[0].pull_to_parameters(points, self._pull_to_first(points, gradients), into)

    def _pull_to_first(self, points: Points, gradients: Points) -> Points:
        """Gradients at the output of the last map, carried back to the output of the first."""
        stops = [self._maps[0].map(points)] if len(self._maps) > 1 else []
        for step in self._maps[1:-1]:
            stops.append(step.map(stops[-1]))
        for step, stop in zip(reversed(self._maps[1:]), reversed(stops), strict=True):
            gradients = step.pull_to_points(stop, gradients)
        return gradients


def point_map(transform: sitk.Transform, dimension: int = 3) -> PointMap:
    """Point map of any SimpleITK transform.

    Parameters
    ----------
    transform : sitk.Transform
        Linear (identity, translation, Euler, versor, similarity, scale, affine, ...), B-spline, displacement field,
        or a composite of those. It is read now: later changes to it are not seen.
    dimension : int
        What is expected of the transform. One of dimension 2 moves points of space (n, 3) within their plane.

    Raises
    ------
    ShapeError
        If the transform has another dimension.
    ConfigError
        If it is of a kind without a known derivative, or an empty composite.
    """
    if transform.GetDimension() != dimension:
        raise ShapeError(f"a {dimension}-D transform is expected; a {transform.GetDimension()}-D one came")
    own = concrete(transform)
    if isinstance(own, sitk.CompositeTransform):
        count = own.GetNumberOfTransforms()
        if count == 0:
            raise ConfigError("a composite transform without transforms has no parameters to move: add one")
        return ChainMap([point_map(own.GetNthTransform(i), dimension) for i in reversed(range(count))])
    if isinstance(own, sitk.BSplineTransform):
        return LatticeMap.of_bspline(own)
    if isinstance(own, sitk.DisplacementFieldTransform):
        return LatticeMap.of_field(own)
    if own.IsLinear():
        return LinearMap(own)
    raise ConfigError(f"no derivative is known for a {own.GetName()}: use a linear, B-spline or displacement one")


def concrete(transform: sitk.Transform) -> sitk.Transform:
    """The transform as its own class, where it came as the general `sitk.Transform`; see also `named`."""
    transform = named(transform)
    if type(transform) is not sitk.Transform:
        return transform
    try:
        own: sitk.Transform = transform.Downcast()
    except KeyError:  # SimpleITK 2.5 does not know every kind here; those it forgets are linear
        return transform
    return own


def _matrix_and_offset(transform: sitk.Transform) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    axes = transform.GetDimension()
    matrix, offset = np.eye(3), np.zeros(3)
    offset[:axes] = transform.TransformPoint((0.0,) * axes)
    ends = [transform.TransformPoint(tuple(end)) for end in (_REACH_MM * np.eye(axes)).tolist()]
    matrix[:axes, :axes] = (np.array(ends) - offset[:axes]).T / _REACH_MM
    return matrix, offset


def _room_of_versor(transform: sitk.Transform) -> float:
    """1 - |v|^2 of a versor, 1 for other transforms: how far a parameter may go before the rotation ends at 180 deg."""
    if not hasattr(transform, "GetVersor"):
        return 1.0
    return max(float(transform.GetVersor()[3]) ** 2, 1e-6)


@parallel("points", 16 * _BLOCK)
def _apply(part: Part, points: NDArray[Any], matrix: NDArray[Any], offset: NDArray[Any], out: NDArray[Any]) -> None:
    for i in range(part[0], part[1]):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        for axis in range(3):
            out[i, axis] = matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 2] * z + offset[axis]


@parallel("sums", 8)
def _moments(part: Part, points: NDArray[Any], gradients: NDArray[Any], sums: NDArray[Any]) -> None:
    """Sum of g p^T and of g over blocks of points, into `sums` (blocks, 3, 4)."""
    for block in range(part[0], part[1]):
        total = np.zeros((3, 4))
        for i in range(block * _BLOCK, min((block + 1) * _BLOCK, len(points))):
            for row in range(3):
                for column in range(3):
                    total[row, column] += gradients[i, row] * points[i, column]
                total[row, 3] += gradients[i, row]
        sums[block] = total
