"""Free-form deformation: the same spline as SimpleITK's, exact smoothness, refinement, and no fold left."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.register.config import DeformableConfig
from dsir_metric.register.deformable import unfold
from dsir_metric.register.freeform import FreeForm

TILT = sitk.Euler3DTransform([0, 0, 0], 0.4, -0.3, 0.2).GetMatrix()
GRID = Grid((13, 9, 7), (1.5, 2.0, 3.5), (-20.0, 7.0, 33.0), TILT)


@pytest.fixture
def freeform() -> FreeForm:
    return FreeForm(GRID, 7.0)


def random_coefficients(freeform: FreeForm, size_mm: float, seed: int = 0) -> NDArray[np.float64]:
    return size_mm * np.random.default_rng(seed).standard_normal(freeform.shape)


def displacements(freeform: FreeForm, coefficients: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Displacements (z, y, x, 3) mm on `grid`."""
    return np.moveaxis(freeform.evaluate(coefficients, freeform.bases(grid)), 0, -1)


def fitted(freeform: FreeForm, grid: Grid, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of the displacements `values` on `grid`, by least squares."""
    return freeform.evaluate(np.moveaxis(values, -1, 0), [np.linalg.pinv(basis) for basis in freeform.bases(grid)])


def test_lattice_divides_the_box_into_whole_cells(freeform: FreeForm) -> None:
    np.testing.assert_array_equal(freeform.cells, [3, 3, 4])
    np.testing.assert_allclose(freeform.cells * freeform.step_mm, [19.5, 18, 24.5])
    assert freeform.shape == (3, 7, 6, 6)
    assert (freeform.step_mm <= 7.0).all()


def test_displacement_is_that_of_the_simpleitk_spline(freeform: FreeForm) -> None:
    coefficients = random_coefficients(freeform, 2.0)
    came = displacements(freeform, coefficients, GRID)
    expected = DisplacementField.from_transform(freeform.to_transform(coefficients), GRID).values
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(came, expected, atol=1e-9)


def test_any_grid_along_the_axes_of_the_lattice_will_do(freeform: FreeForm) -> None:
    coefficients = random_coefficients(freeform, 2.0)
    fine = GRID.resampled(1.1)
    came = displacements(freeform, coefficients, fine)
    points = fine.points_mm()[1:-1, 1:-1, 1:-1].reshape(-1, 3)[::37]
    transform = freeform.to_transform(coefficients)
    expected = [np.subtract(transform.TransformPoint(p), p) for p in points.tolist()]
    np.testing.assert_allclose(came[1:-1, 1:-1, 1:-1].reshape(-1, 3)[::37], expected, atol=1e-9)


def test_transpose_is_the_adjoint(freeform: FreeForm) -> None:
    bases = freeform.bases(GRID)
    coefficients = random_coefficients(freeform, 1.0)
    gradients = np.random.default_rng(1).standard_normal((3, *GRID.shape))
    here = (freeform.evaluate(coefficients, bases) * gradients).sum()
    there = (coefficients * freeform.transpose(gradients, bases)).sum()
    assert here == pytest.approx(there, rel=1e-12)


@pytest.mark.parametrize(("diffusion", "bending"), [(0.7, 0.0), (0.0, 3.0), (0.7, 3.0)])
def test_smoothness_of_a_quadratic_displacement(freeform: FreeForm, diffusion: float, bending: float) -> None:
    rng = np.random.default_rng(2)
    curvature, slope = 0.02 * rng.standard_normal((3, 3, 3)), 0.1 * rng.standard_normal((3, 3))
    points = GRID.points_mm()
    values = np.einsum("zyxi,kij,zyxj->zyxk", points, curvature, points) + points @ slope.T
    hessian = curvature + curvature.transpose(0, 2, 1)
    box = np.stack(np.meshgrid(*[np.polynomial.legendre.leggauss(2)[0] / 2] * 3), axis=-1).reshape(-1, 3)
    nodes = GRID.centre_mm + (box * GRID.extent_mm) @ np.reshape(GRID.direction, (3, 3)).T
    first = np.mean([((hessian @ x + slope) ** 2).sum() for x in nodes])  # exact for a polynomial of degree 2
    second = (hessian**2).sum()
    came, _ = freeform.smoothness(fitted(freeform, GRID, values), diffusion, bending)
    assert came == pytest.approx(diffusion * first + bending * second, rel=1e-6)


def test_slope_of_the_smoothness(freeform: FreeForm) -> None:
    coefficients = random_coefficients(freeform, 1.0)
    _, slope = freeform.smoothness(coefficients, 0.7, 3.0)
    for seed in range(3):
        step = 1e-3 * random_coefficients(freeform, 1.0, seed)
        up, down = (freeform.smoothness(coefficients + s * step, 0.7, 3.0)[0] for s in (1, -1))
        assert (up - down) / 2 == pytest.approx((slope * step).sum(), rel=1e-8)


def test_a_shift_costs_nothing(freeform: FreeForm) -> None:
    value, slope = freeform.smoothness(np.full(freeform.shape, 5.0), 1.0, 1.0)
    assert value == pytest.approx(0.0, abs=1e-12)
    assert np.abs(slope).max() < 1e-12


HEAD = FreeForm(Grid((20, 20, 20), (8.0, 8.0, 8.0)), 12.0)
SUITS_MM2 = DeformableConfig().bending_mm2


def bending(coefficients: NDArray[np.float64], bending_mm2: float = SUITS_MM2) -> float:
    return HEAD.adapted(coefficients, 0.3, bending_mm2)[1]


def waves(length_mm: float, penalty: float) -> NDArray[np.float64]:
    """Displacements across waves of this length, whose bending costs `penalty` with the default weight."""
    z, _, x = np.meshgrid(*(HEAD.step_mm[::-1, None] * np.arange(HEAD.shape[1])), indexing="ij")
    ones = [np.sin(2 * np.pi * x / length_mm), np.sin(2 * np.pi * z / length_mm), 0 * x]
    return np.sqrt(penalty / HEAD.smoothness(np.stack(ones), 0.0, SUITS_MM2)[0]) * np.stack(ones)


def test_a_third_of_diffusion_is_left() -> None:
    for penalty in (0.0, 0.0127, 1.0):
        assert HEAD.adapted(waves(90.0, penalty), 0.3, SUITS_MM2)[0] == pytest.approx(0.1)


def test_weight_of_bending_follows_the_size_of_long_waves() -> None:
    assert bending(waves(90.0, 0.0127)) == pytest.approx(SUITS_MM2)
    found = [bending(waves(90.0, penalty)) for penalty in np.geomspace(0.001, 0.05, 40)]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (2 * SUITS_MM2, SUITS_MM2 / 2)  # and no further
    assert bending(waves(90.0, 0.0)) == 2 * SUITS_MM2
    assert bending(waves(90.0, 0.0127), 0.0) == 0.0


@pytest.mark.parametrize("penalty", [0.01, 0.0127, 0.016])
def test_weight_of_bending_goes_half_of_the_way_on_a_log_scale(penalty: float) -> None:
    """Where the energy falls with the square root of the weight, the next penalty is the one that suits."""
    weight = bending(waves(90.0, penalty))
    energy = penalty / SUITS_MM2 * np.sqrt(SUITS_MM2 / weight)
    assert weight * energy == pytest.approx(0.0127)


def test_weight_of_bending_falls_where_waves_are_short() -> None:
    found = [bending(waves(320.0 / n, 0.0127)) for n in range(3, 9)]  # whole waves and a half
    np.testing.assert_allclose(found[:3], SUITS_MM2)
    np.testing.assert_allclose(found[3:], SUITS_MM2 / 16)  # and no further


def test_weight_of_bending_falls_with_the_fifth_power_of_the_roughness() -> None:
    """Roughness goes with the penalty and the cube of the mean squared wave number."""
    ones = waves(320.0 / 6, 1.0)
    squared = HEAD.smoothness(ones, 0.0, 1.0)[0] / HEAD.smoothness(ones, 1.0, 0.0)[0]
    assert squared == pytest.approx((2 * np.pi * 6 / 320) ** 2, rel=0.01)
    for share, expected in ((0.9, 2.0), (0.999, 2.0), (1.1, 2.0 / 1.1**5), (1.3, 2.0 / 1.3**5)):  # twice for its size
        found = bending(waves(320.0 / 6, share * 1.7e-8 / squared**3)) / SUITS_MM2
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(("lattice_mm", "tolerance"), [(3.25, 1e-9), (2.6, 0.02)])
def test_a_finer_lattice_keeps_the_displacement(freeform: FreeForm, lattice_mm: float, tolerance: float) -> None:
    coefficients = fitted(freeform, GRID, np.sin(GRID.points_mm() / 6.0))
    finer = FreeForm(GRID, lattice_mm)
    before = freeform.evaluate(coefficients, freeform.bases(GRID))
    refined = freeform.refine(coefficients, finer)
    assert refined.shape == finer.shape != freeform.shape
    np.testing.assert_allclose(finer.evaluate(refined, finer.bases(GRID)), before, atol=tolerance)


def determinant(freeform: FreeForm, coefficients: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    return DisplacementField(displacements(freeform, coefficients, grid), grid).jacobian_determinant()


def test_a_fold_is_smoothed_away_and_the_rest_stays() -> None:
    grid = Grid((60, 20, 20), (2.0, 2.0, 2.0), direction=TILT)
    freeform = FreeForm(grid, 4.0)
    coefficients = random_coefficients(freeform, 0.1)
    coefficients[:, 6, 6, 5] = (25.0, -25.0, 20.0)
    assert determinant(freeform, coefficients, grid).min() < 0
    mended, rounds = unfold(freeform, coefficients, grid, 0.05)
    assert rounds > 0
    assert determinant(freeform, mended, grid).min() >= 0.05
    np.testing.assert_array_equal(mended[..., -8:], coefficients[..., -8:])


def test_what_folds_everywhere_is_mended_as_well(freeform: FreeForm) -> None:
    coefficients = random_coefficients(freeform, 15.0)
    assert (determinant(freeform, coefficients, GRID) < 0).mean() > 0.2
    mended, _ = unfold(freeform, coefficients, GRID, 0.3)
    assert determinant(freeform, mended, GRID).min() >= 0.3


def test_a_regular_displacement_is_left_alone(freeform: FreeForm) -> None:
    coefficients = random_coefficients(freeform, 0.3)
    came, rounds = unfold(freeform, coefficients, GRID, 0.05)
    assert came is coefficients
    assert rounds == 0
