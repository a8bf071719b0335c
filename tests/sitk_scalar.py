"""A scalar mean-squares metric and the native one, side by side, for the tests of the SimpleITK face."""

from __future__ import annotations

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
from dsir_metric.sitk.scales import mapped_points
from dsir_metric.sitk.settings import Settings


class MeanSquares:
    """ITK's MeanSquares metric without sampling and masks: linear values, Gaussian-derivative gradients."""

    def __init__(self, fixed: sitk.Image, moving: sitk.Image, virtual: Grid, after: Any) -> None:
        self._virtual, self._after, self._grid = virtual, after, Grid.of(moving)
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
        slopes = np.stack([_linear(self._slopes[..., d], at)[0] for d in range(3)], axis=-1)
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
            return value, pull.ravel() / self.valid_points
        mapping = (
            point_map(transform) if self._after is None else ChainMap([point_map(transform), point_map(self._after)])
        )
        derivative = np.zeros(mapping.parameters)
        mapping.pull_to_parameters(self._virtual.points_mm().reshape(-1, 3), pull, derivative)
        return value, derivative / self.valid_points

    def _mean(self, difference: np.ndarray) -> float:
        if self.valid_points == 0:
            raise RegistrationError("no point falls inside the moving image")
        return float((difference**2).sum() / self.valid_points)


def _linear(image: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside = ((index >= -0.5) & (index < np.array(image.shape[::-1]) - 0.5)).all(axis=1)
    return ndimage.map_coordinates(image, index[:, ::-1].T, order=1, mode="nearest"), inside


@dataclass(frozen=True)
class ScalarPair:
    """Stands in for a pair of representations."""

    fixed: sitk.Image
    moving: sitk.Image

    @property
    def fixed_grid(self) -> Grid:
        return Grid.of(self.fixed)

    @property
    def moving_grid(self) -> Grid:
        return Grid.of(self.moving)

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

    def _compare(self, fixed: Any, moving: Any, choice: Any) -> Any:
        return ScalarPair(fixed, moving)


def native() -> sitk.ImageRegistrationMethod:
    """The native class on mean squares."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    return method


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
    return sitk.DisplacementFieldTransform(Grid.of(image).image(sitk.sitkVectorFloat64, 3))
