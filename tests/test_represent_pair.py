"""Two scans on comparable grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dsir_metric.errors import ConfigError, DataError
from dsir_metric.geometry import Grid
from dsir_metric.phantom import PhantomPair
from dsir_metric.represent import Representer, represent_pair
from dsir_metric.represent.pair import (
    MOST_VOXELS,
    finer_spacing,
    represent_finer,
    represent_turned,
    resampled,
    turned_grid,
    working_grids,
)


@pytest.fixture(scope="module")
def representer(model_file: Path) -> Representer:
    return Representer(model_file, device="cpu", threads=1)


def turned(angle: float) -> tuple[float, ...]:
    return tuple(sitk.Euler3DTransform([0, 0, 0], 0.1, angle, -0.2).GetMatrix())


def test_grids_share_spacing_and_axes_and_cover_both_scans() -> None:
    fixed = Grid((50, 40, 30), (1.0, 1.0, 2.0), (3, 4, 5), turned(0.3))
    moving = Grid((60, 64, 20), (0.9, 0.9, 3.0), (-20, 10, 40), turned(-0.4))
    on_fixed, on_moving = working_grids(fixed, moving)
    assert on_fixed.spacing_mm == on_moving.spacing_mm
    assert on_fixed.spacing_mm[0] == pytest.approx((0.9 * 0.9 * 3.0) ** (1 / 3))
    assert on_fixed.direction == on_moving.direction == fixed.direction
    np.testing.assert_allclose(on_fixed.centre_mm, fixed.centre_mm)
    for grid, covering in ((fixed, on_fixed), (moving, on_moving)):
        corners = [[x, y, z] for x in (0, grid.size[0]) for y in (0, grid.size[1]) for z in (0, grid.size[2])]
        index = covering.to_index(grid.to_physical(np.array(corners) - 0.5))
        assert index.min() > -1.01  # half a voxel of rounding beyond the outer faces
        assert (index - covering.size).max() < 0.01
    tight = np.prod(working_grids(fixed, fixed)[1].extent_mm)
    assert tight == pytest.approx(np.prod(fixed.extent_mm), rel=0.1)


def test_axes_of_the_fixed_header_do_not_matter() -> None:
    fixed = sitk.Image([12, 10, 8], sitk.sitkFloat32)
    fixed.SetSpacing([1.0, 1.2, 2.0])
    fixed.SetDirection(turned(0.2))
    moving = Grid((9, 9, 9), (1.5, 1.5, 1.5), (4, 4, 4))
    other = sitk.Flip(sitk.PermuteAxes(fixed, [1, 2, 0]), [True, False, True])
    for a, b in zip(working_grids(Grid.of(fixed), moving), working_grids(Grid.of(other), moving), strict=True):
        assert a.matches(b)


def test_large_scans_are_taken_coarser() -> None:
    grid = Grid((512, 512, 400), (0.5, 0.5, 0.5))
    for made in working_grids(grid, Grid((10, 10, 10), (0.5, 0.5, 0.5))):
        assert np.prod(made.size) <= 1.01 * MOST_VOXELS
        assert made.spacing_mm[0] > 0.5
    assert working_grids(grid, grid, 0.5)[0].size == grid.size  # what is asked for is done


def test_resampling_makes_no_edge_outside() -> None:
    image = sitk.Image([8, 8, 8], sitk.sitkFloat32) + 500.0
    grid = Grid((30, 30, 30), (1.0, 1.0, 1.0), (-11.0, -11.0, -11.0))
    np.testing.assert_allclose(sitk.GetArrayFromImage(resampled(image, grid)), 500.0, rtol=1e-6)


def test_coarser_voxels_are_averaged_not_picked() -> None:
    random = np.random.default_rng(0).standard_normal((40, 40, 40)).astype(np.float32)
    fine = sitk.GetImageFromArray(random)
    same = resampled(fine, Grid.of(fine))
    np.testing.assert_allclose(sitk.GetArrayViewFromImage(same), random, atol=1e-6)
    coarse = sitk.GetArrayFromImage(resampled(fine, Grid.of(fine).resampled(4.0)))
    assert coarse.std() < 0.2  # the linear interpolation alone leaves 0.35


def test_a_scan_agrees_with_itself_under_another_header(representer: Representer, pair: PhantomPair) -> None:
    fixed = pair.fixed
    moving = sitk.Flip(sitk.PermuteAxes(fixed, [2, 0, 1]), [False, True, True])
    a, b = represent_pair(fixed, moving, representer)
    assert a.grid.matches(b.grid)
    cosine = (a.values * b.values).sum(axis=-1)
    assert cosine.min() > 0.99
    assert a.provenance["intensity_high"] == pytest.approx(b.provenance["intensity_high"], rel=1e-6)


def test_intensity_rule_is_that_of_the_scan_as_it_came(representer: Representer, pair: PhantomPair) -> None:
    values = sitk.GetArrayViewFromImage(pair.moving)
    _, moving = represent_pair(pair.fixed, pair.moving, representer, spacing_mm=9.0, moving_intensity="mr")
    assert moving.provenance["intensity_high"] == representer.rule(values, "mr").high
    assert moving.provenance["intensity_detected"] is False
    assert moving.grid.spacing_mm == (9.0, 9.0, 9.0)


@pytest.mark.parametrize("spacing", [0.0, -1.0, np.nan, np.inf])
def test_spacing_out_of_range(representer: Representer, pair: PhantomPair, spacing: float) -> None:
    with pytest.raises(ConfigError, match="spacing_mm"):
        represent_pair(pair.fixed, pair.moving, representer, spacing_mm=spacing)


@pytest.mark.parametrize(("spacing", "size"), [(1000.0, r"\(1, 1, 1\)"), (0.05, r"\(3600, 3600, 3600\)")])
def test_spacing_that_leaves_too_few_or_too_many_voxels(spacing: float, size: str) -> None:
    grid = Grid((40, 40, 40), (4.5, 4.5, 4.5))
    with pytest.raises(ConfigError, match=f"make the fixed scan {size} voxels"):
        working_grids(grid, grid, spacing)


def test_bad_scan_is_named(representer: Representer, pair: PhantomPair) -> None:
    with pytest.raises(DataError, match=r"^moving: "):
        represent_pair(pair.fixed, sitk.Image([8, 8, 8], sitk.sitkFloat32), representer)


@pytest.mark.parametrize("angle", [0.25, 1.3])  # at the second another axis is the nearest to L
def test_a_scan_that_lies_askew_is_described_as_if_it_lay_straight(
    pair: PhantomPair, representer: Representer, angle: float
) -> None:
    """The same voxels under a turned header: along turned axes the descriptors are the same, bit for bit nearly."""
    rotation = np.reshape(turned(angle), (3, 3))
    grid = Grid.of(pair.fixed)
    there = Grid(grid.size, grid.spacing_mm, tuple(rotation @ grid.origin_mm), tuple(rotation.ravel()))
    moving = there.stamp(sitk.Image(pair.fixed))
    straight, askew = represent_pair(pair.fixed, moving, representer)
    again = represent_turned(moving, straight.grid, rotation, representer)
    assert again.grid.matches(there)
    np.testing.assert_allclose(again.values, straight.values, atol=1e-4)
    seen = askew.resampled(there).unit().values
    inside = (slice(8, -8),) * 3
    assert np.mean((seen * straight.values).sum(-1)[inside]) < 0.97


def test_turned_axes_are_met_without_blur(pair: PhantomPair) -> None:
    """There and back, a cubic interpolation keeps more of a scan than a linear one; both stay within its range."""
    grid = Grid.of(pair.fixed)
    askew = Grid(grid.size, grid.spacing_mm, grid.origin_mm, turned(0.1))
    there = resampled(pair.fixed, askew)
    linear = sitk.Resample(pair.fixed, askew.image(), sitk.Transform(), sitk.sitkLinear)
    values = sitk.GetArrayFromImage(pair.fixed)
    assert there.GetPixelID() == pair.fixed.GetPixelID()
    assert values.min() <= sitk.GetArrayViewFromImage(there).min()
    assert sitk.GetArrayViewFromImage(there).max() <= values.max()
    core = (slice(10, -10),) * 3
    errors = []
    for image in (there, linear):
        back = sitk.Resample(image, pair.fixed, sitk.Transform(), sitk.sitkBSpline)
        errors.append(np.abs(sitk.GetArrayFromImage(back) - values)[core].mean())
    assert errors[0] < 0.8 * errors[1]


def test_smaller_voxels_are_as_small_as_asked_or_as_is_worth_while() -> None:
    small, large = Grid((90, 100, 80), (2.0, 2.0, 2.0)), Grid((200, 200, 140))
    assert finer_spacing((small, small), 0.7) == pytest.approx(1.4)
    assert finer_spacing((small, small), 0.95) is None
    assert finer_spacing((large, large), 0.7) == pytest.approx((large.extent_mm.prod() / 8e6) ** (1 / 3))
    assert finer_spacing((small, Grid((160, 160, 160), (2.0, 2.0, 2.0))), 0.7) == pytest.approx(1.6)  # of both scans
    assert finer_spacing((large, Grid((256, 256, 256))), 0.7) is None


def test_smaller_voxels_are_those_of_scans_represented_in_them(pair: PhantomPair, representer: Representer) -> None:
    """Only around points, and the fixed ones read at the voxels of its grid; the moving scan turned."""
    rotation = np.reshape(turned(0.25), (3, 3))
    fixed, _ = working_grids(Grid.of(pair.fixed), Grid.of(pair.moving))
    along = turned_grid(Grid.of(pair.moving), fixed, rotation)
    points = fixed.points_mm()[10:30, 12:28, 11:25].reshape(-1, 3)
    places = points @ rotation.T + (2.0, -1.0, 3.0)
    first, second = represent_finer(pair.fixed, pair.moving, (fixed, along), 3.0, (points, places), representer)
    assert first.grid.matches(fixed)
    assert second.values[0].size < 0.5 * 24 * along.resampled(3.0).size[0] * along.resampled(3.0).size[1]
    whole = represent_pair(pair.fixed, pair.moving, representer, spacing_mm=3.0)[0]
    expected = whole.resampled(fixed).unit().values
    inside = (slice(10, 30), slice(12, 28), slice(11, 25))
    np.testing.assert_allclose(first.values[inside], expected[inside], atol=1e-4)
    askew = represent_turned(pair.moving, fixed.resampled(3.0), rotation, representer)
    index = second.grid.to_index(places)
    assert index.min() > 3.9  # 12 mm
    assert (np.array(second.grid.size) - 1 - index).min() > 3.9
    np.testing.assert_allclose(second.values, askew.resampled(second.grid).values, atol=1e-4)


@pytest.mark.parametrize("mixed", [False, True])
def test_both_sides_go_through_the_same_steps_in_smaller_voxels(
    pair: PhantomPair, representer: Representer, mixed: bool
) -> None:
    """Where the scans are the same, descriptors agree best exactly in place."""
    fixed, moving = working_grids(Grid.of(pair.fixed), Grid.of(pair.fixed))
    points = fixed.points_mm()[10:30, 12:28, 11:25].reshape(-1, 3)
    first, second = represent_finer(
        pair.fixed, pair.fixed, (fixed, moving), 3.0, (points, points), representer, mixed=mixed
    )
    there = second.resampled(fixed).unit().values
    inside = (slice(10, 30), slice(12, 28), slice(11, 25))
    np.testing.assert_allclose(first.values[inside], there[inside], atol=1e-5)
