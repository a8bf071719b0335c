"""The stages one by one, on 24 smooth channels known at every point: nothing is resampled, the truth is exact."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from waves import GRID, channels, level, with_scans

from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.register import deformable as deformable_module
from dsir_metric.register.config import DeformableConfig, RegisterConfig, SearchConfig
from dsir_metric.register.deformable import fit_freeform
from dsir_metric.register.freeform import FreeForm
from dsir_metric.register.guard import Guard
from dsir_metric.register.linear import affine_matrix, as_affine, as_rigid, fit, parameter_scales
from dsir_metric.register.pair import Level, pyramid
from dsir_metric.register.problem import Deformation, Problem
from dsir_metric.register.search import middle
from dsir_metric.register.stages import RUN
from dsir_metric.register.state import State, mapped
from dsir_metric.represent import Representation

Array = NDArray[np.float64]

PIVOT = np.array([3.0, -2.0, 5.0])
IDENTITY = np.eye(4)


def rigid(turn_deg: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> Array:
    return affine_matrix(sitk.Euler3DTransform(PIVOT.tolist(), *np.deg2rad(turn_deg).tolist(), shift_mm))


def error_mm(found: Array, truth: Array) -> float:
    points = GRID.points_mm().reshape(-1, 3)
    return float(np.linalg.norm(mapped(found, points) - mapped(truth, points), axis=1).mean())


FAR = rigid((60.0, 0.0, -60.0), (10.0, 10.0, 10.0))
AFFINE = np.eye(4) + np.array([[0.05, 0.04, -0.03, 4], [0, -0.06, 0.05, -3], [0.02, 0.03, 0.04, 2], [0, 0, 0, 0]])


def test_matrix_and_transform_are_the_same_map() -> None:
    points = np.random.default_rng(0).uniform(-50, 50, (9, 3))
    expected = mapped(AFFINE, points)
    for transform in (as_affine(AFFINE, PIVOT), sitk.CompositeTransform([as_affine(AFFINE, PIVOT)])):
        np.testing.assert_allclose([transform.TransformPoint(p) for p in points.tolist()], expected, atol=1e-9)
        np.testing.assert_allclose(affine_matrix(transform), AFFINE, atol=1e-9)
    assert as_affine(AFFINE, PIVOT).GetCenter() == pytest.approx(PIVOT)


def test_nearest_rigid_transform() -> None:
    np.testing.assert_allclose(affine_matrix(as_rigid(FAR, PIVOT)), FAR, atol=1e-9)
    near = affine_matrix(as_rigid(AFFINE, PIVOT))
    np.testing.assert_allclose(mapped(near, PIVOT), mapped(AFFINE, PIVOT))
    np.testing.assert_allclose(near[:3, :3] @ near[:3, :3].T, np.eye(3), atol=1e-9)
    stretched = near[:3, :3].T @ AFFINE[:3, :3]  # of the nearest rotation, what is left is a symmetric stretch
    np.testing.assert_allclose(stretched, stretched.T, atol=1e-9)


def test_scales_are_mm_for_each_parameter() -> None:
    points = GRID.points_mm().reshape(-1, 3)
    scales = parameter_scales(as_rigid(IDENTITY, PIVOT), points)
    np.testing.assert_allclose(scales[3:], 1.0, rtol=1e-6)
    arms = points[:: len(points) // 200] - PIVOT
    expected = [np.sqrt(np.delete(arms**2, k, axis=1).sum(axis=1).mean()) for k in range(3)]
    np.testing.assert_allclose(scales[:3], expected, rtol=1e-3)


def test_rigid_fit_finds_a_rigid_truth() -> None:
    truth = rigid((4.0, -3.0, 5.0), (4.0, -3.0, 2.0))
    trace: list[float] = []
    start = as_rigid(IDENTITY, PIVOT)
    found = fit(level(lambda x: mapped(truth, x)).metric(3000), start, 60, trace.append)
    assert isinstance(found, sitk.Euler3DTransform)
    assert error_mm(affine_matrix(found), truth) < 0.05 < 5 < error_mm(IDENTITY, truth)
    assert trace[-1] == min(trace) < -0.999
    assert start.GetParameters() == (0.0,) * 6


def test_affine_fit_finds_what_a_rigid_one_cannot() -> None:
    metric = level(lambda x: mapped(AFFINE, x)).metric(3000)
    stiff = affine_matrix(fit(metric, as_rigid(IDENTITY, PIVOT), 60))
    soft = affine_matrix(fit(metric, as_affine(IDENTITY, PIVOT), 60))
    assert error_mm(soft, AFFINE) < 0.3 < 0.9 < error_mm(stiff, AFFINE)


def problem(pair: Level, moving_body: sitk.Image | None = None) -> Problem:
    search = SearchConfig(rotation_deg=60.0, rotation_step_deg=60.0, points=400, candidates=3)
    body = moving_body or pair.moving.grid.image() + 1
    return Problem([pair], body, middle(pair.fixed_mask), RegisterConfig(search=search))


def test_search_finds_what_a_fit_alone_does_not() -> None:
    pair = level(lambda x: mapped(FAR, x))
    reports: list[tuple[float, float]] = []
    state, _ = RUN["search"](problem(pair), State(), lambda *a: reports.append(a))
    assert error_mm(state.linear, FAR) < 0.5
    assert error_mm(affine_matrix(fit(pair.metric(400), as_rigid(IDENTITY, PIVOT), 60)), FAR) > 5
    fractions = [r[0] for r in reports]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_search_stays_where_nothing_is_better() -> None:
    state, _ = RUN["search"](problem(level()), State(), lambda *_: None)
    assert error_mm(state.linear, IDENTITY) < 0.01


def test_centring_brings_far_images_together() -> None:
    shift = np.eye(4)
    shift[:3, 3] = (150.0, 20.0, -90.0)
    near = level()
    box = near.moving.grid
    far = Grid(box.size, box.spacing_mm, tuple((np.asarray(box.origin_mm) + shift[:3, 3]).tolist()))
    apart = Level(near.fixed, Representation(near.moving.values, far), near.fixed_mask)
    state, _ = RUN["centre"](problem(apart), State(), lambda *_: None)
    assert error_mm(state.linear, shift) < 1e-6


def test_centring_takes_the_middle_of_the_bodies_where_they_agree_better() -> None:
    shift = rigid((0, 0, 0), (20.0, -18.0, 16.0))
    pair = level(lambda x: mapped(shift, x))
    body = sitk.Resample(pair.fixed_mask, pair.moving.grid.image(), as_affine(np.linalg.inv(shift), PIVOT))
    state, _ = RUN["centre"](problem(pair, body), State(), lambda *_: None)
    assert error_mm(state.linear, shift) < 4.0  # of the box, a part lies outside the moving image


def test_centring_leaves_a_good_header_alone() -> None:
    start = State()
    body = Grid((9, 9, 9), (4.0, 4.0, 4.0), (30.0, 0.0, 0.0)).image() + 1
    state, _ = RUN["centre"](problem(level(), body), start, lambda *_: None)
    assert state is start


def smooth_truth(amplitude_mm: float) -> sitk.BSplineTransform:
    spline = FreeForm(GRID.padded(2), 32.0)
    coefficients = np.random.default_rng(4).standard_normal(spline.shape)
    return spline.to_transform(coefficients * amplitude_mm / np.abs(coefficients).max())


def test_deformation_is_found_in_front_of_a_linear_map() -> None:
    spline = smooth_truth(9.0)
    linear = rigid((0.0, 0.0, 70.0), (3.0, 2.0, 1.0))
    true = DisplacementField.from_transform(spline, GRID)
    points = GRID.points_mm()
    finest = level(lambda x: mapped(linear, (points + true.values).reshape(-1, 3)).reshape(x.shape))
    config = DeformableConfig((24.0, 12.0), (25, 25), diffusion=0.01, bending_mm2=1.0)
    reports: list[tuple[float, float]] = []
    deformation = fit_freeform([finest], linear, config, lambda *a: reports.append(a))
    found, remark = deformation.transform, deformation.remark
    u = DisplacementField.from_transform(found, GRID)
    left = np.linalg.norm(u.values - true.values, axis=-1).mean()
    assert left < 0.2 * true.length_mm().mean()
    assert u.jacobian_statistics()["min"] > config.smallest_jacobian
    assert remark == ""
    fractions = [r[0] for r in reports]
    assert fractions == sorted(fractions)
    assert fractions[-1] <= 1.0
    assert reports[-1][1] < reports[0][1]


def test_mutual_information_of_the_scans_deforms_where_descriptors_say_nothing() -> None:
    def bend(points: Array) -> Array:
        return points + 4 * np.sin(points[..., ::-1] / 30)

    pair = with_scans(level(bend))
    blank = replace(pair, fixed=_blank(pair.fixed), moving=_blank(pair.moving))
    truth = bend(GRID.points_mm()) - GRID.points_mm()

    def left_mm(information: float) -> float:
        config = DeformableConfig((24.0, 12.0), (25, 25), 0.01, 1.0, information)
        found = fit_freeform(pyramid(blank), IDENTITY, config, lambda *_: None).transform
        field = DisplacementField.from_transform(found, GRID).values - truth
        return float(np.linalg.norm(field, axis=-1)[2:-2, 2:-2, 2:-2].mean())

    assert left_mm(1.0) < 0.5 * left_mm(0.0)


def _blank(side: Representation) -> Representation:
    return replace(side, values=np.ones_like(side.values))


def test_smoothness_has_its_way() -> None:
    true = DisplacementField.from_transform(smooth_truth(9.0), GRID)
    finest = level(lambda x: x + true.values)
    lengths = []
    for diffusion in (0.01, 10.0):
        found = fit_freeform(
            [finest], IDENTITY, DeformableConfig((24.0,), (15,), diffusion, 0.0), lambda *_: None
        ).transform
        slope = np.gradient(DisplacementField.from_transform(found, GRID).values, axis=(0, 1, 2))
        lengths.append(float(np.square(slope).mean()))
    assert lengths[1] < 0.3 * lengths[0]


def wavy(size_mm: float, length_mm: float) -> Level:
    return level(lambda points: points + size_mm * np.sin(points[..., ::-1] / length_mm))


def fitted(pair: Level, **settings: Any) -> Deformation:
    config = DeformableConfig((24.0, 12.0), (25, 25), diffusion=0.01, bending_mm2=20.0)
    return fit_freeform([pair], IDENTITY, replace(config, **settings), lambda *_: None)


def test_the_last_lattice_is_stiff_where_the_one_before_bent_little_and_else_soft() -> None:
    smooth, rough = fitted(wavy(4.0, 30.0)), fitted(wavy(8.0, 14.0))
    assert smooth.weights is not None
    assert rough.weights is not None
    assert smooth.weights[0] == rough.weights[0] == pytest.approx(0.01 / 3)
    assert smooth.weights[1] == 40.0
    assert 10.0 < rough.weights[1] < 13.0
    before = fitted(wavy(8.0, 14.0), lattice_mm=(24.0,), iterations=(25,)).transform
    config = DeformableConfig((12.0,), (25,), *rough.weights)  # as if they had been given
    start = DisplacementField.from_transform(before, GRID)
    expected = fit_freeform([wavy(8.0, 14.0)], IDENTITY, config, lambda *_: None, start)
    first, second = (DisplacementField.from_transform(d.transform, GRID).values for d in (rough, expected))
    assert np.abs(first - second).mean() < 0.02


def test_weights_are_those_given_but_on_the_last_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, one_level = [], deformable_module._level

    def watched(
        pair: Level, linear: Array, freeform: FreeForm, start: Array, config: DeformableConfig, *rest: Any
    ) -> Array:
        weights.append(config.weights)
        return one_level(pair, linear, freeform, start, config, *rest)

    monkeypatch.setattr(deformable_module, "_level", watched)
    found = fitted(wavy(4.0, 30.0), lattice_mm=(48.0, 24.0, 12.0), iterations=(9, 9, 9))
    assert weights == [(0.01, 20.0), (0.01, 20.0), found.weights]
    assert found.weights is not None
    assert found.weights[1] != 20.0


@pytest.mark.parametrize("settings", [{"adaptive": False}, {"lattice_mm": (24.0,), "iterations": (25,)}])
def test_weights_stay_as_given(settings: dict[str, Any]) -> None:
    """Where that is wanted, and where no lattice came before."""
    assert fitted(wavy(8.0, 14.0), **settings).weights == (0.01, 20.0)


def test_deformation_of_noise_does_not_fold_and_says_so() -> None:
    rng = np.random.default_rng(0)
    pair = [Representation(rng.standard_normal((*GRID.shape, 4)).astype(np.float32), GRID) for _ in range(2)]
    config = DeformableConfig((8.0,), (25,), diffusion=0.0, bending_mm2=0.0)
    deformation = fit_freeform([Level(pair[0], pair[1], GRID.image() + 1)], IDENTITY, config, lambda *_: None)
    found, remark = deformation.transform, deformation.remark
    assert DisplacementField.from_transform(found, GRID).jacobian_determinant().min() >= config.smallest_jacobian
    assert "smoothed where it folded" in remark


def test_levels_halve_and_stay_in_place() -> None:
    grid = Grid((48, 50, 52), (2.0, 2.0, 2.0), (-10.0, 4.0, 0.0))
    image = Representation(channels(grid.points_mm()), grid)
    finest = Level(image, image, grid.image() + 1)
    levels = pyramid(finest)
    assert len(levels) > 1
    assert levels[-1] is finest
    for coarse, fine in pairwise(levels):
        assert coarse.spacing_mm == 2 * fine.spacing_mm
        np.testing.assert_allclose(coarse.fixed.grid.to_physical((-0.5,) * 3), grid.to_physical((-0.5,) * 3))
        np.testing.assert_allclose(coarse.moving.values[0, 0, 0], fine.moving.values[:2, :2, :2].mean((0, 1, 2)), 1e-4)
        assert Grid.of(coarse.fixed_mask) == coarse.fixed.grid


def test_odd_sizes_repeat_their_last_layer() -> None:
    grid = Grid((3, 2, 2), (1.0, 1.0, 1.0))
    values = np.arange(3, dtype=np.float32)[None, None, :, None] * np.ones((2, 2, 3, 2), np.float32)
    half = Level(Representation(values, grid), Representation(values, grid), grid.image() + 1).halved()
    assert half.moving.values[..., 0].ravel().tolist() == [0.5, 2.0]
    assert half.moving.grid.origin_mm == (0.5, 0.5, 0.5)


def turned(**changes: float) -> State:
    matrix = np.eye(4)
    for place, value in changes.items():
        matrix[int(place[1]), int(place[2])] = value
    return State(matrix)


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard(level(), 2000, 0)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (turned(m00=-1.0), "it mirrors the image"),
        (turned(m11=0.3), "it scales by 0.30 to 1.00"),
        (turned(m22=1.9), "it scales by 1.00 to 1.90"),
        (turned(m03=110.0), r"the overlap falls from 100 % to \d+ %"),
        (turned(m13=6.0), r"the metric does not improve \(mean cosine 0.99.. before, 0.\d+ after\)"),
        (turned(m03=np.nan), "it is not finite"),
    ],
)
def test_a_bad_step_is_refused_with_the_reason(guard: Guard, after: State, reason: str) -> None:
    objection = guard.objection(State(), after)
    assert objection is not None
    assert re.fullmatch(reason, objection)


def test_a_good_step_is_not_refused(guard: Guard) -> None:
    assert guard.objection(turned(m13=6.0), State()) is None
    assert "overlap" not in str(guard.objection(turned(m03=110.0), turned(m03=100.0)))  # little, but more than before
    assert guard.score(State()) == pytest.approx(1.0, abs=1e-3)


def test_overlap_counts_what_the_last_transform_moves_out() -> None:
    away = sitk.TranslationTransform(3, (24 * 4.0 / 2 + 24.0, 0.0, 0.0))  # half the box and the margin
    assert Guard(level(after=away), 4000, 0).overlap(State()) == pytest.approx(0.5, abs=0.03)


def test_leaving_the_moving_image_never_pays(guard: Guard) -> None:
    assert guard.score(turned(m03=90.0)) < 0.5


def test_state_maps_as_its_transform() -> None:
    spline = smooth_truth(9.0)
    after = sitk.DisplacementFieldTransform(
        sitk.TransformToDisplacementField(
            smooth_truth(5.0), sitk.sitkVectorFloat64, (40, 40, 40), (-80.0,) * 3, (4.0,) * 3
        )
    )
    state = State(FAR, spline, after)
    points = GRID.points_mm().reshape(-1, 3)[::211]
    whole = state.transform(PIVOT)
    expected = [after.TransformPoint(p) for p in state.map(points).tolist()]
    np.testing.assert_allclose([whole.TransformPoint(p) for p in points.tolist()], expected, atol=1e-8)
    by_hand = [as_affine(FAR, PIVOT).TransformPoint(spline.TransformPoint(p)) for p in points.tolist()]
    np.testing.assert_allclose(state.map(points), by_hand, atol=1e-8)
    assert np.abs(np.subtract(by_hand, expected)).max() > 1
