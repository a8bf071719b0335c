"""Images, representations and transforms between ITK and SimpleITK."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from dsir_metric.errors import ConfigError, DataError, MissingDependencyError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.itk import from_itk, to_itk, to_sitk, transform_to_itk, transform_to_sitk
from dsir_metric.phantom import smooth_transform
from dsir_metric.represent import Representation

itk = pytest.importorskip("itk")

GRID = Grid((9, 8, 7), (3.0, 2.0, 4.0), (-20.0, 5.0, 7.0), sitk.Euler3DTransform([0] * 3, 0.2, -0.1, 0.3).GetMatrix())
POINTS = GRID.to_physical(np.random.default_rng(1).uniform(-1, 8, (60, 3)))
angles = st.floats(-3.1, 3.1)
spacings = st.floats(0.1, 9.0)
shifts = st.floats(-300.0, 300.0)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any size, anisotropic, oblique, flipped along any axis."""
    size = tuple(draw(st.tuples(*[st.integers(2, 5)] * 3)))
    turn = np.reshape(sitk.Euler3DTransform([0] * 3, *draw(st.tuples(angles, angles, angles))).GetMatrix(), (3, 3))
    flips = np.diag(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)))
    return Grid(size, draw(st.tuples(*[spacings] * 3)), draw(st.tuples(*[shifts] * 3)), tuple((turn @ flips).ravel()))


def same_place(image: object, grid: Grid) -> None:
    """ITK itself says that each corner voxel lies where the grid has it."""
    for index in ([0, 0, 0], [grid.size[0] - 1, 0, 0], [0, grid.size[1] - 1, 1], [1, 1, grid.size[2] - 1]):
        np.testing.assert_allclose(list(image.TransformIndexToPhysicalPoint(index)), grid.to_physical(index), atol=1e-9)


@settings(max_examples=25)
@given(grids(), st.integers(1, 4))
def test_a_representation_goes_there_and_back(grid: Grid, channels: int) -> None:
    values = np.random.default_rng(0).random((*grid.shape, channels + 1), np.float32)
    image = to_itk(Representation(values, grid))
    same_place(image, grid)
    again = from_itk(image)
    np.testing.assert_array_equal(again.values, values)
    assert again.grid.matches(grid, 1e-9)


@settings(max_examples=15)
@given(grids(), st.sampled_from(["uint8", "int16", "uint16", "int32", "uint32", "uint64", "float32", "float64"]))
def test_an_image_keeps_pixel_type_values_and_place(grid: Grid, kind: str) -> None:
    values = (np.arange(np.prod(grid.size)) % 251).reshape(grid.shape).astype(kind)
    image = grid.stamp(sitk.GetImageFromArray(values))
    there = to_itk(image)
    same_place(there, grid)
    back = to_sitk(there)
    assert back.GetPixelID() == image.GetPixelID()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), values)
    assert Grid.of(back).matches(grid, 1e-9)


def test_itk_reads_what_simpleitk_writes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((*GRID.shape, 5), np.float32)
    sitk.WriteImage(Representation(values, GRID).to_sitk(), str(tmp_path / "d.nrrd"))
    again = from_itk(itk.imread(str(tmp_path / "d.nrrd"), itk.VariableLengthVector[itk.F]))
    np.testing.assert_array_equal(again.values, values)
    assert again.grid.matches(GRID, 1e-6)


def test_a_region_that_begins_elsewhere_stays_where_it_is() -> None:
    whole = to_itk(GRID.stamp(sitk.GetImageFromArray(np.random.default_rng(0).random(GRID.shape, np.float32))))
    cut = itk.RegionOfInterestImageFilter.New(whole)  # a filter, not yet up to date
    part = itk.ImageRegion[3]()
    part.SetIndex([2, 1, 3])
    part.SetSize([4, 3, 2])
    cut.SetRegionOfInterest(part)
    extracted = itk.extract_image_filter(whole, extraction_region=part)  # keeps the index
    assert list(extracted.GetBufferedRegion().GetIndex()) == [2, 1, 3]
    for image in (to_sitk(cut), to_sitk(extracted)):
        np.testing.assert_allclose(image.GetOrigin(), GRID.to_physical([2, 1, 3]), atol=1e-9)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), itk.array_from_image(whole)[3:5, 1:4, 2:6])


def test_the_result_owns_its_values() -> None:
    image = to_itk(GRID.image(sitk.sitkFloat32))
    copy = to_sitk(image)
    itk.array_view_from_image(image)[:] = 7
    assert sitk.GetArrayFromImage(copy).max() == 0


def test_images_that_cannot_be_taken() -> None:
    with pytest.raises(DataError, match="fixed: is a ndarray; an itk image is expected"):
        to_sitk(np.zeros((3, 3, 3)), "fixed")
    with pytest.raises(DataError, match="is a Image; an itk image"):
        to_sitk(GRID.image())
    with pytest.raises(ShapeError, match="one with 2 axes came"):
        to_sitk(itk.image_from_array(np.zeros((4, 4), np.float32)))
    with pytest.raises(ShapeError, match="several components is expected"):
        from_itk(to_itk(GRID.image(sitk.sitkFloat32)))
    with pytest.raises(DataError, match="itk has no image of 8-bit signed integer"):
        to_itk(GRID.image(sitk.sitkInt8))
    with pytest.raises(ShapeError, match="colour has voxels of type vector of 8-bit unsigned integer: a scalar image"):
        from_itk(itk.image_from_array(np.zeros((4, 4, 4, 3), np.uint8), is_vector=True), "colour")
    with pytest.raises(ShapeError, match="a 2-D one came"):
        to_itk(sitk.Image(4, 4, sitk.sitkFloat32))
    with pytest.raises(DataError, match=r"a ndarray came; a sitk\.Image or a Representation is expected"):
        to_itk(np.zeros((3, 3, 3)))


def bspline() -> sitk.Transform:
    return smooth_transform(GRID, 0.3, 1.5, np.random.default_rng(0))


def field() -> sitk.Transform:
    values = np.random.default_rng(2).normal(size=(*GRID.shape, 3))
    return sitk.DisplacementFieldTransform(GRID.stamp(sitk.GetImageFromArray(values, isVector=True)))


def euler() -> sitk.Transform:
    turned = sitk.Euler3DTransform([5.0, -3.0, 9.0], 0.3, -0.2, 0.4, [1.0, 2.0, 3.0])
    turned.SetComputeZYX(True)
    return turned


def with_parameters(transform: sitk.Transform, *values: float) -> sitk.Transform:
    transform.SetFixedParameters([4.0, -7.0, 2.0][: len(transform.GetFixedParameters())])
    transform.SetParameters(values)
    return transform


TRANSFORMS: dict[str, Callable[[], sitk.Transform]] = {
    "IdentityTransform": lambda: sitk.Transform(3, sitk.sitkIdentity),
    "TranslationTransform": lambda: sitk.TranslationTransform(3, [1.0, -2.0, 3.5]),
    "Euler3DTransform": euler,
    "VersorTransform": lambda: with_parameters(sitk.VersorTransform(), 0.1, -0.2, 0.3),
    "VersorRigid3DTransform": lambda: with_parameters(sitk.VersorRigid3DTransform(), 0.1, -0.2, 0.3, 4, 5, 6),
    "Similarity3DTransform": lambda: with_parameters(sitk.Similarity3DTransform(), 0.1, -0.2, 0.3, 4, 5, 6, 1.2),
    "ScaleTransform": lambda: with_parameters(sitk.ScaleTransform(3), 0.9, 1.1, 1.3),
    "ScaleVersor3DTransform": lambda: with_parameters(
        sitk.ScaleVersor3DTransform(), 0.1, -0.2, 0.3, 4, 5, 6, 0.9, 1.1, 1.2
    ),
    "ScaleSkewVersor3DTransform": lambda: with_parameters(
        sitk.ScaleSkewVersor3DTransform(), 0.1, -0.2, 0.3, 4, 5, 6, 0.9, 1.1, 1.2, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06
    ),
    "AffineTransform": lambda: with_parameters(sitk.AffineTransform(3), 1.1, 0.1, 0, -0.2, 0.9, 0, 0.1, 0, 1, 3, -4, 5),
    "BSplineTransform": bspline,
    "DisplacementFieldTransform": field,
    "CompositeTransform": lambda: sitk.CompositeTransform(
        [euler(), sitk.CompositeTransform([field(), with_parameters(sitk.VersorTransform(), 0.1, 0, 0)]), bspline()]
    ),
}


def mapped_by_itk(transform: object) -> np.ndarray:
    return np.array([list(transform.TransformPoint(p)) for p in POINTS.tolist()])


def mapped(transform: sitk.Transform) -> np.ndarray:
    return np.array([transform.TransformPoint(p) for p in POINTS.tolist()])


@pytest.mark.parametrize("name", list(TRANSFORMS))
@pytest.mark.parametrize("ending", ["h5", "tfm"])
def test_a_transform_maps_points_alike_everywhere(name: str, ending: str, tmp_path: Path) -> None:
    """There, through ITK's file and its reader, and back."""
    given_ = TRANSFORMS[name]()
    there = transform_to_itk(sitk.Transform(given_))
    assert there.GetNameOfClass() == name
    np.testing.assert_allclose(mapped_by_itk(there), mapped(given_), atol=1e-9)
    assert [list(there.GetParameters())[i] for i in (0, -1) if given_.GetParameters()] == [
        given_.GetParameters()[i] for i in (0, -1) if given_.GetParameters()
    ]
    itk.transformwrite([there], str(tmp_path / f"t.{ending}"))
    read = itk.transformread(str(tmp_path / f"t.{ending}"))
    np.testing.assert_allclose(mapped(transform_to_sitk(read)), mapped(given_), atol=1e-9)
    np.testing.assert_allclose(mapped(sitk.ReadTransform(str(tmp_path / f"t.{ending}"))), mapped(given_), atol=1e-9)


@settings(max_examples=20)
@given(st.tuples(*[angles] * 3), st.tuples(*[shifts] * 3), st.tuples(*[shifts] * 3), st.sampled_from([-1.0, 1.0]))
def test_linear_maps_with_flips_and_centres(
    turn: tuple[float, ...], shift: tuple[float, ...], centre: tuple[float, ...], flip: float
) -> None:
    rotation = np.reshape(sitk.Euler3DTransform([0] * 3, *turn).GetMatrix(), (3, 3)) @ np.diag([flip, 1.3, 0.7])
    given_ = sitk.AffineTransform(rotation.ravel().tolist(), shift, centre)
    there = transform_to_itk(given_)
    np.testing.assert_allclose(mapped_by_itk(there), mapped(given_), atol=1e-6)
    back = transform_to_sitk(there)
    assert back.GetParameters() == given_.GetParameters()
    assert back.GetFixedParameters() == given_.GetFixedParameters()


def test_fields_that_smooth_their_updates_are_fields() -> None:
    smoothing = itk.GaussianSmoothingOnUpdateDisplacementFieldTransform[itk.D, 3].New()
    smoothing.SetDisplacementField(to_itk(field().GetDisplacementField()))
    np.testing.assert_allclose(mapped(transform_to_sitk(smoothing)), mapped(field()), atol=1e-9)


def test_only_the_last_transform_of_a_composite_is_free() -> None:
    there = transform_to_itk(sitk.CompositeTransform([euler(), sitk.TranslationTransform(3)]))
    assert there.GetNumberOfParameters() == 3


def test_transforms_that_cannot_be_taken() -> None:
    with pytest.raises(ConfigError, match="a Rigid3DTransform came; supported are IdentityTransform, Translation"):
        transform_to_sitk(itk.Rigid3DTransform[itk.D].New())
    with pytest.raises(ConfigError, match="a BSplineTransform of order 2 came"):
        transform_to_itk(sitk.BSplineTransform(3, 2))
    with pytest.raises(ShapeError, match="a 2-D one came"):
        transform_to_sitk(itk.Euler2DTransform[itk.D].New())
    with pytest.raises(ShapeError, match="a 2-D one came"):
        transform_to_itk(sitk.Euler2DTransform())
    with pytest.raises(ConfigError, match="a composite transform without transforms"):
        transform_to_itk(sitk.CompositeTransform(3))
    with pytest.raises(DataError, match=r"a str came; a sitk\.Transform is expected"):
        transform_to_itk("transform.h5")
    with pytest.raises(DataError, match="a str came; an itk transform is expected"):
        transform_to_sitk("transform.h5")
    with pytest.raises(DataError, match="a list of 2 transforms came"):
        transform_to_sitk([itk.Euler3DTransform[itk.D].New()] * 2)


def test_without_itk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "itk", None)
    with pytest.raises(MissingDependencyError, match=r"dsir-metric\[itk\]"):
        transform_to_itk(sitk.Euler3DTransform())
