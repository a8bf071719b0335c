"""Heads that lie askew under the DNS cosine metric: the moving one is represented as it lies under the transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from dsir_metric.geometry import Grid, angle_deg
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.represent import Representation, Representer, represent_pair
from dsir_metric.represent.pair import represent_turned
from dsir_metric.sitk import ImageRegistrationMethod
from dsir_metric.sitk.dns import compared_pair
from dsir_metric.sitk.settings import DNSCosine, Settings

TURN = sitk.Euler3DTransform((3.0, -2.0, 1.0), 0.1, -0.2, 1.2, (5.0, 0.0, -3.0))
CHOICE = DNSCosine(device="cpu")


@pytest.fixture(scope="module")
def small() -> PhantomPair:
    return make_pair(24, 7.0, ("t1", "flair"))


def matrix_of(transform: sitk.Transform) -> np.ndarray:
    """The linear part of a linear transform, rows and columns x, y, z."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    return np.stack([transform.TransformPoint(tuple(end)) - origin for end in np.eye(3)], axis=1)


def script(pair: PhantomPair, start: sitk.Transform, after: sitk.Transform | None = None) -> tuple[Any, list[float]]:
    """What a rigid registration script finds, and the metric it says at the start and at the end."""
    method = ImageRegistrationMethod()
    method.SetMetricAsDNSCosine(device="cpu")
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([4, 0])
    method.SetOptimizerAsGradientDescent(1.0, 40)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=False)
    if after is not None:
        method.SetMovingInitialTransform(after)
    values = [method.MetricEvaluate(pair.fixed, pair.moving)]
    found = method.Execute(pair.fixed, pair.moving)
    values.append(method.GetMetricValue())
    return found if after is None else sitk.CompositeTransform([after, found]), values


@pytest.mark.parametrize(("angle", "place"), [(40, "initial"), (90, "moving initial"), (180, "initial")])
def test_a_turn_that_is_known_does_not_matter(angle: int, place: str) -> None:
    shift = (4.0, -3.0, 2.0)
    pair = make_pair(48, 3.75, ("t1", "flair"), rotation_deg=(0, 0, angle), translation_mm=shift, amplitude_mm=0.0)
    known = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.0, 0.0, np.radians(angle + 0.5))
    given = (known,) if place == "initial" else (sitk.Euler3DTransform(), known)
    found, (before, after) = script(pair, *given)
    assert pair.error_mm(known) > 5
    assert pair.error_mm(found) < 1
    assert angle_deg(matrix_of(pair.truth).T @ matrix_of(found)) < 0.5
    assert after < -0.9 < before < -0.7


def test_what_a_level_finds_turns_the_next() -> None:
    pair = make_pair(40, 4.5, ("t1", "flair"), rotation_deg=(15, 0, 0), amplitude_mm=0.0)
    method = ImageRegistrationMethod()
    errors = []
    for levels in (1, 3):
        method.SetMetricAsDNSCosine(device="cpu")
        method.SetShrinkFactorsPerLevel([1] * levels)
        method.SetSmoothingSigmasPerLevel([0] * levels)
        method.SetOptimizerAsLBFGS2(1e-3, 20)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(sitk.Euler3DTransform(), inPlace=False)
        errors.append(pair.error_mm(method.Execute(pair.fixed, pair.moving)))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("initial", "expected"),
    [
        ({"initial": TURN}, matrix_of(TURN)),
        ({"initial": sitk.CompositeTransform([TURN, sitk.TranslationTransform(3)])}, matrix_of(TURN)),
        ({"initial": sitk.TranslationTransform(3), "moving_initial": TURN}, matrix_of(TURN)),
        ({"initial": TURN, "moving_initial": TURN}, matrix_of(TURN) @ matrix_of(TURN)),
        ({"fixed_initial": TURN}, matrix_of(TURN).T),
        ({"initial": TURN, "fixed_initial": TURN}, np.eye(3)),
        ({"initial": sitk.Euler3DTransform((0, 0, 0), 0.08, 0, 0)}, np.eye(3)),
        ({"initial": sitk.ScaleTransform(3, (1.3, 0.7, 1.0))}, np.eye(3)),
        ({"initial": sitk.ScaleTransform(3, (-1, 1, 1))}, np.eye(3)),
        ({"initial": sitk.Euler3DTransform((0, 0, 0), float("nan"), 0, 0)}, np.eye(3)),
        ({}, np.eye(3)),
    ],
)
def test_the_axes_are_those_of_all_transforms_together(
    initial: dict[str, Any], expected: np.ndarray, small: PhantomPair
) -> None:
    pair = compared_pair(small.fixed, small.moving, Settings(CHOICE, **initial))
    np.testing.assert_allclose(np.reshape(pair.moving.grid.direction, (3, 3)), expected, atol=1e-6)
    assert pair.fixed.grid.direction == Grid((1, 1, 1)).direction


def test_a_bspline_turns_as_far_as_it_turns_the_whole(small: PhantomPair) -> None:
    spline = sitk.BSplineTransformInitializer(small.fixed, [1, 1, 1])
    settings = Settings(CHOICE, initial=spline, moving_initial=TURN)
    moved = compared_pair(small.fixed, small.moving, settings).moving.grid.direction
    np.testing.assert_allclose(np.reshape(moved, (3, 3)), matrix_of(TURN), atol=1e-6)


def test_it_is_represented_again_where_transforms_leave_it_askew(small: PhantomPair) -> None:
    settings = Settings(CHOICE)
    straight = compared_pair(small.fixed, small.moving, settings)
    assert straight.facing(settings, [sitk.Euler3DTransform((0, 0, 0), 0.08, 0, 0)]) is straight
    turned = straight.facing(settings, [TURN])
    at_once = compared_pair(small.fixed, small.moving, Settings(CHOICE, initial=TURN))
    np.testing.assert_array_equal(turned.moving.values, at_once.moving.values)
    assert turned.fixed is straight.fixed
    assert turned.moving_grid == straight.moving_grid
    assert turned.facing(settings, [TURN]) is turned
    np.testing.assert_allclose(turned.facing(settings, []).moving.grid.direction, np.eye(3).ravel(), atol=1e-9)


def test_what_came_represented_stays_as_it_is(small: PhantomPair) -> None:
    dsirs = represent_pair(small.fixed, small.moving, Representer(device="cpu"))
    settings = Settings(CHOICE, initial=TURN)
    pair = compared_pair(*dsirs, settings)
    assert pair.moving is dsirs[1]
    assert pair.facing(settings, [TURN]) is pair


def test_a_slice_is_turned_in_its_plane(small: PhantomPair) -> None:
    fixed, moving = small.fixed[:, :, 12], small.moving[:, :, 12]
    turn = sitk.Euler2DTransform((0.0, 0.0), 0.5)
    pair = compared_pair(fixed, moving, Settings(CHOICE, initial=turn))
    assert pair.moving.grid.dimension == 2
    expected = sitk.Euler3DTransform((0, 0, 0), 0, 0, 0.5).GetMatrix()
    np.testing.assert_allclose(pair.moving.grid.direction, expected, atol=1e-6)
    again = represent_turned(
        sitk.Cast(moving, sitk.sitkFloat32), pair.fixed.grid, np.reshape(expected, (3, 3)), Representer(device="cpu")
    )
    assert isinstance(again, Representation)
    np.testing.assert_array_equal(again.values, pair.moving.values)
