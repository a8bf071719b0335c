"""The SimpleITK face with the DNS cosine metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dsir_metric.errors import DataError, DsirError, RegistrationError, ShapeError
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.metric import CosineMetric
from dsir_metric.phantom import PhantomPair
from dsir_metric.represent import Representation
from dsir_metric.sitk import ImageRegistrationMethod

GRID = Grid((24, 26, 28), (2.0, 2.0, 2.0), (-20.0, 10.0, 5.0))
CENTRE = tuple(GRID.centre_mm.tolist())


@pytest.fixture(scope="module")
def moving() -> Representation:
    """Smooth random unit descriptors."""
    noise = np.random.default_rng(3).normal(size=(*GRID.shape, 24))
    values = ndimage.gaussian_filter(noise, (2.5, 2.5, 2.5, 0))
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return Representation(values.astype(np.float32), GRID)


def seen_through(moving: Representation, truth: sitk.Transform) -> Representation:
    """The fixed representation to which `truth` brings `moving`."""
    return Representation.from_sitk(sitk.Resample(moving.to_sitk(), GRID.image(), truth, sitk.sitkLinear, 0.0))


def error_mm(found: Any, truth: Any) -> float:
    """Mean distance of mapped points, the outer voxels left out."""
    fields = [DisplacementField.from_transform(t, GRID).values[4:-4, 4:-4, 4:-4] for t in (found, truth)]
    return float(np.linalg.norm(fields[0] - fields[1], axis=-1).mean())


def wavy() -> sitk.BSplineTransform:
    truth = sitk.BSplineTransformInitializer(GRID.image(), [2, 2, 2])
    truth.SetParameters(np.random.default_rng(5).normal(0, 1.5, truth.GetNumberOfParameters()).tolist())
    return truth


def method_for(transform: Any, in_place: bool = True) -> ImageRegistrationMethod:
    method = ImageRegistrationMethod()
    method.SetMetricAsDNSCosine()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(transform, in_place)
    return method


RIGID = sitk.Euler3DTransform(CENTRE, 0.04, -0.05, 0.06, (2.5, -2.0, 1.5))
AFFINE = sitk.AffineTransform((1.04, 0.02, 0, -0.03, 0.97, 0.02, 0.01, 0, 1.03), (1.5, -1.0, 0.5), CENTRE)


@pytest.mark.parametrize(
    "choose",
    [
        lambda r: r.SetOptimizerAsGradientDescentLineSearch(1.0, 25),
        lambda r: r.SetOptimizerAsConjugateGradientLineSearch(1.0, 12),
        lambda r: r.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 150, 0.7, 1e-8),
        lambda r: r.SetOptimizerAsLBFGS2(1e-9),
    ],
)
def test_rigid_displacement_is_found(moving: Representation, choose: Any) -> None:
    method = method_for(sitk.Euler3DTransform(CENTRE))
    choose(method)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 0.0])
    found = method.Execute(seen_through(moving, RIGID), moving)
    assert error_mm(sitk.Transform(3, sitk.sitkIdentity), RIGID) > 3
    assert error_mm(found, RIGID) < 0.15
    assert method.GetMetricValue() < -0.99


def test_affine_displacement_is_found(moving: Representation) -> None:
    method = method_for(sitk.AffineTransform(np.eye(3).ravel().tolist(), (0, 0, 0), CENTRE), in_place=False)
    method.SetOptimizerAsLBFGS2(1e-7, 40)
    method.SetOptimizerScalesFromIndexShift()
    found = method.Execute(seen_through(moving, AFFINE), moving)
    assert isinstance(found, sitk.CompositeTransform)
    assert error_mm(found, AFFINE) < 0.15


def test_bspline_displacement_is_found(moving: Representation) -> None:
    truth, start = wavy(), sitk.BSplineTransformInitializer(GRID.image(), [1, 1, 1])
    method = method_for(start)
    method.SetInitialTransformAsBSpline(start, inPlace=True, scaleFactors=[1, 2])
    method.SetOptimizerAsLBFGSB(1e-7, 60)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 0.0])
    found = method.Execute(seen_through(moving, truth), moving)
    assert found.GetTransformDomainMeshSize() == (2, 2, 2)
    assert start.GetParameters() == found.GetParameters()
    assert error_mm(found, truth) < 0.25 * error_mm(sitk.Transform(3, sitk.sitkIdentity), truth)


def test_displacement_field_is_found(moving: Representation) -> None:
    truth, start = wavy(), sitk.DisplacementFieldTransform(GRID.image(sitk.sitkVectorFloat64, 3))
    start.SetSmoothingGaussianOnUpdate(2.0, 0.1)
    method = method_for(start)
    method.SetOptimizerAsGradientDescent(1.0, 40, 1e-7, 10, method.EachIteration, 0.5)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 0.0])
    found = method.Execute(seen_through(moving, truth), moving)
    assert isinstance(found, sitk.DisplacementFieldTransform)
    assert found.GetDisplacementField().GetSize() == GRID.size
    assert start.GetParameters() == found.GetParameters()
    assert error_mm(found, truth) < 0.35 * error_mm(sitk.Transform(3, sitk.sitkIdentity), truth)


def test_metric_evaluate_is_the_metric(moving: Representation) -> None:
    fixed = seen_through(moving, RIGID)
    before = sitk.TranslationTransform(3, (0.5, 0.5, -0.5))
    method = method_for(sitk.Euler3DTransform(CENTRE, 0.01, 0.02, 0.0, (1.0, 0.0, 0.0)))
    method.SetMovingInitialTransform(before)
    method.SetSmoothingSigmasPerLevel([3.0])
    expected = CosineMetric(fixed, moving, moving_initial=before).value(method.GetInitialTransform())
    assert method.MetricEvaluate(fixed, moving) == pytest.approx(expected, abs=1e-9)
    assert method.MetricEvaluate(fixed.to_sitk(), moving.to_sitk()) == pytest.approx(expected, abs=1e-9)
    assert method.MetricEvaluate(fixed, moving) != pytest.approx(CosineMetric(fixed, moving).value(before), abs=1e-4)


def test_masks_say_which_points_count(moving: Representation) -> None:
    fixed = seen_through(moving, sitk.TranslationTransform(3, (1.0, 1.5, -1.0)))
    spoiled = fixed.values.copy()
    spoiled[:, :, 14:] = -spoiled[:, :, 14:]
    inside = np.zeros(GRID.shape, np.uint8)
    inside[3:-3, 3:-3, 3:12] = 1
    mask = GRID.stamp(sitk.GetImageFromArray(inside))
    method = method_for(sitk.TranslationTransform(3))
    method.SetOptimizerAsLBFGSB(1e-8, 40)
    method.SetMetricFixedMask(mask)
    found = method.Execute(Representation(spoiled, GRID), moving)
    assert method.GetMetricNumberOfValidPoints() == inside.sum()
    np.testing.assert_allclose(found.GetParameters(), (1.0, 1.5, -1.0), atol=0.1)
    method.SetMetricMovingMask(mask)
    method.SetInitialTransform(sitk.TranslationTransform(3))
    method.Execute(Representation(spoiled, GRID), moving)
    assert 0 < method.GetMetricNumberOfValidPoints() < inside.sum()


def points_per_level(strategy: str, seed: int, moving: Representation) -> tuple[list[int], tuple[float, ...]]:
    method = method_for(sitk.TranslationTransform(3))
    method.SetOptimizerAsGradientDescent(1.0, 2)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1.0, 0.0])
    method.SetMetricSamplingStrategy(getattr(method, strategy))
    method.SetMetricSamplingPercentagePerLevel([0.5, 0.1], seed)
    counts: list[int] = []

    def note() -> None:
        if method.GetOptimizerIteration() == 0:
            counts.append(method.GetMetricNumberOfValidPoints())

    method.AddCommand(sitk.sitkIterationEvent, note)
    found = method.Execute(seen_through(moving, sitk.TranslationTransform(3, (1.0, 0.0, 0.0))), moving)
    return counts, found.GetParameters()


@pytest.mark.parametrize("strategy", ["REGULAR", "RANDOM"])
def test_sampling_goes_by_level_and_seed(moving: Representation, strategy: str) -> None:
    voxels = int(np.prod(GRID.size))
    counts, end = points_per_level(strategy, 11, moving)
    assert counts[0] == pytest.approx(0.5 * voxels / 8, rel=0.1)
    assert counts[1] == pytest.approx(0.1 * voxels, rel=0.2)
    assert points_per_level(strategy, 11, moving) == (counts, end)
    assert points_per_level(strategy, 12, moving)[1] != end
    assert points_per_level(strategy, sitk.sitkWallClock, moving)[1] != end


def test_sigmas_are_in_mm_or_voxels(moving: Representation) -> None:
    ends = []
    for sigma, in_mm in ((3.0, True), (1.5, False), (1.5, True)):
        method = method_for(sitk.TranslationTransform(3))
        method.SetOptimizerAsLBFGSB(1e-8, 3)
        method.SetSmoothingSigmasPerLevel([sigma])
        method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(in_mm)
        method.Execute(seen_through(moving, RIGID), moving)
        ends.append(method.GetMetricValue())
    assert ends[0] == ends[1] != ends[2]


def test_fixed_initial_transform_moves_the_fixed_side(moving: Representation) -> None:
    shift = sitk.TranslationTransform(3, (2.0, 0.0, 0.0))
    method = method_for(sitk.TranslationTransform(3))
    method.SetFixedInitialTransform(shift)
    method.SetOptimizerAsLBFGSB(1e-8, 40)
    found = method.Execute(moving, moving)
    np.testing.assert_allclose(found.GetParameters(), (2.0, 0.0, 0.0), atol=0.02)


def test_scalar_images_are_represented(pair: PhantomPair, model_file: Path) -> None:
    method = method_for(sitk.Euler3DTransform())
    method.SetMetricAsDNSCosine(model=model_file, device="cpu", spacing_mm=6.0)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.5, 4, 0.5, 1e-12)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetVirtualDomainFromImage(sitk.Shrink(pair.fixed, [2, 2, 2]))
    values: list[float] = []
    method.AddCommand(sitk.sitkIterationEvent, lambda: values.append(method.GetMetricValue()))
    method.Execute(sitk.Cast(pair.fixed, sitk.sitkInt16), pair.moving)
    assert len(values) > 1
    assert min(values) < values[0]
    head = int((sitk.GetArrayFromImage(sitk.Shrink(pair.fixed_labels, [2, 2, 2])) > 0).sum())
    assert 0.8 * head < method.GetMetricNumberOfValidPoints() < 20**3
    method.SetMetricAsDNSCosine(model=model_file, device="cpu", spacing_mm=6.0, foreground=False)
    method.SetInitialTransform(sitk.Euler3DTransform())
    method.Execute(pair.fixed, pair.moving)
    assert method.GetMetricNumberOfValidPoints() == pytest.approx(20**3, rel=0.2)


def test_with_a_mask_nothing_needs_to_stand_out(pair: PhantomPair, model_file: Path) -> None:
    corner = pair.fixed[18:22, 18:22, 18:22]
    method = method_for(sitk.Euler3DTransform())
    method.SetMetricAsDNSCosine(model=model_file, device="cpu")
    method.SetMetricFixedMask(sitk.Cast(corner * 0 + 1, sitk.sitkUInt8))
    assert -1 < method.MetricEvaluate(corner, pair.moving) < 1


def test_bad_masks_and_transforms_are_named(moving: Representation) -> None:
    labels = sitk.LabelImageToLabelMap(GRID.image() + 1)
    field, empty = sitk.DisplacementFieldTransform(3), sitk.CompositeTransform(3)
    for spoil, words in (
        (lambda m: m.SetMetricFixedMask(labels), "a label map came"),
        (lambda m: m.SetMetricMovingMask(labels), "a label map came"),
        (lambda m: m.SetInitialTransform(field), "field transform is empty"),
        (lambda m: m.SetMovingInitialTransform(field), "field transform is empty"),
        (lambda m: m.SetInitialTransform(empty), "no parameters|without transforms"),
    ):
        method = method_for(sitk.Euler3DTransform())
        method.SetOptimizerAsGradientDescent(1.0, 2)
        spoil(method)
        for run in (method.Execute, method.MetricEvaluate):
            with pytest.raises(DsirError, match=words) as error:
                run(moving, moving)
            assert "\n" not in str(error.value)


def test_bad_images_are_named(moving: Representation, pair: PhantomPair) -> None:
    method = method_for(sitk.Euler3DTransform())
    method.SetOptimizerAsGradientDescent(1.0, 2)
    flat = sitk.Image(8, 8, sitk.sitkFloat32)
    fewer = Representation(moving.values[..., :12], GRID)
    far = Representation(moving.values, Grid(GRID.size, GRID.spacing_mm, (500.0, 0.0, 0.0)))
    broken = moving.values.copy()
    broken[3, 4, 5:7, 0] = np.nan
    labels = sitk.LabelImageToLabelMap(sitk.Cast(pair.fixed_labels, sitk.sitkUInt8))
    for first, second, kind, words in (
        (np.zeros((8, 8, 8)), pair.moving, DataError, "a ndarray came"),
        (flat, flat, ShapeError, "fixed is 2-D and the initial transform 3-D"),
        (pair.fixed, moving, ShapeError, "only moving is represented"),
        (moving.to_sitk(), pair.fixed, ShapeError, "only fixed is represented"),
        (moving, fewer, ShapeError, "24 channels and moving 12"),
        (moving, far, RegistrationError, "images overlap"),
        (moving, Representation(broken, GRID), DataError, "moving: the descriptors of 2 voxels are NaN"),
        (labels, pair.moving, ShapeError, "fixed: an image of voxels is expected; a label map came"),
        (pair.fixed[:2, :2, :2], pair.moving, DataError, "fixed: nothing stands out from the background; give a mask"),
    ):
        for run in (method.Execute, method.MetricEvaluate):
            with pytest.raises(kind, match=words):
                run(first, second)
