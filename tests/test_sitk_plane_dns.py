"""Slices under the DNS cosine metric: representing them, registering two contrasts, and what does not fit together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from dsir_metric.errors import DsirError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.phantom import make_pair
from dsir_metric.represent import Representation, Representer, represent_pair
from dsir_metric.represent.foreground import foreground
from dsir_metric.sitk import ImageRegistrationMethod

SIZE, EDGE_MM = 104, 1.75


def slice_of(contrast: Any, seed: int) -> tuple[sitk.Image, sitk.Image]:
    """A slice of the phantom head, and its labels."""
    corner = -(SIZE - 1) / 2 * EDGE_MM
    grid = Grid((SIZE, SIZE, 1), (EDGE_MM,) * 3, (corner, corner, 14.0))
    pair = make_pair(24, SIZE * EDGE_MM / 24, ("t1", contrast), moving_grid=grid, amplitude_mm=0.0, seed=seed)
    return pair.moving[:, :, 0], pair.moving_labels[:, :, 0]


@pytest.fixture(scope="module")
def slices() -> tuple[sitk.Image, sitk.Image, sitk.Image]:
    """T1-like and FLAIR-like slice of one head in one place, and labels."""
    return *slice_of("t1", 1)[:1], *slice_of("flair", 2)


@pytest.fixture(scope="module")
def representer() -> Representer:
    return Representer(device="cpu")


def method_for(transform: Any) -> ImageRegistrationMethod:
    method = ImageRegistrationMethod()
    method.SetMetricAsDNSCosine(device="cpu")
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(transform, inPlace=False)
    return method


def test_a_slice_is_the_middle_of_a_slab_of_slices_like_it(slices: Any, representer: Representer) -> None:
    small = slices[0][20:60, 20:56]
    dsir = representer(small)
    assert (dsir.grid, dsir.values.shape) == (Grid.of(small), (1, 36, 40, 24))
    np.testing.assert_allclose(np.linalg.norm(dsir.values, axis=-1), 1.0, atol=1e-4)
    depth = 2 * representer.card.halo + 1
    slab = sitk.JoinSeries([small] * depth)
    slab.SetSpacing((EDGE_MM,) * 3)
    whole = representer(slab).values[depth // 2]
    assert ((whole * dsir.values[0]).sum(axis=-1) > 0.999).mean() > 0.99
    assert ((representer(slab[:, :, :3]).values[1] * dsir.values[0]).sum(axis=-1)).mean() < 0.9


def test_however_its_header_turns_a_slice_its_places_look_the_same(slices: Any, representer: Representer) -> None:
    small = slices[0][20:60, 20:56]
    turned = sitk.PermuteAxes(sitk.Flip(small, [True, False]), [1, 0])
    assert turned.GetDirection() != small.GetDirection()
    straight, other = representer(small), representer(turned)
    back = sitk.Resample(other.to_sitk(), small, sitk.Transform(2, sitk.sitkIdentity), sitk.sitkNearestNeighbor)
    np.testing.assert_allclose(sitk.GetArrayFromImage(back), straight.values[0], atol=1e-5)


def test_foreground_of_a_slice_is_the_head_with_its_holes(slices: Any) -> None:
    _, flair, labels = slices
    found = sitk.GetArrayFromImage(foreground(flair, Grid.of(flair))) > 0
    head = sitk.GetArrayFromImage(labels) > 0
    assert found[head].mean() > 0.99
    assert found[~head].mean() < 0.25


def test_two_contrasts_of_a_slice_are_registered_rigidly_then_by_a_bspline(slices: Any) -> None:
    t1, flair, labels = slices
    spline = sitk.BSplineTransformInitializer(t1, [3, 3])
    spline.SetParameters(np.random.default_rng(4).normal(0, 8, spline.GetNumberOfParameters()).tolist())
    truth = sitk.CompositeTransform([sitk.Euler2DTransform((0.0, 0.0), 0.12, (6.0, -5.0)), spline])
    fixed = sitk.Resample(t1, t1, truth, sitk.sitkLinear, 0.0)
    head = sitk.GetArrayFromImage(sitk.Resample(labels, labels, truth, sitk.sitkNearestNeighbor)) > 0
    places = [fixed.TransformIndexToPhysicalPoint((int(x), int(y))) for y, x in np.argwhere(head)[::11]]

    def error_mm(transform: Any) -> float:
        off = [np.subtract(transform.TransformPoint(p), truth.TransformPoint(p)) for p in places]
        return float(np.linalg.norm(off, axis=1).mean())

    start = sitk.CenteredTransformInitializer(
        fixed, flair, sitk.Euler2DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = method_for(start)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-2, 60, 0.7, 1e-9)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.5, 1)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([4, 0])
    rigid = method.Execute(fixed, flair)
    refined = sitk.BSplineTransformInitializer(fixed, [2, 2])
    method.SetMovingInitialTransform(rigid)
    method.SetInitialTransformAsBSpline(refined, inPlace=True, scaleFactors=[1, 2])
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetOptimizerAsLBFGS2(1e-9, 25)
    found = method.Execute(fixed, flair)
    errors = [error_mm(t) for t in (sitk.Euler2DTransform(), rigid, sitk.CompositeTransform([rigid, found]))]
    assert errors[0] > 9
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.5 * errors[1]
    assert 0.8 * head.sum() < method.GetMetricNumberOfValidPoints() < SIZE**2


def test_masks_and_metric_evaluate_work_on_slices(slices: Any, representer: Representer) -> None:
    labels, dsirs = slices[2], represent_pair(*slices[:2], representer)
    method = method_for(sitk.TranslationTransform(2))
    aligned = method.MetricEvaluate(*dsirs)
    method.SetInitialTransform(sitk.TranslationTransform(2, (8.0, 0.0)))
    assert aligned < method.MetricEvaluate(*(dsir.to_sitk() for dsir in dsirs)) - 0.1
    method.SetInitialTransform(sitk.TranslationTransform(2, (2.0, -2.0)))
    method.SetOptimizerAsLBFGSB(1e-8, 20)
    method.SetMetricFixedMask(labels == 5)
    method.SetMetricMovingMask(labels > 0)
    found = method.Execute(*dsirs)
    np.testing.assert_allclose(found.GetParameters(), (0, 0), atol=0.7)
    white = int((sitk.GetArrayFromImage(labels) == 5).sum())
    assert 0 < method.GetMetricNumberOfValidPoints() <= white


def test_what_does_not_fit_together_is_told_in_one_line(slices: Any) -> None:
    flat = slices[0]
    space = sitk.JoinSeries([flat] * 4)
    colour = sitk.Compose([sitk.Cast(flat, sitk.sitkUInt8)] * 3)
    euler, method = sitk.Euler2DTransform(), ImageRegistrationMethod()
    nothing = lambda m: None  # noqa: E731
    for fixed, moving, transform, spoil, words in (
        (flat, space, euler, nothing, "fixed is 2-D and moving 3-D: give all in one dimension"),
        (space, flat, sitk.Euler3DTransform(), nothing, "fixed is 3-D and moving 2-D"),
        (flat, flat, sitk.Euler3DTransform(), nothing, "fixed is 2-D and the initial transform 3-D"),
        (flat, flat, euler, lambda m: m.SetMetricFixedMask(space > 0), "fixed is 2-D and the fixed mask 3-D"),
        (flat, flat, euler, lambda m: m.SetMetricMovingMask(space > 0), "the moving mask 3-D"),
        (flat, flat, euler, lambda m: m.SetVirtualDomainFromImage(space), "the virtual domain 3-D"),
        (flat, flat, euler, lambda m: m.SetMovingInitialTransform(sitk.Euler3DTransform()), "moving initial .* 3-D"),
        (flat, flat, euler, lambda m: m.SetFixedInitialTransform(sitk.Euler3DTransform()), "fixed initial .* 3-D"),
        (colour, colour, euler, nothing, "fixed has voxels of type vector of 8-bit unsigned integer: a scalar image"),
        (flat, colour, euler, nothing, "moving has voxels of type vector of 8-bit"),
        (sitk.JoinSeries([space] * 2), space, euler, nothing, "fixed is 4-D: a 3-D or 2-D image is expected"),
        (flat, flat[:, :1], euler, nothing, "moving: is a single line"),
    ):
        method = method_for(transform)
        method.SetOptimizerAsGradientDescent(1.0, 2)
        spoil(method)
        for run in (method.Execute, method.MetricEvaluate):
            with pytest.raises(DsirError, match=words) as error:
                run(fixed, moving)
            assert "\n" not in str(error.value)


def test_representing_a_pair_of_unlike_dimension_is_refused(slices: Any, representer: Representer) -> None:
    with pytest.raises(ShapeError, match="fixed is 2-D and moving 3-D"):
        represent_pair(slices[0], sitk.JoinSeries([slices[0]] * 4), representer)


def test_the_edge_of_a_pixel_is_chosen_as_that_of_a_voxel_is(slices: Any, representer: Representer) -> None:
    fixed, moving = represent_pair(slices[0], sitk.Expand(slices[1], [2, 3]), representer)
    assert isinstance(fixed, Representation)
    for dsir in (fixed, moving):
        assert dsir.grid.dimension == 2
        np.testing.assert_allclose(dsir.grid.spacing_mm, EDGE_MM)
    coarse, _ = represent_pair(slices[0], slices[1], representer, spacing_mm=3.5)
    assert coarse.grid.size == (52, 52, 1)
