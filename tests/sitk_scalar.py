"""A scalar mean-squares metric and the native one, side by side, for the tests of the SimpleITK face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from dsir_metric.errors import RegistrationError
from dsir_metric.geometry import Grid
from dsir_metric.metric.transforms import ChainMap, point_map
from dsir_metric.sitk import ImageRegistrationMethod
from dsir_metric.sitk.levels import Level
from dsir_metric.sitk.settings import Settings


class MeanSquares:
    """ITK's MeanSquares metric without sampling and masks: linear values, Gaussian-derivative gradients."""

    def __init__(self, fixed: sitk.Image, moving: sitk.Image, virtual: Grid, after: Any) -> None:
        self._virtual, self._after, self._grid = virtual, after, Grid.of(moving)
        self._axes = virtual.dimension
        at = Grid.of(fixed).to_index(virtual.points_mm()).reshape(-1, 3)
        self._fixed, _ = _linear(sitk.GetArrayFromImage(fixed), at)
        self._moving = sitk.GetArrayFromImage(moving)
        slopes = sitk.GradientRecursiveGaussian(moving, max(moving.GetSpacing()), True, True)
        self._slopes = sitk.GetArrayFromImage(slopes)
        self.valid_points = 0

    def _compare(self, transform: Any) -> tuple[np.ndarray, np.ndarray]:
        points = mapped_points(self._whole(transform), self._virtual)
        at = self._grid.to_index(points)
        values, inside = _linear(self._moving, at)
        self.valid_points = int(inside.sum())
        slopes = np.zeros((len(at), 3))
        for d in range(self._axes):
            slopes[:, d] = _linear(self._slopes[..., d], at)[0]
        difference = np.where(inside, values - self._fixed, 0.0)
        return difference, 2 * difference[:, None] * slopes

    def _whole(self, transform: Any) -> Any:
        return transform if self._after is None else sitk.CompositeTransform([self._after, transform])

    def value(self, transform: Any) -> float:
        return self._mean(self._compare(transform)[0])

    def value_and_derivative(self, transform: Any) -> tuple[float, np.ndarray]:
        difference, pull = self._compare(transform)
        value = self._mean(difference)
        if transform.GetTransformEnum() == sitk.sitkDisplacementField:  # ITK takes the voxel, not its neighbours
            return value, pull[:, : self._axes].ravel() / self.valid_points
        mapping = ChainMap([point_map(t, self._axes) for t in (transform, self._after) if t is not None])
        derivative = np.zeros(mapping.parameters)
        mapping.pull_to_parameters(self._virtual.points_mm().reshape(-1, 3), pull, derivative)
        return value, derivative / self.valid_points

    def _mean(self, difference: np.ndarray) -> float:
        if self.valid_points == 0:
            raise RegistrationError("no point falls inside the moving image")
        return float((difference**2).sum() / self.valid_points)


def _linear(image: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = index[:, : image.ndim]
    inside = ((index >= -0.5) & (index < np.array(image.shape[::-1]) - 0.5)).all(axis=1)
    return ndimage.map_coordinates(image, index[:, ::-1].T, order=1, mode="nearest"), inside


def mapped_points(transform: Any, grid: Grid) -> np.ndarray:
    """Where SimpleITK says that the voxel centres of a grid go, (n, 3), x fastest."""
    empty = grid.image()
    shift = sitk.TransformToDisplacementField(
        transform,
        sitk.sitkVectorFloat64,
        empty.GetSize(),
        empty.GetOrigin(),
        empty.GetSpacing(),
        empty.GetDirection(),
    )
    points = grid.points_mm().reshape(-1, 3)
    points[:, : grid.dimension] += sitk.GetArrayViewFromImage(shift).reshape(-1, grid.dimension)
    return points


@dataclass(frozen=True)
class ScalarPair:
    """Stands in for a pair of representations."""

    fixed: sitk.Image
    moving: sitk.Image
    small_slopes = False

    @property
    def fixed_grid(self) -> Grid:
        return Grid.of(self.fixed)

    @property
    def moving_grid(self) -> Grid:
        return Grid.of(self.moving)

    def facing(self, settings: Settings, maps: Any) -> ScalarPair:
        return self

    def metric(self, settings: Settings, level: Level, moving_initial: Any) -> MeanSquares:
        return MeanSquares(_blurred(self.fixed, level), _blurred(self.moving, level), level.virtual, moving_initial)


def _blurred(image: sitk.Image, level: Level) -> sitk.Image:
    sigmas = [level.sigma * (1.0 if level.sigma_in_mm else spacing) for spacing in image.GetSpacing()]
    return sitk.SmoothingRecursiveGaussian(image, sigmas) if level.sigma > 0 else image


class OurLoop(ImageRegistrationMethod):
    """The SimpleITK face with its own loop, on mean squares."""

    def __init__(self) -> None:
        super().__init__()
        self.SetMetricAsDNSCosine()

    def _compare(self, fixed: Any, moving: Any, settings: Settings) -> Any:
        return ScalarPair(fixed, moving)


def native() -> sitk.ImageRegistrationMethod:
    """The native class on mean squares."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    return method


def scalar_plane(direction: tuple[float, ...] = (0.8, -0.6, 0.6, 0.8)) -> tuple[sitk.Image, sitk.Image]:
    """A smooth random 2-D image with anisotropic pixels and turned axes, and itself displaced rigidly; float64."""
    noise = np.random.default_rng(0).normal(size=(34, 40))
    fixed = sitk.GetImageFromArray(ndimage.gaussian_filter(noise, 3.0) * 100)
    fixed.SetSpacing((1.0, 1.3))
    fixed.SetOrigin((-10.0, 5.0))
    fixed.SetDirection(direction)
    centre = fixed.TransformContinuousIndexToPhysicalPoint((19.5, 16.5))
    return fixed, sitk.Resample(fixed, fixed, sitk.Euler2DTransform(centre, 0.05, (1.5, -1.0)), sitk.sitkLinear, 0.0)


def scalar_pair() -> tuple[sitk.Image, sitk.Image]:
    """A smooth random image with anisotropic voxels, and itself displaced rigidly; float64."""
    noise = np.random.default_rng(0).normal(size=(16, 18, 20))
    fixed = sitk.GetImageFromArray(ndimage.gaussian_filter(noise, 2.5) * 100)
    fixed.SetSpacing((1.0, 1.2, 1.5))
    fixed.SetOrigin((-10.0, 5.0, 3.0))
    turn = sitk.Euler3DTransform((0.0, 16.0, 15.0), 0.02, -0.03, 0.05, (1.0, -0.7, 0.5))
    return fixed, sitk.Resample(fixed, fixed, turn, sitk.sitkLinear, 0.0)


def identity_field(image: sitk.Image) -> sitk.DisplacementFieldTransform:
    """A displacement field of zeros on the grid of an image."""
    return sitk.DisplacementFieldTransform(Grid.of(image).image(sitk.sitkVectorFloat64, image.GetDimension()))


def trace(
    method: Any, transform: Any, images: tuple[sitk.Image, sitk.Image], in_place: bool = True
) -> tuple[list[Any], Any, str]:
    """Run and write down, at each iteration, all that can be asked."""
    rows: list[Any] = []
    if isinstance(transform, sitk.BSplineTransform) and in_place:
        method.SetInitialTransformAsBSpline(transform, True, [1, 2])
    else:
        method.SetInitialTransform(transform, in_place)

    def note() -> None:
        rows.append(
            [
                method.GetCurrentLevel(),
                method.GetOptimizerIteration(),
                method.GetMetricValue(),
                method.GetMetricNumberOfValidPoints(),
                method.GetOptimizerLearningRate(),
                min(method.GetOptimizerConvergenceValue(), 9.0),
                *method.GetOptimizerScales()[:12],
                *method.GetOptimizerPosition()[:600],
            ]
        )

    method.AddCommand(sitk.sitkIterationEvent, note)
    result = method.Execute(*images)
    return rows, result, method.GetOptimizerStopConditionDescription()


def both(
    setup: Callable[[Any], object],
    transform: Callable[[], Any],
    images: tuple[sitk.Image, sitk.Image],
    rtol: float = 1e-5,
    in_place: bool = True,
) -> tuple[Any, Any]:
    """Assert that both classes go the same way, and return their results."""
    runs = []
    for method in (native(), OurLoop()):
        setup(method)
        runs.append(trace(method, transform(), images, in_place))
    (rows, result, why), (our_rows, our_result, our_why) = runs
    assert len(rows) == len(our_rows) > 0
    for row, our_row in zip(rows, our_rows, strict=True):
        np.testing.assert_allclose(our_row, row, rtol=rtol, atol=1e-6)
    assert same_words(our_why, why)
    assert type(our_result) is type(result)
    np.testing.assert_allclose(our_result.GetParameters(), result.GetParameters(), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(our_result.GetFixedParameters(), result.GetFixedParameters(), atol=1e-9)
    return result, our_result


def same_words(ours: str, theirs: str) -> bool:
    """Whether two sentences have the same words, and the same numbers to three digits."""

    def split(text: str) -> list[str]:
        return [part.strip("().") for part in text.split()]

    def same(a: str, b: str) -> bool:
        try:
            return bool(np.isclose(float(a), float(b), rtol=1e-3))
        except ValueError:
            return a == b

    return len(split(ours)) == len(split(theirs)) and all(map(same, split(ours), split(theirs)))
