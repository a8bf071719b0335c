"""The metric and the registration with ITK's images and transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.optimize import minimize

from dsir_metric.errors import ConfigError, DataError, RegistrationError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.itk import DNSCosineImageToImageMetricv4, register, to_itk, to_sitk, transform_to_itk
from dsir_metric.metric import CosineMetric, Sampling
from dsir_metric.phantom import PhantomPair
from dsir_metric.register import RegisterConfig
from dsir_metric.register import register as register_sitk
from dsir_metric.represent import Representation
from dsir_metric.represent.background import background
from dsir_metric.sitk import ImageRegistrationMethod

itk = pytest.importorskip("itk")

GRID = Grid(
    (16, 15, 14), (3.0, 2.5, 3.5), (-20.0, 5.0, 7.0), sitk.Euler3DTransform([0] * 3, 0.2, -0.1, 0.3).GetMatrix()
)
Metric = DNSCosineImageToImageMetricv4


def waves(shift_mm: tuple[float, float, float] = (0, 0, 0)) -> Representation:
    """Smooth unit vectors, drawn at points moved by `shift_mm`."""
    points = GRID.points_mm() - GRID.centre_mm - shift_mm
    rng = np.random.default_rng(4)
    phases = points @ rng.normal(0, 0.08, (3, 6)) + rng.uniform(0, 6, 6)
    values = np.concatenate([np.sin(phases), np.cos(phases[..., :2])], -1)
    return Representation((values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32), GRID)


def core() -> object:
    """A mask so far inside that no step of a test takes a point out of the image."""
    z, y, x = np.indices(GRID.shape)
    inside = [(k > 2) & (k < n - 3) for k, n in zip((z, y, x), GRID.shape, strict=True)]
    return to_itk(GRID.stamp(sitk.GetImageFromArray(np.logical_and.reduce(inside).astype(np.uint8))))


def initialised() -> Metric:
    metric = Metric.New()
    metric.SetFixedImageMask(core())
    metric.SetFixedImage(to_itk(waves()))
    metric.SetMovingImage(waves((2.0, -1.0, 1.5)))
    metric.Initialize()
    return metric


def euler() -> object:
    return transform_to_itk(sitk.Euler3DTransform(GRID.centre_mm.tolist(), 0.03, -0.02, 0.01, (1.0, 0.5, -0.4)))


def bspline() -> object:
    transform = sitk.BSplineTransformInitializer(GRID.image(), [2, 2, 2])
    transform.SetParameters(np.random.default_rng(0).normal(0, 0.5, transform.GetNumberOfParameters()))
    return transform_to_itk(transform)


def field() -> object:
    coarse = GRID.resampled(12.0)
    values = np.random.default_rng(2).normal(0, 0.5, (*coarse.shape, 3))
    return transform_to_itk(
        sitk.DisplacementFieldTransform(coarse.stamp(sitk.GetImageFromArray(values, isVector=True)))
    )


def composite() -> object:
    """Its rigid part moves points of the B-spline, which alone is free."""
    whole = itk.CompositeTransform[itk.D, 3].New()
    whole.AddTransform(euler())
    whole.AddTransform(bspline())
    whole.SetOnlyMostRecentTransformToOptimizeOn()
    return whole


TRANSFORMS = {
    "euler": euler,
    "affine": lambda: transform_to_itk(sitk.AffineTransform([1.02, 0.01, 0, 0, 0.99, 0, 0.01, 0, 1], [1, 0, 0.5])),
    "bspline": bspline,
    "field": field,
    "composite": composite,
}


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_value_and_derivative_through_the_itk_transform(name: str) -> None:
    metric, transform = initialised(), TRANSFORMS[name]()
    metric.SetMovingTransform(transform)
    value, derivative = metric.GetValueAndDerivative()
    start = metric.GetParameters()
    assert value == metric.GetValue()
    assert metric.GetNumberOfParameters() == start.size == derivative.size
    points = metric.GetNumberOfValidPoints()
    assert points == 10 * 9 * 8
    same, gradient = metric.value_and_gradient(start)
    assert same == value
    np.testing.assert_allclose(derivative, -gradient * (points if name == "field" else 1), rtol=1e-9)
    for k in np.argsort(np.abs(gradient))[-3:]:
        ends = []
        for sign in (1, -1):
            moved = start.copy()
            moved[k] += sign * 2e-4
            transform.SetParameters(itk.OptimizerParameters[itk.D](moved.tolist()))
            ends.append(metric.GetValue())
        assert gradient[k] == pytest.approx((ends[0] - ends[1]) / 4e-4, rel=0.02, abs=2e-5)


def test_a_step_along_the_derivative_is_a_step_down() -> None:
    metric = initialised()
    metric.SetMovingTransform([euler()])  # as itk.transformread gives it
    before, derivative = metric.GetValueAndDerivative()
    metric.UpdateTransformParameters(derivative, 0.05)
    assert metric.GetValue() < before
    np.testing.assert_allclose(metric.GetParameters()[:3], [0.03, -0.02, 0.01] + 0.05 * derivative[:3], atol=1e-9)


def test_scipy_finds_a_shift() -> None:
    metric, transform = initialised(), itk.TranslationTransform[itk.D, 3].New()
    metric.SetMovingTransform(transform)
    best = minimize(metric.value_and_gradient, metric.GetParameters(), jac=True, method="L-BFGS-B")
    np.testing.assert_allclose(list(transform.GetParameters()), best.x)
    np.testing.assert_allclose(best.x, [2.0, -1.0, 1.5], atol=0.05)


def test_masks_virtual_domain_fixed_transform_and_sampling_are_those_of_the_metric() -> None:
    """The same numbers as from the metric underneath, given the same things."""
    ball = np.linalg.norm(GRID.points_mm() - GRID.centre_mm, axis=-1) < 14
    first = GRID.stamp(sitk.GetImageFromArray(ball.astype(np.uint8)))
    second = GRID.stamp(sitk.GetImageFromArray((np.indices(GRID.shape)[2] < 12).astype(np.uint8)))
    spatial = itk.ImageMaskSpatialObject[3].New()
    spatial.SetImage(to_itk(first))
    spatial.Update()
    virtual = GRID.resampled(2.0)
    shift, sampling = sitk.TranslationTransform(3, [1.0, 2.0, -1.0]), Sampling("random", 0.5, 3)
    metric = Metric.New(sampling=sampling)
    metric.SetFixedImage(waves())
    metric.SetMovingImage(waves((2.0, -1.0, 1.5)))
    metric.SetFixedImageMask(spatial)
    metric.SetMovingImageMask(to_itk(second))
    metric.SetFixedTransform(transform_to_itk(shift))
    metric.SetVirtualDomainFromImage(to_itk(virtual.image()))
    metric.SetTransform(euler())
    metric.Initialize()
    same = CosineMetric(
        waves(),
        waves((2.0, -1.0, 1.5)),
        virtual=virtual,
        fixed_mask=first,
        moving_mask=second,
        sampling=sampling,
        fixed_initial=shift,
    )
    assert metric.GetValue() == same.value(
        sitk.Euler3DTransform(GRID.centre_mm.tolist(), 0.03, -0.02, 0.01, (1.0, 0.5, -0.4))
    )
    assert metric.GetNumberOfValidPoints() == same.valid_points
    metric.SetFixedImageMask(None)
    metric.Initialize()
    metric.GetValue()
    assert metric.GetNumberOfValidPoints() > same.valid_points


def test_scalar_images_are_represented(pair: PhantomPair) -> None:
    metric = Metric.New(spacing_mm=6.0)
    metric.SetFixedImage(to_itk(sitk.Cast(pair.fixed, sitk.sitkInt16)))
    metric.SetMovingImage(to_itk(pair.moving))
    metric.Initialize()
    metric.SetMovingTransform(transform_to_itk(pair.truth))
    at_truth = metric.GetValue()
    metric.SetMovingTransform(itk.IdentityTransform[itk.D, 3].New())
    assert -1 < at_truth < metric.GetValue() - 0.03
    assert metric.GetNumberOfValidPoints() < 0.5 * np.prod(pair.fixed.GetSize())  # the head alone


def test_a_head_that_lies_askew_is_represented_as_it_lies(pair: PhantomPair) -> None:
    turn = sitk.Euler3DTransform((0, 0, 0), 0.0, 0.0, 1.5)
    moving = sitk.Resample(pair.moving, turn.GetInverse())
    metric, method = Metric.New(device="cpu", spacing_mm=6.0), ImageRegistrationMethod()
    metric.SetFixedImage(to_itk(pair.fixed))
    metric.SetMovingImage(to_itk(moving))
    metric.SetMovingTransform(transform_to_itk(turn))
    metric.Initialize()
    method.SetMetricAsDNSCosine(device="cpu", spacing_mm=6.0)
    method.SetInitialTransform(turn)
    assert metric.GetValue() == pytest.approx(method.MetricEvaluate(pair.fixed, moving), abs=1e-9)
    assert metric.GetValue() < -0.6


def test_what_the_metric_cannot_take() -> None:
    metric = Metric.New()
    with pytest.raises(ConfigError, match=r"no fixed image: call SetFixedImage"):
        metric.Initialize()
    with pytest.raises(ConfigError, match=r"not initialised: call Initialize"):
        metric.GetNumberOfValidPoints()
    with pytest.raises(ConfigError, match="no transform: call SetMovingTransform"):
        metric.GetNumberOfParameters()
    with pytest.raises(DataError, match="moving: is a Image; an itk image is expected"):
        metric.SetMovingImage(GRID.image())
    metric = initialised()
    with pytest.raises(ConfigError, match="a Rigid3DTransform came; supported are"):
        metric.SetMovingTransform(itk.Rigid3DTransform[itk.D].New())
    both = composite()
    both.SetAllTransformsToOptimizeOn()
    with pytest.raises(ConfigError, match=r"would optimise 2 of its 2 transforms.*SetOnlyMostRecent"):
        metric.SetMovingTransform(both)
    metric.SetMovingTransform(euler())
    with pytest.raises(ConfigError, match="5 parameters came; the transform has 6"):
        metric.SetParameters(np.zeros(5))
    metric.SetParameters([0, 0, 0, 900, 0, 0])
    with pytest.raises(RegistrationError, match="none of 720 sample points"):
        metric.GetValue()
    metric.SetFixedImage(to_itk(GRID.image(sitk.sitkFloat32)))
    with pytest.raises(ConfigError, match="call Initialize"):
        metric.GetValue()
    with pytest.raises(ShapeError, match="only moving is represented"):
        metric.Initialize()
    moved = itk.ImageMaskSpatialObject[3].New()
    moved.SetImage(to_itk(GRID.image()))
    there = itk.AffineTransform[itk.D, 3].New()
    there.Translate([1.0, 0.0, 0.0])
    moved.SetObjectToWorldTransform(there)
    with pytest.raises(DataError, match="fixed mask: the spatial object was moved"):
        metric.SetFixedImageMask(moved)


CONFIG = RegisterConfig(stages=("centre", "rigid", "deformable"), threads=1, spacing_mm=6.0)


def test_registration_from_itk_images_to_an_itk_transform(pair: PhantomPair, tmp_path: Path) -> None:
    same = register_sitk(pair.fixed, pair.moving, CONFIG)
    fixed, moving = to_itk(pair.fixed), to_itk(pair.moving)
    found = register(fixed, moving, CONFIG)
    points = pair.fixed.TransformIndexToPhysicalPoint((10, 20, 30)), (3.0, -20.0, 11.0), (300.0, 0.0, 0.0)
    itk.transformwrite([found.transform], str(tmp_path / "t.h5"))
    for transform in (found.transform, itk.transformread(str(tmp_path / "t.h5"))[0]):
        for point in points:
            np.testing.assert_allclose(
                list(transform.TransformPoint(point)), same.transform.TransformPoint(point), atol=1e-6
            )
    moved = itk.resample_image_filter(
        moving,
        transform=found.transform,
        use_reference_image=True,
        reference_image=fixed,
        default_pixel_value=background(pair.moving),
    )
    difference = sitk.GetArrayFromImage(to_sitk(moved)) - sitk.GetArrayFromImage(same.moved(pair.moving))
    assert np.abs(difference).max() < 0.1
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(same.moved(pair.moving)), itk.array_from_image(found.moved(moving))
    )
    assert found.inverse is None
    assert [s.name for s in found.result.stages] == list(CONFIG.stages)


def test_registration_takes_masks_a_start_and_representations(pair: PhantomPair) -> None:
    grid = Grid.of(pair.fixed).resampled(9.0)
    rng = np.random.default_rng(0)
    made = [Representation(rng.random((*grid.shape, 4), np.float32), grid).unit() for _ in range(2)]
    start = transform_to_itk(sitk.Euler3DTransform([0, 0, 0], 0.05, 0, 0, (2, 0, 0)))
    head = to_itk(sitk.Cast(pair.fixed_labels > 0, sitk.sitkUInt8))
    arguments = {
        "fixed_mask": head,
        "moving_mask": to_itk(sitk.Cast(pair.moving_labels > 0, sitk.sitkUInt8)),
        "initial_transform": [start],
        "representations": (to_itk(made[0]), made[1]),
    }
    config, seen = RegisterConfig(stages=("rigid",), threads=1), []
    found = register(
        to_itk(pair.fixed),
        to_itk(pair.moving),
        config,
        on_progress=lambda progress: seen.append(progress.stage),
        **arguments,
    )
    same = register_sitk(
        pair.fixed,
        pair.moving,
        config,
        fixed_mask=pair.fixed_labels > 0,
        moving_mask=pair.moving_labels > 0,
        initial_transform=sitk.Euler3DTransform([0, 0, 0], 0.05, 0, 0, (2, 0, 0)),
        representations=(made[0], made[1]),
    )
    point = (3.0, -20.0, 11.0)
    np.testing.assert_allclose(list(found.transform.TransformPoint(point)), same.transform.TransformPoint(point))
    assert found.result.details["mean_cosine"] == same.details["mean_cosine"]
    assert seen[-1] == "done"
    with pytest.raises(ShapeError, match="moving: a representation has several components"):
        register(to_itk(pair.fixed), to_itk(pair.moving), representations=(made[0], head))
    with pytest.raises(DataError, match="fixed: is a Image; an itk image is expected"):
        register(pair.fixed, pair.moving)
