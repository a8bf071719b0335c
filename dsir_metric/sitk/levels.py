"""The multi-resolution schedule: virtual grids, smoothing, and transforms that get finer with the levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from dsir_metric.errors import ConfigError
from dsir_metric.geometry import Grid
from dsir_metric.metric.sampling import Strategy
from dsir_metric.represent.representation import Representation
from dsir_metric.sitk.position import FieldPosition, Position
from dsir_metric.sitk.settings import Settings

__all__ = ["Level", "LevelAdaptor", "schedule", "shrunk", "smoothed", "whole_level"]

_STRATEGIES: dict[int, Strategy] = {
    sitk.ImageRegistrationMethod.NONE: "none",
    sitk.ImageRegistrationMethod.REGULAR: "regular",
    sitk.ImageRegistrationMethod.RANDOM: "random",
}


@dataclass(frozen=True)
class Level:
    """One resolution: where points are drawn, and how smooth the images are."""

    index: int
    shrink_factor: int
    virtual: Grid
    sigma: float
    sigma_in_mm: bool
    sampling_strategy: Strategy
    sampling_percentage: float
    sampling_seed: int


def shrunk(grid: Grid, factor: int) -> Grid:
    """The grid of every `factor`-th voxel, as `sitk.Shrink` places it."""
    return grid if factor == 1 else Grid.of(sitk.Shrink(grid.image(), [factor] * grid.dimension))


def schedule(settings: Settings, fixed: Grid) -> list[Level]:
    """The levels that the settings ask for, coarse to fine as they were given.

    Raises
    ------
    ConfigError
        If lists that speak of the same levels have different lengths, or a number is out of range.
    """
    count = len(settings.shrink_factors)
    if len(settings.sigmas) != count:
        raise ConfigError(
            f"{count} shrink factors and {len(settings.sigmas)} smoothing sigmas: give one of each per level"
        )
    percentages = settings.sampling_percentages
    if len(percentages) == 1:
        percentages = percentages * count
    if len(percentages) != count:
        raise ConfigError(f"{len(percentages)} sampling percentages for {count} levels: give one, or one per level")
    if min(settings.shrink_factors, default=0) < 1:
        raise ConfigError(f"shrink factors {settings.shrink_factors} came: one integer of at least 1 per level")
    if settings.sampling_strategy not in _STRATEGIES:
        raise ConfigError(f"sampling strategy {settings.sampling_strategy} is unknown: use NONE, REGULAR or RANDOM")
    domain = _domain(settings, fixed)
    return [
        Level(
            index,
            settings.shrink_factors[index],
            shrunk(domain, settings.shrink_factors[index]),
            settings.sigmas[index],
            settings.sigmas_in_mm,
            _STRATEGIES[settings.sampling_strategy],
            percentages[index],
            settings.sampling_seed,
        )
        for index in range(count)
    ]


def whole_level(settings: Settings, fixed: Grid) -> Level:
    """Every voxel of the virtual domain, nothing smoothed."""
    return Level(0, 1, _domain(settings, fixed), 0.0, True, "none", 1.0, 0)


def _domain(settings: Settings, fixed: Grid) -> Grid:
    return fixed if settings.virtual_domain is None else Grid.of(settings.virtual_domain)


def smoothed(representation: Representation, level: Level) -> Representation:
    """A representation under the Gaussian of a level, in mm or in its own voxels."""
    if level.sigma_in_mm or level.sigma <= 0:
        return representation.smoothed(level.sigma)
    unit = Representation(representation.values, Grid(representation.grid.size))
    return Representation(unit.smoothed(level.sigma).values, representation.grid, representation.provenance)


class LevelAdaptor:
    """Gives a B-spline or a displacement field the resolution of each level, as SimpleITK does.

    A B-spline gets, on each level, the mesh it started with times that level's scale factor; without factors, or of
    order 1, it stays as it is. A displacement field gets the grid it started with, shrunk by the level's shrink factor.
    Other transforms stay as they are.

    Parameters
    ----------
    position : Position
        Before the first level.
    bspline_factors : tuple of int
        One a level, or none.
    fixed : Grid
        Of the fixed image, which the domain of a refined B-spline is laid over.
    """

    def __init__(self, position: Position, bspline_factors: tuple[int, ...], fixed: Grid) -> None:
        self._position = position
        self._factors = bspline_factors
        self._fixed = fixed
        self._field_grid = position.grid if isinstance(position, FieldPosition) else None
        refines = bspline_factors and position.transform.GetOrder() > 1
        self._mesh = np.asarray(position.transform.GetTransformDomainMeshSize()) if refines else None

    def adapt(self, level: Level) -> None:
        """Bring the position to the resolution of a level."""
        if isinstance(self._position, FieldPosition) and self._field_grid is not None:
            _resample_field(self._position, shrunk(self._field_grid, level.shrink_factor))
        elif self._mesh is not None and level.index < len(self._factors) and self._factors[level.index] >= 1:
            domain = shrunk(self._fixed, level.shrink_factor)
            _refine(self._position.transform, self._mesh * self._factors[level.index], domain.origin_mm, self._fixed)


def _resample_field(position: FieldPosition, grid: Grid) -> None:
    if position.grid != grid:
        identity = sitk.Transform(grid.dimension, sitk.sitkIdentity)
        position.set_field(sitk.Resample(position.image(), grid.image(), identity, sitk.sitkLinear, 0.0))


def _refine(transform: Any, mesh: Any, origin_mm: tuple[float, ...], fixed: Grid) -> None:
    """Give a B-spline another mesh over the box of the fixed image, its shape kept.

    As in ITK, it is read with cubic splines whatever its own order: a quadratic one changes a little.
    """
    order, axes = transform.GetOrder(), fixed.dimension
    edge = np.asarray(fixed.spacing_mm[:axes]) * (np.asarray(fixed.size[:axes]) - 1) / mesh
    direction = np.reshape(fixed.direction, (3, 3))[:axes, :axes]
    lattice = sitk.Image([int(n) + order for n in mesh], sitk.sitkFloat64)
    lattice.SetSpacing(edge.tolist())
    lattice.SetOrigin((np.asarray(origin_mm[:axes]) - direction @ edge * (order - 1) / 2).tolist())
    lattice.SetDirection(direction.ravel().tolist())
    if np.allclose(transform.GetFixedParameters(), _fixed_parameters(lattice), rtol=0, atol=1e-9):
        return
    identity = sitk.Transform(axes, sitk.sitkIdentity)
    coefficients = []
    for component in transform.GetCoefficientImages():
        values = sitk.Resample(component, lattice, identity, sitk.sitkBSplineResamplerOrder3, 0.0)
        coefficients.append(sitk.GetArrayFromImage(sitk.BSplineDecomposition(values, order)).ravel())
    transform.SetFixedParameters(_fixed_parameters(lattice))
    transform.SetParameters(np.concatenate(coefficients).tolist())


def _fixed_parameters(lattice: sitk.Image) -> list[float]:
    parts = (lattice.GetSize(), lattice.GetOrigin(), lattice.GetSpacing(), lattice.GetDirection())
    return [float(v) for part in parts for v in part]
