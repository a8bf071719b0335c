"""Normalised mutual information against its definition, and its derivative against differences of the value."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric.geometry import Grid
from dsir_metric.metric.information import BINS, MutualInformation, information_of
from dsir_metric.threads import at_most

Array = NDArray[np.float64]
TURN = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
GRID = Grid((17, 15, 13), (1.5, 2.0, 2.5), (3.0, -4.0, 5.0), TURN)


def image(seed: int) -> NDArray[np.float32]:
    values = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(GRID.shape), 1.5)
    return ((values - values.min()) / np.ptp(values)).astype(np.float32)


def places(count: int = 600) -> Array:
    return GRID.to_physical(np.random.default_rng(5).uniform(1, np.array(GRID.size) - 2, (count, 3)))


def at(values: NDArray[np.float32], where: Array) -> Array:
    """Trilinear values by SciPy."""
    out: Array = ndimage.map_coordinates(values.astype(float), GRID.to_index(where)[:, ::-1].T, order=1)
    return out


def windows(values: Array) -> Array:
    """Cubic B-spline of every bin at each value, (n, bins), from its definition by truncated powers."""
    apart = np.abs(1 + np.clip(values, 0, 1)[:, None] * (BINS - 4) - np.arange(BINS))
    return (np.maximum(2 - apart, 0) ** 3 - 4 * np.maximum(1 - apart, 0) ** 3) / 6


def slow(fixed: Array, moving: Array) -> float:
    joint = windows(fixed).T @ windows(moving) / len(fixed)

    def entropy(p: Array) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    return -(entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint)


def test_value_is_that_of_the_definition() -> None:
    first, second, where = image(0), image(1), places()
    value, _ = MutualInformation(at(second, where), first, GRID).at_points(where)
    assert value == pytest.approx(slow(at(second, where), at(first, where)), rel=1e-5)
    assert -2 <= value <= -1


def test_an_inverted_image_is_as_good_as_itself_and_another_is_not() -> None:
    first, where = image(0), places(3000)
    same, inverted, other = (
        MutualInformation(at(v, where), first, GRID).at_points(where)[0] for v in (first, 1 - first, image(1))
    )
    assert inverted == pytest.approx(same, abs=1e-3)
    assert same < other - 0.2


def test_derivative_is_that_of_the_value() -> None:
    first, second, where = image(0), image(1), places()
    metric = MutualInformation(at(second, where), first, GRID)
    _, gradient = metric.at_points(where)
    for axis in range(3):
        step = np.zeros_like(where)
        step[:, axis] = 2e-3 * np.sign(gradient[:, axis])
        slope = metric.at_points(where + step)[0] - metric.at_points(where - step)[0]
        assert 2 * (gradient * step).sum() == pytest.approx(slope, rel=0.01)


def test_points_outside_or_not_valid_do_not_count() -> None:
    first, second, where = image(0), image(1), places(400)
    fixed = at(second, where)
    away = np.full((50, 3), 500.0)
    all_of_them = MutualInformation(np.concatenate([fixed, np.zeros(50)]), first, GRID)
    value, gradient = all_of_them.at_points(np.concatenate([where, away]))
    assert value == pytest.approx(MutualInformation(fixed, first, GRID).at_points(where)[0], abs=1e-7)
    assert not gradient[400:].any()
    mask = GRID.image()
    mask[:9, :, :] = 1
    some = GRID.to_index(where)[:, 0] < 8.5
    half, slopes = MutualInformation(fixed, first, GRID, moving_mask=mask).at_points(where)
    assert half == pytest.approx(MutualInformation(fixed[some], first, GRID).at_points(where[some])[0], abs=1e-7)
    assert not slopes[~some].any()
    assert 50 < some.sum() < 350
    assert MutualInformation(fixed, first, GRID).at_points(where + 1e4)[0] == 0.0


def test_a_transform_in_between_is_followed() -> None:
    first, where = image(0), places(400)
    fixed = at(image(1), where)
    turn = sitk.AffineTransform((1.1, 0.2, 0, -0.1, 0.9, 0, 0, 0.1, 1.0), (0.5, -0.3, 0.2), tuple(GRID.centre_mm))
    there = np.array([turn.TransformPoint(p) for p in where.tolist()])
    plain, slopes = MutualInformation(fixed, first, GRID).at_points(there)
    chained, pulled = MutualInformation(fixed, first, GRID, moving_initial=turn).at_points(where)
    assert chained == pytest.approx(plain, abs=1e-9)
    np.testing.assert_allclose(pulled, slopes @ np.reshape(turn.GetMatrix(), (3, 3)), atol=1e-12)


def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    first, where = image(0), places(5000)
    metric = MutualInformation(at(image(1), where), first, GRID)
    value, gradient = metric.at_points(where)
    with at_most(1):
        alone, slopes = metric.at_points(where)
    assert alone == value
    np.testing.assert_array_equal(slopes, gradient)


def test_a_constant_image_has_nothing_to_tell() -> None:
    joint = np.zeros((4, 4))
    joint[2, 1] = 1.0
    value, slope = information_of(joint)
    assert value == -2.0
    assert not slope.any()
