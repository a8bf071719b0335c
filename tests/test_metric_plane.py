"""The cosine metric of 2-D images, under each of SimpleITK's 2-D transforms, against SimpleITK's own resampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dsir_metric.errors import ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.metric import CosineMetric, Sampling
from dsir_metric.represent import Representation

CHANNELS = 24


def plane(size: tuple[int, int], spacing: tuple[float, float], origin: tuple[float, float], turn: float) -> Grid:
    image = sitk.Image(size, sitk.sitkUInt8)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection((np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)))
    return Grid.of(image)


FIXED = plane((31, 27), (1.1, 0.9), (-7.0, 3.0), 0.4)
CENTRE = tuple(FIXED.centre_mm[:2].tolist())
MOVING = plane((52, 49), (1.0, 1.2), (CENTRE[0] - 26, CENTRE[1] - 29), 0.0)


def representation(grid: Grid, seed: int) -> Representation:
    noise = np.random.default_rng(seed).standard_normal((*grid.shape, CHANNELS))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    return Representation((smooth / np.linalg.norm(smooth, axis=-1, keepdims=True)).astype(np.float32), grid)


PAIR = representation(FIXED, 1), representation(MOVING, 2)


def moved(transform: Any, spread: float = 0.06) -> Any:
    """The transform a little off, about a centre where it has one."""
    if hasattr(transform, "SetCenter"):
        transform.SetCenter(CENTRE)
    start = np.array(transform.GetParameters())
    transform.SetParameters((start + np.random.default_rng(3).normal(0, spread, len(start))).tolist())
    return transform


def bspline(order: int = 3) -> Any:
    return moved(sitk.BSplineTransformInitializer(FIXED.image(), [4, 3], order), 0.5)


def field() -> Any:
    return moved(sitk.DisplacementFieldTransform(FIXED.padded(-2).image(sitk.sitkVectorFloat64, 2)), 0.4)


TRANSFORMS: dict[str, Callable[[], Any]] = {
    "translation": lambda: moved(sitk.TranslationTransform(2)),
    "Euler": lambda: moved(sitk.Euler2DTransform()),
    "similarity": lambda: moved(sitk.Similarity2DTransform()),
    "scale": lambda: moved(sitk.ScaleTransform(2)),
    "affine": lambda: moved(sitk.AffineTransform(2)),
    "wrapped affine": lambda: sitk.Transform(moved(sitk.AffineTransform(2))),
    "B-spline": bspline,
    "B-spline of order 1": lambda: bspline(1),
    "B-spline of order 2": lambda: bspline(2),
    "displacement field": field,
    "rigid after B-spline": lambda: sitk.CompositeTransform([moved(sitk.Euler2DTransform()), bspline()]),
    "field after affine": lambda: sitk.CompositeTransform([field(), moved(sitk.AffineTransform(2))]),
    "B-spline after B-spline": lambda: sitk.CompositeTransform([bspline(2), bspline()]),
}


def resampled_cosines(transform: Any) -> np.ndarray:
    """Cosine at the fixed pixels that fall inside the moving image, in float64, by SimpleITK's resampling."""
    fixed, moving = PAIR
    like = FIXED.image()
    inside = sitk.Resample(MOVING.image() + 1, like, transform, sitk.sitkNearestNeighbor)
    seen = sitk.Resample(sitk.Cast(moving.to_sitk(), sitk.sitkVectorFloat64), like, transform, sitk.sitkLinear)
    valid = sitk.GetArrayFromImage(inside) > 0
    m, f = sitk.GetArrayFromImage(seen)[valid], fixed.values[0][valid].astype(float)
    return (f * m).sum(axis=-1) / np.linalg.norm(f, axis=-1) / np.linalg.norm(m, axis=-1)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_value_is_that_of_simpleitk_resampling(name: str) -> None:
    transform, metric = TRANSFORMS[name](), CosineMetric(*PAIR)
    cosines = resampled_cosines(transform)
    assert metric.value(transform) == pytest.approx(-cosines.mean(), abs=1e-6)
    assert metric.valid_points == len(cosines) == 31 * 27


@pytest.mark.parametrize("name", TRANSFORMS)
def test_derivative_is_that_of_finite_differences(name: str) -> None:
    transform = TRANSFORMS[name]()
    centre = np.array(transform.GetParameters())
    _, derivative = CosineMetric(*PAIR).value_and_derivative(transform)
    free = len(derivative)  # of a composite, those of the transform added last come first
    assert free == len(centre) or isinstance(transform, sitk.CompositeTransform)
    if free <= 8:
        directions = np.eye(free)
    else:
        random = np.random.default_rng(6).standard_normal((2, free)) * np.abs(derivative).max()
        directions = np.array([derivative, *(derivative + random / 10)]) / np.abs(derivative).max()
    rises = []
    for direction in directions:
        ends = []
        for sign in (1, -1):
            end = type(transform)(transform)
            end.SetParameters([*(centre[:free] + sign * 1e-6 * direction), *centre[free:]])
            ends.append(-resampled_cosines(end).mean())
        rises.append((ends[0] - ends[1]) / 2e-6)
    found = directions @ derivative
    assert np.abs(found).max() > 0
    np.testing.assert_allclose(found, rises, atol=2e-3 * np.abs(found).max())


@pytest.mark.parametrize("strategy", ["regular", "random"])
def test_samples_stay_in_the_plane(strategy: Any) -> None:
    metric = CosineMetric(*PAIR, sampling=Sampling(strategy, 0.2, 5))
    points = metric.points_mm
    off = FIXED.to_index(points) % 1
    assert (points[:, 2] == 0).all()
    assert (off[:, :2] > 0.01).mean() > 0.9  # and are moved off the pixel centres
    metric.value(sitk.Euler2DTransform())
    assert metric.valid_points == pytest.approx(0.2 * 31 * 27, rel=0.1)


def test_masks_are_2d_images() -> None:
    fixed_mask, moving_mask = FIXED.image() + 1, MOVING.image() + 1
    fixed_mask[:10, :] = 0
    metric = CosineMetric(*PAIR, fixed_mask=fixed_mask)
    metric.value(sitk.Euler2DTransform())
    assert metric.valid_points == 21 * 27
    moving_mask[:, :25] = 0
    metric = CosineMetric(*PAIR, fixed_mask=fixed_mask, moving_mask=moving_mask)
    metric.value(sitk.Euler2DTransform())
    assert 0 < metric.valid_points < 21 * 27


def test_representations_become_2d_images_and_back() -> None:
    image = PAIR[0].to_sitk()
    assert (image.GetDimension(), image.GetNumberOfComponentsPerPixel()) == (2, CHANNELS)
    back = Representation.from_sitk(image)
    assert back.grid == FIXED
    np.testing.assert_array_equal(back.values, PAIR[0].values)
    halved = PAIR[0].resampled(FIXED.halved())
    assert halved.grid.dimension == 2
    np.testing.assert_allclose(
        PAIR[0].smoothed(2.0).values.mean(axis=(0, 1, 2)), PAIR[0].values.mean(axis=(0, 1, 2)), atol=0.02
    )


def test_dimensions_do_not_mix() -> None:
    fixed, moving = PAIR
    space = Representation(moving.values, Grid(MOVING.size))
    for make, words in (
        (lambda: CosineMetric(fixed, space), "fixed is 2-D and moving 3-D"),
        (lambda: CosineMetric(space, moving), "fixed is 3-D and moving 2-D"),
        (lambda: CosineMetric(fixed, moving, virtual=space.grid), "virtual domain 3-D"),
        (lambda: CosineMetric(fixed, moving, fixed_mask=space.grid.image()), "a 2-D mask is expected"),
        (lambda: CosineMetric(fixed, moving, moving_mask=space.grid.image()), "a 2-D mask is expected"),
        (lambda: CosineMetric(fixed, moving, moving_initial=sitk.Euler3DTransform()), "a 2-D transform is expected"),
        (lambda: CosineMetric(fixed, moving, fixed_initial=sitk.Euler3DTransform()), "a 2-D transform is expected"),
        (lambda: CosineMetric(fixed, moving).value(sitk.Euler3DTransform()), "a 2-D transform is expected"),
        (lambda: CosineMetric(space, space).value(sitk.Euler2DTransform()), "a 3-D transform is expected"),
    ):
        with pytest.raises(ShapeError, match=words):
            make()
