"""Lengths follow the size of the body: mice, fingers and heads in wrong headers are registered as patients are."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from dsir_metric.geometry import Grid, body_scale
from dsir_metric.phantom import make_pair
from dsir_metric.register import DeformableConfig, RegisterConfig, SearchConfig, register
from dsir_metric.register.units import Units, scaled
from dsir_metric.represent import PairRepresenter, Representer, represent_pair
from dsir_metric.represent.foreground import foreground

QUICK = RegisterConfig(
    threads=1,
    stages=("centre", "rigid", "deformable"),
    deformable=DeformableConfig(iterations=(4, 4, 4, 4)),
)


def in_header(image: sitk.Image, factor: float) -> sitk.Image:
    return Grid.of(image).scaled(factor).stamp(sitk.Image(image))


@pytest.mark.parametrize(
    ("size", "spacing", "expected"),
    [
        pytest.param((182, 218, 182), (1.0, 1.0, 1.0), 1, id="brain"),
        pytest.param((512, 512, 300), (0.7, 0.7, 1.5), 1, id="abdomen"),
        pytest.param((400, 400, 900), (1.3, 1.3, 2.0), 1, id="whole body"),
        pytest.param((44, 59, 41), (1.0, 1.0, 1.0), 1, id="prostate"),
        pytest.param((320, 320, 4), (0.7, 0.7, 5.0), 1, id="slab"),
        pytest.param((20, 20, 20), (10.0, 10.0, 10.0), 1, id="coarse"),
        pytest.param((160, 200, 120), (0.1, 0.1, 0.1), 1 / 8, id="mouse"),
        pytest.param((80, 90, 250), (0.3, 0.3, 0.3), 1 / 8, id="finger"),
        pytest.param((182, 218, 182), (10.0, 10.0, 10.0), 8, id="head in a header ten times too large"),
        pytest.param((182, 218, 182), (1e-3, 1e-3, 1e-3), 2.0**-10, id="metres written as mm"),
    ],
)
def test_scale_of_a_body(size: tuple[int, int, int], spacing: tuple[float, float, float], expected: float) -> None:
    assert body_scale(Grid(size, spacing)) == expected


def test_the_smaller_box_and_the_larger_voxel_count() -> None:
    head, mouse = Grid((182, 218, 182)), Grid((182, 218, 182), (0.1, 0.1, 0.1))
    assert body_scale(head, mouse) == body_scale(mouse, head) == 1 / 8


@pytest.mark.parametrize("factor", [1 / 8, 16.0])
def test_a_header_of_another_size_gives_the_same_result(factor: float) -> None:
    pair = make_pair(28, 6.0, ("t1", "flair"))
    plain = register(pair.fixed, pair.moving, QUICK)
    other = register(in_header(pair.fixed, factor), in_header(pair.moving, factor), QUICK)
    assert other.details["scale"] == factor
    assert plain.details["scale"] == 1
    assert other.fixed_grid == Grid.of(in_header(pair.fixed, factor))
    for point in Grid.of(pair.fixed).points_mm()[::9, ::9, ::9].reshape(-1, 3).tolist():
        there = other.transform.TransformPoint((factor * np.array(point)).tolist())
        np.testing.assert_allclose(np.array(there) / factor, plain.transform.TransformPoint(point), atol=1e-9)
    assert other.details["working_spacing_mm"] == pytest.approx(factor * 6.0)
    assert other.details["bending_mm2"] == pytest.approx(factor**2 * plain.details["bending_mm2"])


def test_masks_starts_and_representations_follow() -> None:
    pair, factor = make_pair(28, 6.0, ("t1", "flair")), 1 / 8
    start = sitk.TranslationTransform(3, (4.0, -3.0, 2.0))
    mask = foreground(pair.fixed, Grid.of(pair.fixed))
    make = PairRepresenter(Representer(threads=1), 7.0)
    small = [in_header(image, factor) for image in (pair.fixed, pair.moving)]
    plain = register(
        pair.fixed, pair.moving, QUICK, fixed_mask=mask, initial_transform=start, representations=make
    ).transform
    starts = (sitk.TranslationTransform(3, [factor * v for v in (4.0, -3.0, 2.0)]), in_header(mask, factor))
    for made in (
        PairRepresenter(make.representer, 7.0 * factor),
        represent_pair(*small, make.representer, spacing_mm=7.0 * factor),
    ):
        other = register(
            *small, QUICK, fixed_mask=starts[1], initial_transform=starts[0], representations=made
        ).transform
        point = np.array([12.0, -20.0, 8.0])
        np.testing.assert_allclose(
            np.array(other.TransformPoint((factor * point).tolist())) / factor,
            plain.TransformPoint(point.tolist()),
            atol=1e-6,
        )


def test_lengths_that_a_user_gives_stay_mm() -> None:
    given = RegisterConfig(
        spacing_mm=0.2,
        search=SearchConfig(translation_mm=2.0),
        deformable=DeformableConfig(lattice_mm=(4.0, 2.0), iterations=(5, 5), bending_mm2=0.5),
    )
    found = Units(1 / 8).config(given)
    assert (found.spacing_mm, found.search.translation_mm) == (1.6, 16.0)
    assert (found.deformable.lattice_mm, found.deformable.bending_mm2) == ((32.0, 16.0), 32.0)
    assert Units(1 / 8).config(RegisterConfig()) == RegisterConfig()


def test_scale_can_be_given() -> None:
    pair = make_pair(24, 7.0)
    result = register(pair.fixed, pair.moving, RegisterConfig(threads=1, stages=("centre",), scale=0.5))
    assert result.details["scale"] == 0.5
    assert result.details["working_spacing_mm"] == pytest.approx(7.0)


def _transforms() -> dict[str, sitk.Transform]:
    random = np.random.default_rng(0)
    spline = sitk.BSplineTransformInitializer(Grid((9, 8, 7), (3.0, 4.0, 5.0), (-10.0, 2.0, 1.0)).image(), [3, 4, 2])
    spline.SetParameters(random.normal(size=len(spline.GetParameters())).tolist())
    values = random.normal(size=(7, 8, 9, 3))
    field = Grid((9, 8, 7), (3.0, 4.0, 5.0), (-10.0, 2.0, 1.0)).stamp(sitk.GetImageFromArray(values, isVector=True))
    rigid = sitk.VersorRigid3DTransform((0.1, 0.2, 0.3, 0.9), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    euler = sitk.Euler3DTransform((3.0, 1.0, 2.0), 0.1, 0.2, -0.3, (1.0, 2.0, 3.0))
    field_transform = sitk.DisplacementFieldTransform(sitk.Image(field))
    nested = sitk.CompositeTransform([sitk.CompositeTransform([rigid, field_transform]), spline, euler])
    return {
        "translation": sitk.TranslationTransform(3, (1.0, 2.0, 3.0)),
        "rigid": rigid,
        "spline": spline,
        "field": field_transform,
        "nested": nested,
    }


@pytest.mark.parametrize("name", list(_transforms()))
@settings(max_examples=20, deadline=None)
@given(factor=st.sampled_from([1 / 8, 0.3, 2.0, 10.0]), point=st.tuples(*[st.floats(-9.0, 30.0)] * 3))
def test_scaled_transform_is_the_transform_of_scaled_points(
    name: str, factor: float, point: tuple[float, float, float]
) -> None:
    transform = _transforms()[name]
    there = scaled(transform, factor).TransformPoint([factor * x for x in point])
    np.testing.assert_allclose(np.array(there) / factor, transform.TransformPoint(point), atol=1e-9)
