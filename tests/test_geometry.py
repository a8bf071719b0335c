"""Properties of grids and displacement fields, on grids of any size, spacing, origin and orientation."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from dsir_metric.errors import GeometryError, ShapeError
from dsir_metric.geometry import DisplacementField, Grid

ANGLE = st.floats(-3, 3).map(lambda a: round(a, 9))  # ITK takes no directions with entries of 1e-308


@st.composite
def grids(draw: Callable[..., object]) -> Grid:
    size = draw(st.tuples(*[st.integers(2, 9)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.3, 5)] * 3))
    origin = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    rotation = np.reshape(sitk.Euler3DTransform([0, 0, 0], draw(ANGLE), draw(ANGLE), draw(ANGLE)).GetMatrix(), (3, 3))
    flips = np.diag(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)))
    return Grid(size, spacing, origin, tuple((rotation @ flips).ravel()))


@given(grids(), st.tuples(*[st.integers(0, 8)] * 3))
def test_points_are_those_of_simpleitk(grid: Grid, index: tuple[int, int, int]) -> None:
    image = grid.image()
    np.testing.assert_allclose(grid.to_physical(index), image.TransformIndexToPhysicalPoint(index), atol=1e-6)
    np.testing.assert_allclose(grid.to_index(grid.to_physical(index)), index, atol=1e-6)
    assert Grid.of(image).matches(grid)


@given(grids())
def test_points_mm_are_in_array_order(grid: Grid) -> None:
    points = grid.points_mm()
    assert points.shape == (*grid.shape, 3)
    np.testing.assert_allclose(points[-1, 0, 0], grid.to_physical((0, 0, grid.size[2] - 1)), atol=1e-9)
    np.testing.assert_allclose(points.reshape(-1, 3).mean(axis=0), grid.centre_mm, atol=1e-8)


@given(grids(), st.floats(0.3, 5), st.integers(0, 4))
def test_resampled_and_padded_keep_the_centre(grid: Grid, spacing: float, margin: int) -> None:
    np.testing.assert_allclose(grid.resampled(spacing).centre_mm, grid.centre_mm, atol=1e-8)
    padded = grid.padded(margin)
    np.testing.assert_allclose(padded.to_physical((margin,) * 3), grid.origin_mm, atol=1e-8)
    assert padded.size == tuple(n + 2 * margin for n in grid.size)


@given(grids(), st.data())
def test_cropped_is_a_slice_of_the_image(grid: Grid, data: st.DataObject) -> None:
    ends = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in grid.size]
    x, y, z = (slice(*end) for end in ends)
    assert grid.cropped((z, y, x)).matches(Grid.of(grid.image()[x, y, z]))


@given(grids())
def test_a_shift_of_part_of_a_voxel_no_longer_matches(grid: Grid) -> None:
    moved = Grid(grid.size, grid.spacing_mm, tuple(grid.to_physical((0.01, 0, 0))), grid.direction)
    assert grid.matches(grid)
    assert not grid.matches(moved)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (0, 4, 4)},
        {"spacing_mm": (1, 0, 1)},
        {"spacing_mm": (1, -1, 1)},
        {"spacing_mm": (1, float("nan"), 1)},
        {"origin_mm": (0, float("inf"), 0)},
        {"direction": (1, 0.5, 0, 0, 1, 0, 0, 0, 1)},
    ],
)
def test_an_unusable_geometry_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(GeometryError):
        Grid(**{"size": (4, 4, 4), **wrong})


def test_a_label_map_has_no_voxels() -> None:
    labels = sitk.LabelImageToLabelMap(sitk.Image(4, 4, 4, sitk.sitkUInt8) + 1)
    with pytest.raises(ShapeError, match=r"a label map came: convert it with sitk\.LabelMapToLabel"):
        Grid.of(labels)


def test_a_4d_image_has_no_grid() -> None:
    with pytest.raises(ShapeError, match="4 axes"):
        Grid.of(sitk.Image([4, 4, 4, 2], sitk.sitkUInt8))


@pytest.fixture
def flat() -> sitk.Image:
    image = sitk.GetImageFromArray(np.arange(12, dtype=np.float32).reshape(3, 4))
    image.SetSpacing((1.5, 2.0))
    image.SetOrigin((-3.0, 8.0))
    image.SetDirection((0.6, -0.8, 0.8, 0.6))
    return image


def test_a_2d_image_is_one_slice_of_space(flat: sitk.Image) -> None:
    grid = Grid.of(flat)
    assert (grid.dimension, grid.size, grid.spacing_mm) == (2, (4, 3, 1), (1.5, 2.0, 1.5))
    for index in ((0, 0), (3, 0), (1, 2)):
        expected = (*flat.TransformIndexToPhysicalPoint(index), 0.0)
        np.testing.assert_allclose(grid.to_physical((*index, 0)), expected, atol=1e-12)
        np.testing.assert_allclose(grid.points_mm()[0, index[1], index[0]], expected, atol=1e-12)


def test_a_2d_grid_makes_and_stamps_2d_images(flat: sitk.Image) -> None:
    grid = Grid.of(flat)
    slab = sitk.GetImageFromArray(sitk.GetArrayFromImage(flat)[None])
    for image in (grid.image(), grid.stamp(slab), grid.stamp(sitk.Image(4, 3, sitk.sitkUInt8))):
        assert Grid.of(image) == grid
    np.testing.assert_array_equal(sitk.GetArrayFromImage(grid.stamp(slab)), sitk.GetArrayFromImage(flat))
    with pytest.raises(ShapeError, match=r"size \(4, 3\) is expected"):
        grid.stamp(sitk.Image(4, 3, 2, sitk.sitkUInt8))
    assert not grid.matches(replace(grid, dimension=3))


def test_2d_grids_stay_one_slice_however_they_change(flat: sitk.Image) -> None:
    grid = Grid.of(flat)
    for changed, size, spacing in (
        (grid.resampled(0.5), (12, 12, 1), (0.5, 0.5, 0.5)),
        (grid.padded(2), (8, 7, 1), (1.5, 2.0, 1.5)),
        (grid.halved(), (2, 2, 1), (3.0, 4.0, 3.0)),
    ):
        assert (changed.size, changed.spacing_mm, changed.dimension) == (size, spacing, 2)
        assert changed.origin_mm[2] == 0
    np.testing.assert_allclose(grid.padded(2).centre_mm, grid.centre_mm)
    np.testing.assert_allclose(grid.halved().origin_mm, grid.to_physical((0.5, 0.5, 0)))


@settings(max_examples=40)
@given(grids(), st.lists(st.floats(-0.2, 0.2), min_size=9, max_size=9), st.tuples(*[st.floats(-30, 30)] * 3))
def test_field_of_an_affine_has_its_determinant(grid: Grid, change: list[float], shift: tuple[float, ...]) -> None:
    matrix = np.eye(3) + np.reshape(change, (3, 3))
    affine = sitk.AffineTransform(matrix.ravel().tolist(), shift, grid.centre_mm.tolist())
    field = DisplacementField.from_transform(affine, grid)
    expected = [affine.TransformPoint(p) - p for p in grid.points_mm().reshape(-1, 3)[::17]]
    np.testing.assert_allclose(field.values.reshape(-1, 3)[::17], expected, atol=1e-6)
    np.testing.assert_allclose(field.jacobian_determinant(), np.linalg.det(matrix), atol=1e-6)


@settings(max_examples=25)
@given(grids(), st.integers(0, 100))
def test_a_field_survives_the_way_through_a_transform(grid: Grid, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(*grid.shape, 3))
    back = DisplacementField.from_transform(DisplacementField(values, grid).to_transform(), grid)
    inner = (slice(0, -1),) * 3  # on the far border ITK may count a rounded point as outside
    np.testing.assert_allclose(back.values[inner], values[inner], atol=1e-6)


def test_turning_the_axes_of_the_grid_does_not_change_the_jacobian() -> None:
    grid = Grid((9, 8, 7), (1.0, 1.5, 2.0))
    turned = Grid((8, 7, 9), (1.5, 2.0, 1.0), direction=(0, 0, 1, 1, 0, 0, 0, 1, 0))
    values = np.random.default_rng(0).normal(size=(*grid.shape, 3))
    one = DisplacementField(values, grid).jacobian_determinant()
    other = DisplacementField(np.ascontiguousarray(values.transpose(2, 0, 1, 3)), turned).jacobian_determinant()
    np.testing.assert_allclose(other.transpose(1, 2, 0), one, atol=1e-12)


def test_statistics_count_folds_inside_the_mask() -> None:
    grid = Grid((10, 6, 6))
    values = np.zeros((*grid.shape, 3))
    values[..., 0] = -2.0 * np.maximum(grid.points_mm()[..., 0] - 5, 0)  # beyond x = 5 the axis runs backwards
    field = DisplacementField(values, grid)
    everywhere = field.jacobian_statistics()
    assert everywhere["folded_percent"] == pytest.approx(50.0)
    assert everywhere["min"] == pytest.approx(-1.0)
    left = np.broadcast_to(np.arange(10) < 5, grid.shape)
    inside = field.jacobian_statistics(left)
    assert (inside["folded_percent"], inside["min"], inside["sd_log"]) == (0.0, 1.0, 0.0)


def test_statistics_refuse_a_mask_that_does_not_fit() -> None:
    field = DisplacementField(np.zeros((3, 4, 5, 3)), Grid((5, 4, 3)))
    with pytest.raises(ShapeError):
        field.jacobian_statistics(np.ones((5, 4, 3), bool))
    with pytest.raises(GeometryError, match="empty"):
        field.jacobian_statistics(np.zeros((3, 4, 5), bool))
    with pytest.raises(ShapeError):
        DisplacementField(np.zeros((5, 4, 3, 3)), Grid((5, 4, 3)))


WHOLE = {
    "whole numbers": ((6, 5, 4), (2, 3, 4), (1, -2, 3), (1, 0, 0, 0, 1, 0, 0, 0, 1)),
    "lists": ([6, 5, 4], [2.0, 3.0, 4.0], [1, -2, 3], [1, 0, 0, 0, 1, 0, 0, 0, 1]),
    "arrays": (np.array([6, 5, 4]), np.array([2, 3, 4]), np.array([1, -2, 3], np.float32), np.eye(3)),
    "NumPy's numbers": (
        tuple(np.int64((6, 5, 4))),
        tuple(np.float32((2, 3, 4))),
        tuple(np.int16((1, -2, 3))),
        np.eye(3),
    ),
    "sizes that are floats": ((6.0, 5.0, 4.0), (2, 3, 4), (1, -2, 3), np.eye(3, dtype=int)),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_numbers_of_any_kind_make_the_same_grid(kind: str) -> None:
    expected = Grid((6, 5, 4), (2.0, 3.0, 4.0), (1.0, -2.0, 3.0))
    grid = Grid(*WHOLE[kind])  # type: ignore[arg-type]
    assert (grid, hash(grid)) == (expected, hash(expected))
    assert Grid.of(grid.image()) == expected
    assert grid.extent_mm.dtype == float
    zero = DisplacementField(np.zeros((*grid.shape, 3), int), grid).to_transform()
    assert zero.TransformPoint((1.0, 2.0, 3.0)) == (1.0, 2.0, 3.0)
    assert grid.resampled(2) == expected.resampled(2.0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("size", (4, 4, 4.5)),
        ("size", (4, 4)),
        ("spacing_mm", (1, 1)),
        ("spacing_mm", ("1", "1", "1")),
        ("origin_mm", (1, 2, 3, 4)),
        ("origin_mm", None),
        ("direction", (1, 0, 0)),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(name: str, values: object) -> None:
    with pytest.raises(GeometryError, match=f"the {name} of a grid must be"):
        replace(Grid((4, 4, 4)), **{name: values})
