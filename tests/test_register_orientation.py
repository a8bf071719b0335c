"""Poses that the usual search does not find, and poses that are no better than chance."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation
from waves import level

from dsir_metric.geometry import Grid
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.register import RegisterConfig, RegistrationResult, SearchConfig, pipeline, register
from dsir_metric.register.chance import Margin, margin
from dsir_metric.register.orientation import _at_all_shifts, _orientations, _placed
from dsir_metric.register.state import State
from dsir_metric.represent import Representation

CONFIG = RegisterConfig(device="cpu", threads=1, stages=("centre", "search", "rigid"))


def noise(grid: Grid, seed: int) -> sitk.Image:
    values = np.random.default_rng(seed).normal(100.0, 30.0, grid.shape)
    return grid.stamp(sitk.GetImageFromArray(values.astype(np.float32)))


def test_margin_of_a_right_and_of_a_wrong_pose() -> None:
    metric = level().metric(2000)
    right = margin(metric, metric.points_mm, 0)
    assert right.agreement == pytest.approx(1.0, abs=1e-3)
    assert right.above == pytest.approx(1.0, abs=0.01)
    assert right.sure
    wrong = margin(metric, -metric.points_mm, 0)
    assert wrong.above is not None
    assert abs(wrong.above) < 0.2
    assert not wrong.clear


def test_margin_looks_only_where_both_scans_are() -> None:
    metric = level().metric(2000)
    half = metric.points_mm + np.array([0.0, 0.0, 70.0])
    found = margin(metric, half, 0)
    assert 0.1 < found.shared < 0.9
    nowhere = margin(metric, metric.points_mm + 1000.0, 0)
    assert (nowhere.agreement, nowhere.above, nowhere.shared, nowhere.clear) == (0.0, None, 0.0, False)


def test_one_orientation_lies_near_any() -> None:
    turns = Rotation.from_matrix(_orientations())
    some = Rotation.random(200, random_state=0)
    nearest = [np.degrees((turns.inv() * one).magnitude().min()) for one in some]
    assert len(turns) == 72
    assert max(nearest) < 45.0


def test_all_shifts_at_once() -> None:
    rng = np.random.default_rng(0)
    fixed = rng.normal(size=(3, 4, 5, 6)).astype(np.float32)
    moving = rng.normal(size=(3, 7, 6, 5)).astype(np.float32)
    seen, body = rng.random((4, 5, 6)) > 0.3, rng.random((7, 6, 5)) > 0.3
    fixed, moving = np.where(seen, fixed, 0), np.where(body, moving, 0)
    cosines, counts = _at_all_shifts(fixed, seen, moving, body)
    for shift in ((0, 0, 0), (2, 1, -3), (-3, -4, 4)):
        total, count = 0.0, 0
        for index in np.ndindex(seen.shape):
            there = tuple(np.add(index, shift))
            if all(0 <= t < n for t, n in zip(there, body.shape, strict=True)):
                total += float(fixed[(slice(None), *index)] @ moving[(slice(None), *there)])
                count += int(seen[index] and body[there])
        assert cosines[shift] == pytest.approx(total, abs=1e-4)
        assert counts[shift] == count


def test_slabs_across_each_other_are_no_candidates() -> None:
    grid = Grid((12, 12, 12))
    side = Representation(np.full((*grid.shape, 2), np.sqrt(0.5), np.float32), grid)
    seen, body = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, bool)
    seen[5], body[:, 5] = 1, True
    coarse = SimpleNamespace(fixed=side, mask=sitk.GetImageFromArray(seen), along=lambda _: (side, body))
    with np.errstate(all="raise"):
        assert _placed(coarse, np.eye(3)).score == -1.0


@pytest.fixture(scope="module")
def turned() -> PhantomPair:
    return make_pair(
        40, 5.0, ("t1", "flair"), rotation_deg=(20.0, 0.0, 100.0), translation_mm=(8.0, -5.0, 4.0), amplitude_mm=2.0
    )


@pytest.fixture(scope="module")
def found(turned: PhantomPair) -> RegistrationResult:
    return register(turned.fixed, turned.moving, replace(CONFIG, stages=("centre", "search", "rigid", "affine")))


def test_a_head_that_lies_otherwise_is_found(turned: PhantomPair, found: RegistrationResult) -> None:
    assert turned.error_mm(sitk.Transform(3, sitk.sitkIdentity)) > 50
    assert turned.error_mm(found.transform) < 5.0
    assert found.stages[1].remark.startswith("all orientations were searched")
    assert found.details["above_chance"] > 0.5
    assert found.warnings == ()


def test_the_same_head_is_not_found_where_orientations_are_not_searched(turned: PhantomPair) -> None:
    fixed_pose = register(turned.fixed, turned.moving, replace(CONFIG, search=SearchConfig(orientations=False)))
    assert turned.error_mm(fixed_pose.transform) > 20
    assert "all orientations" not in fixed_pose.stages[1].remark


@pytest.mark.parametrize("both", [True, False], ids=["noise and noise", "head and noise"])
def test_no_pose_of_noise_is_better_than_chance(pair: PhantomPair, both: bool) -> None:
    grid = Grid.of(pair.fixed).resampled(8.0)
    came = register(noise(grid, 1) if both else pair.fixed, noise(grid, 2), CONFIG)
    assert "no pose is clearly better than chance" in came.warnings[0]


def test_a_slab_that_agrees_raises_no_doubt() -> None:
    whole = make_pair(48, 4.0, ("t1", "flair"), amplitude_mm=0.5)
    slab = whole.moving[:, :, 20:26]
    came = register(whole.fixed, slab, CONFIG)
    assert came.details["overlap"] < 0.5
    assert came.details["agreement"] > came.details["mean_cosine"] + 0.2
    assert not any("chance" in w or "agree" in w for w in came.warnings)


def test_little_overlap_has_a_line_of_its_own(pair: PhantomPair) -> None:
    size = pair.moving.GetSize()[2]
    part = pair.moving[:, :, size // 2 - 2 : size // 2 + 2]
    came = register(pair.fixed, part, replace(CONFIG, stages=("rigid",)))
    assert came.details["overlap"] < 0.25
    assert any(w.startswith("the moving scan covers") for w in came.warnings)


def test_an_undone_stage_is_told(pair: PhantomPair, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored = State(np.diag([-1.0, 1.0, 1.0, 1.0]))
    monkeypatch.setitem(pipeline.RUN, "deformable", lambda *_: (mirrored, ""))
    came = register(pair.fixed, pair.moving, replace(CONFIG, stages=("rigid", "deformable")))
    assert "the deformable stage was undone: it mirrors the image" in came.warnings


def test_a_scan_and_itself_raise_no_doubt(pair: PhantomPair) -> None:
    came = register(pair.fixed, pair.fixed, replace(CONFIG, stages=("rigid", "deformable")))
    assert came.warnings == ()


@pytest.mark.parametrize(
    ("shared", "above", "compared"),
    [
        pytest.param(1.0, 0.7, True, id="the whole body"),
        pytest.param(0.6, 0.65, False, id="slabs that overlap by half"),
        pytest.param(0.6, 0.2, True, id="a part at a pose that is no better than chance"),
        pytest.param(0.6, None, False, id="a thin slab"),
        pytest.param(0.0, None, True, id="nothing overlaps"),
    ],
)
def test_when_a_pose_is_compared_with_other_orientations(shared: float, above: float | None, compared: bool) -> None:
    now = Margin(0.0 if above is None else above, None if above is None else 0.0, shared)
    assert pipeline._comparable_nowhere_else(now) != compared


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_that_overlap_by_two_thirds_raise_no_doubt_of_the_pose(axis: int) -> None:
    whole = make_pair(36, 5.0, ("t1", "flair"), amplitude_mm=4.0, seed=12)
    cut = [slice(None)] * 3
    cut[axis] = slice(6, 26)
    fixed = whole.fixed[tuple(cut)]
    cut[axis] = slice(12, 32)
    came = register(fixed, whole.moving[tuple(cut)], CONFIG)
    assert came.details["above_chance"] > 0.5
    assert not any("better than chance" in warning for warning in came.warnings)


def test_a_thin_slab_stays_where_its_header_says() -> None:
    whole = make_pair(36, 5.0, ("t1", "flair"), amplitude_mm=4.0, seed=12)
    came = register(whole.fixed[:, 13:19], whole.moving[:, 15:21], CONFIG)
    moved = np.subtract(came.transform.TransformPoint((0.0, 0.0, 0.0)), whole.truth.TransformPoint((0.0, 0.0, 0.0)))
    assert np.linalg.norm(moved) < 20  # as one could turn in 30 mm
    assert came.details["above_chance"] is None


def test_orientations_are_not_searched_where_memory_forbids(pair: PhantomPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "orienting_bytes", lambda *_, **__: 5_000_000_000)
    stranger = noise(Grid.of(pair.moving), 2)
    came = register(pair.fixed, stranger, replace(CONFIG, memory_bytes=4_000_000_000))
    assert any("5000 MB of memory would let all orientations be searched" in w for w in came.warnings)
    assert 5_000_000_000 in came.details["again_bytes"]
