"""Registration as a whole, on phantoms of two contrasts whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dsir_metric.errors import ConfigError, DataError, GeometryError, RegistrationError, ShapeError
from dsir_metric.evaluate import dice
from dsir_metric.geometry import DisplacementField, Grid, rotation
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.register import (
    STAGES,
    DeformableConfig,
    InstanceConfig,
    LapirnConfig,
    Progress,
    RefineConfig,
    RegisterConfig,
    RegistrationResult,
    SearchConfig,
    pipeline,
    register,
)
from dsir_metric.register import stages as stages_module
from dsir_metric.register.config import Stage
from dsir_metric.register.pair import Level
from dsir_metric.register.problem import Deformation, Problem
from dsir_metric.register.state import State
from dsir_metric.represent import PairRepresenter, Representation, Representer, represent_pair
from dsir_metric.threads import threads

IDENTITY = sitk.Transform(3, sitk.sitkIdentity)
CONFIG = RegisterConfig(device="cpu", threads=1)
LINEAR = replace(CONFIG, stages=("centre", "rigid", "affine"))
RIGID = replace(CONFIG, stages=("rigid",))
Values = NDArray[np.float64]


def places(transform: sitk.Transform, grid: Grid) -> Values:
    """Where the voxels of `grid` go, (n, 3)."""
    field = DisplacementField.from_transform(transform, grid)
    return (grid.points_mm() + field.values).reshape(-1, 3)


def apart_mm(first: sitk.Transform, second: sitk.Transform, grid: Grid) -> float:
    return float(np.linalg.norm(places(first, grid) - places(second, grid), axis=1).mean())


@pytest.fixture(scope="module")
def phantom() -> PhantomPair:
    return make_pair(48, 3.0, ("t1", "flair"))


@pytest.fixture(scope="module")
def progress() -> list[Progress]:
    """What the registration of `found` reported."""
    return []


@pytest.fixture(scope="module")
def found(phantom: PhantomPair, progress: list[Progress]) -> RegistrationResult:
    return register(phantom.fixed, phantom.moving, CONFIG, on_progress=progress.append)


@pytest.fixture(scope="module")
def linear(pair: PhantomPair) -> RegistrationResult:
    """The shared phantom after the linear stages."""
    return register(pair.fixed, pair.moving, LINEAR)


def test_two_contrasts_come_together(phantom: PhantomPair, found: RegistrationResult) -> None:
    assert phantom.error_mm(found.transform) < 0.35 * phantom.error_mm(IDENTITY)
    assert found.undone == ()
    assert found.stages[-1].cosine_after > found.stages[0].cosine_before + 0.1


def test_nothing_folds(found: RegistrationResult) -> None:
    jacobian = DisplacementField.from_transform(found.transform, found.fixed_grid).jacobian_statistics()
    assert jacobian["folded_percent"] == 0.0
    assert found.details["jacobian"]["min"] == pytest.approx(jacobian["min"], abs=0.05)
    assert jacobian["sd_log"] > 0.005


def test_moved_labels(phantom: PhantomPair, found: RegistrationResult) -> None:
    moved = found.moved(phantom.moving_labels, labels=True)
    assert moved.GetPixelID() == sitk.sitkUInt8
    assert Grid.of(moved) == Grid.of(phantom.fixed)
    assert set(np.unique(sitk.GetArrayViewFromImage(moved))) <= set(range(9))
    before = dice(phantom.fixed_labels, sitk.Resample(phantom.moving_labels, phantom.fixed, IDENTITY, 1))
    after = dice(phantom.fixed_labels, moved)
    assert np.mean(list(after.values())) > np.mean(list(before.values())) + 0.15


def test_moved_image_has_its_background_outside_or_what_is_asked_for(
    phantom: PhantomPair, found: RegistrationResult
) -> None:
    head = sitk.GetArrayViewFromImage(phantom.moving_labels) > 0
    values = sitk.GetArrayFromImage(phantom.moving)
    signed = Grid.of(phantom.moving).stamp(sitk.GetImageFromArray(np.where(head, values - values[head].mean(), 7.0)))
    away = replace(found, transform=sitk.CompositeTransform([sitk.TranslationTransform(3, (1000.0, 0.0, 0.0))]))
    assert (sitk.GetArrayFromImage(away.moved(signed)) == 7.0).all()
    assert (sitk.GetArrayFromImage(away.moved(signed, fill=-3.5)) == -3.5).all()
    assert (sitk.GetArrayFromImage(away.moved(phantom.moving_labels, labels=True)) == 0).all()
    with pytest.raises(ConfigError, match="fill must be a whole number from 0 to 255"):
        away.moved(phantom.moving_labels, labels=True, fill=-1.0)


def test_result_is_fit_for_json(found: RegistrationResult) -> None:
    report = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [s["name"] for s in report["stages"]] == list(STAGES)
    for stage in report["stages"]:
        assert set(stage) == {"name", "kept", "remark", "cosine_before", "cosine_after", "seconds", "trace"}
    assert all(report["stages"][k]["trace"] for k in (1, 2, 3, 4))
    assert report["config"]["seed"] == 0
    assert report["fixed_representation"]["model_hash"]
    assert {"python", "SimpleITK", "numpy", "onnxruntime"} <= set(report["versions"])
    assert set(report["seconds"]) == {"represent", *STAGES, "total"}
    assert report["seconds"]["total"] >= sum(report["seconds"][s] for s in STAGES)
    assert 0.5 < report["overlap"] <= 1.0
    assert report["working_spacing_mm"] == pytest.approx(3.0)


def test_progress_rises_to_one(found: RegistrationResult, progress: list[Progress]) -> None:
    fractions = [p.fraction for p in progress]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert list(dict.fromkeys(p.stage for p in progress)) == ["represent", *STAGES, "done"]
    assert len(set(fractions)) > 30


def test_a_pair_far_apart_is_found() -> None:
    far = make_pair(48, 3.0, ("t1", "flair"), rotation_deg=(15, 0, 0), translation_mm=(20, 0, 0), amplitude_mm=2.0)
    came = register(far.fixed, far.moving, replace(CONFIG, stages=("centre", "search", "rigid")))
    assert far.error_mm(IDENTITY) > 20
    assert far.error_mm(came.transform) < 5.0


def test_a_turned_scan_is_represented_along_turned_axes() -> None:
    far = make_pair(48, 3.0, ("t1", "flair"), rotation_deg=(14, -10, 12), amplitude_mm=2.0)
    config = replace(CONFIG, stages=("centre", "search", "rigid", "affine"))
    came, left = (register(far.fixed, far.moving, replace(config, turn_deg=deg)) for deg in (5.0, 180.0))
    assert far.error_mm(came.transform) < 0.8 * far.error_mm(left.transform)
    assert came.details["mean_cosine"] > left.details["mean_cosine"] + 0.02
    found = rotation(np.reshape(sitk.AffineTransform(came.transform.GetNthTransform(0)).GetMatrix(), (3, 3)))
    angle = np.degrees(np.arccos((np.trace(found) - 1) / 2))
    assert angle > 15
    assert abs(came.details["turned_deg"] - angle) < 5.0  # `turn_deg`
    assert left.details["turned_deg"] == 0


class Blurred(PairRepresenter):
    """Turned scans are represented badly, and it is counted how often."""

    count = 0

    def turned(self, moving: sitk.Image, fixed: Grid, rotation: Values, held: int = 0) -> Representation:
        """From a scan without its detail."""
        type(self).count += 1
        return super().turned(sitk.SmoothingRecursiveGaussian(moving, 12.0), fixed, rotation, held)


def test_a_turned_scan_stays_as_it_was_where_that_agrees_better() -> None:
    far = make_pair(48, 3.0, ("t1", "flair"), rotation_deg=(14, -10, 12), amplitude_mm=2.0)
    make = Blurred(Representer(device="cpu", threads=1))
    came = register(far.fixed, far.moving, CONFIG, representations=make)
    left = register(far.fixed, far.moving, replace(CONFIG, turn_deg=180.0))
    assert came.details["turned_deg"] == 0
    assert Blurred.count == 1  # no later stage tries again
    assert apart_mm(came.transform, left.transform, Grid.of(far.fixed)) < 1e-6


def test_smaller_voxels_leave_less_error(phantom: PhantomPair, found: RegistrationResult) -> None:
    left = register(phantom.fixed, phantom.moving, replace(CONFIG, stages=STAGES[:-1]))
    assert found.stages[-1].name == "refine"
    assert phantom.error_mm(found.transform) < 0.95 * phantom.error_mm(left.transform)
    assert len(found.details["again_bytes"]) == len(left.details["again_bytes"]) + 1


def test_weights_that_follow_the_pair_find_smooth_deformations_better(
    phantom: PhantomPair, found: RegistrationResult
) -> None:
    config = replace(CONFIG, deformable=DeformableConfig(adaptive=False))
    left = register(phantom.fixed, phantom.moving, config)
    assert (left.details["diffusion"], left.details["bending_mm2"]) == config.deformable.weights == (0.3, 75.0)
    assert found.details["diffusion"] == pytest.approx(0.1)
    assert found.details["bending_mm2"] > 100.0  # for the phantom is smooth
    assert phantom.error_mm(found.transform) < 0.98 * phantom.error_mm(left.transform)


@pytest.mark.parametrize(
    ("stages", "information"), [(("refine",), 0.5), (("deformable", "refine"), 0.0), (("deformable", "refine"), 0.5)]
)
def test_smaller_voxels_are_looked_at_where_the_scans_are(
    pair: PhantomPair, stages: tuple[Stage, ...], information: float
) -> None:
    """Behind a transform that is not linear, and of another place in the world, the descriptors are the same ones.

    The start takes no voxel exactly to a voxel: there linear interpolation has two slopes, and rounding chooses one.
    """
    config = replace(CONFIG, stages=stages, deformable=DeformableConfig(information=information))
    start, away_mm = sitk.TranslationTransform(3, (1.3, -0.9, 0.7)), (40.0, -30.0, 20.0)
    there = sitk.TranslationTransform(3, np.add(start.GetOffset(), away_mm).tolist())
    field = DisplacementField.from_transform(there, Grid.of(pair.fixed).padded(9)).to_transform()
    away = sitk.Image(pair.moving)
    away.SetOrigin(np.add(away.GetOrigin(), away_mm).tolist())
    near = register(pair.fixed, pair.moving, config, initial_transform=start)
    far = register(pair.fixed, away, config, initial_transform=field)
    back = sitk.CompositeTransform([sitk.TranslationTransform(3, away_mm).GetInverse(), far.transform])
    assert near.undone == far.undone == ()
    assert apart_mm(near.transform, back, Grid.of(pair.fixed)) < 1e-4
    assert pair.error_mm(near.transform) < pair.error_mm(IDENTITY)


class Elsewhere(PairRepresenter):
    """In smaller voxels the moving scan lies elsewhere, or its descriptors say so."""

    def finer(self, *settings: Any, **more: Any) -> tuple[Representation, Representation]:
        """With an origin that is 9 mm off."""
        first, second = super().finer(*settings, **more)
        x, y, z = second.grid.origin_mm
        return first, replace(second, grid=replace(second.grid, origin_mm=(x + 9.0, y, z)))


def test_what_the_scans_do_not_bear_out_is_undone(pair: PhantomPair) -> None:
    make, stages = Elsewhere(Representer(device="cpu", threads=1)), ("rigid", "affine", "deformable", "refine")
    came = register(pair.fixed, pair.moving, replace(CONFIG, stages=stages), representations=make)
    assert came.undone == ("refine",)
    assert "undone: the scans tell less of each other (mutual information 1." in came.stages[-1].remark
    left = register(pair.fixed, pair.moving, replace(CONFIG, stages=stages[:-1]))
    assert apart_mm(came.transform, left.transform, Grid.of(pair.fixed)) < 1e-6


@pytest.mark.parametrize("shift_mm", [(0.0, 0.0, 0.0), (1.3, -2.1, 0.9)])
def test_a_scan_registered_to_itself_stays_where_it_is(pair: PhantomPair, shift_mm: tuple[float, ...]) -> None:
    away = sitk.Image(pair.fixed)
    away.SetOrigin(np.add(away.GetOrigin(), shift_mm).tolist())
    result = register(pair.fixed, away, RegisterConfig(threads=1))
    points = Grid.of(pair.fixed).points_mm()[sitk.GetArrayViewFromImage(pair.fixed_labels) > 0][::20]
    moved = [np.subtract(result.transform.TransformPoint(p), np.add(p, shift_mm)) for p in points.tolist()]
    assert "refine" not in result.undone
    assert np.linalg.norm(moved, axis=1).mean() < 0.01 * max(pair.fixed.GetSpacing())


def test_representations_that_came_are_not_refined(pair: PhantomPair) -> None:
    both = represent_pair(pair.fixed, pair.moving, Representer(device="cpu", threads=1))
    came = register(pair.fixed, pair.moving, replace(CONFIG, stages=("rigid", "refine")), representations=both)
    assert [s.name for s in came.stages] == ["rigid"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RegisterConfig(), True),
        (RegisterConfig(stages=("rigid",)), False),
        (RegisterConfig(backend="torch"), True),
        (RegisterConfig(backend="torch", instance=InstanceConfig(metric="mind")), False),
        (RegisterConfig(backend="torch", instance=InstanceConfig(parametrisation="dense")), False),
        (RegisterConfig(backend="torch", instance=InstanceConfig(velocity=True)), False),
        (RegisterConfig(backend="lapirn"), False),
        (RegisterConfig(backend="lapirn", lapirn=LapirnConfig(refine_iterations=9)), True),
        (RegisterConfig(backend="elastix"), False),
        (RegisterConfig(backend="elastix", stages=("affine", "refine")), True),
    ],
)
def test_what_is_refined(config: RegisterConfig, expected: bool) -> None:
    assert config.refines is expected


@pytest.mark.parametrize("share", [0.0, -0.7, 1.0, np.nan])
def test_smaller_voxels_are_not_larger_ones(share: float) -> None:
    with pytest.raises(ConfigError, match=r"voxels must be a number (from 0\.05 to below 1|within .*), got"):
        RefineConfig(voxels=share)


def test_a_refinement_takes_iterations() -> None:
    with pytest.raises(ConfigError, match="iterations must be a whole number from 1 to 10000, got 0"):
        RefineConfig(iterations=0)


def test_only_the_chosen_stages_run(pair: PhantomPair) -> None:
    came = register(pair.fixed, pair.moving, RIGID)
    assert [s.name for s in came.stages] == ["rigid"]
    assert came.transform.GetNumberOfTransforms() == 1
    jacobian = DisplacementField.from_transform(came.transform, Grid.of(pair.fixed)).jacobian_determinant()
    np.testing.assert_allclose(jacobian, 1.0, atol=1e-6)
    assert pair.error_mm(came.transform) < 0.7 * pair.error_mm(IDENTITY)


def test_same_input_same_bits(pair: PhantomPair) -> None:
    quick = replace(CONFIG, search=SearchConfig(rotation_deg=12.0, points=300, candidates=2))
    first, second = (register(pair.fixed, pair.moving, quick).transform for _ in range(2))
    assert first.GetNumberOfTransforms() == second.GetNumberOfTransforms() == 2
    for k in range(2):
        assert first.GetNthTransform(k).GetParameters() == second.GetNthTransform(k).GetParameters()


def reordered(image: sitk.Image) -> sitk.Image:
    """The same scan stored along other axes."""
    return sitk.Flip(sitk.PermuteAxes(image, [2, 0, 1]), [True, False, True])


@pytest.mark.parametrize("both", [True, False], ids=["both", "moving only"])
def test_the_order_of_the_axes_makes_no_difference(pair: PhantomPair, linear: RegistrationResult, both: bool) -> None:
    fixed = reordered(pair.fixed) if both else pair.fixed
    came = register(fixed, reordered(pair.moving), LINEAR)
    assert came.fixed_grid == Grid.of(fixed)
    assert apart_mm(came.transform, linear.transform, Grid.of(pair.fixed)) < 0.05


def test_turning_the_room_turns_the_result(pair: PhantomPair, linear: RegistrationResult) -> None:
    room = sitk.Euler3DTransform([10.0, -20.0, 30.0], 0.2, -0.3, 0.25, (70.0, -40.0, 15.0))

    def turned(image: sitk.Image) -> sitk.Image:
        out = sitk.Image(image)
        axes = np.reshape(room.GetMatrix(), (3, 3)) @ np.reshape(image.GetDirection(), (3, 3))
        out.SetDirection(axes.ravel().tolist())
        out.SetOrigin(room.TransformPoint(image.GetOrigin()))
        return out

    came = register(turned(pair.fixed), turned(pair.moving), LINEAR).transform
    here = sitk.CompositeTransform([room.GetInverse(), came, room])
    assert apart_mm(here, linear.transform, Grid.of(pair.fixed)) < 0.3


def spoilt(image: sitk.Image, mask: sitk.Image) -> sitk.Image:
    """`image` where `mask` is set; elsewhere it has slipped by 12 mm."""
    slipped = sitk.Resample(image, image, sitk.TranslationTransform(3, (0.0, 12.0, 0.0)))
    return sitk.Mask(image, mask) + sitk.Mask(slipped, mask, maskingValue=1)


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_what_a_mask_keeps_out_does_not_count(pair: PhantomPair, side: str) -> None:
    grid = Grid.of(pair.fixed)
    lower, wrong = grid.image() + 1, grid.image() + 1
    lower[:, :, 18:] = 0
    wrong[:, :, 26:] = 0  # a gap, for descriptors look around themselves
    sound = {"fixed": pair.fixed, "moving": pair.moving}
    broken = {**sound, side: spoilt(sound[side], wrong)}
    change = [
        apart_mm(*(register(**images, config=RIGID, **mask).transform for images in (sound, broken)), grid)
        for mask in ({}, {f"{side}_mask": lower})
    ]
    assert change[1] < 0.4 * change[0]


def test_a_linear_start_is_improved(pair: PhantomPair) -> None:
    apart = sitk.TranslationTransform(3, (60.0, -70.0, 50.0))
    near = sitk.CompositeTransform([apart, sitk.Euler3DTransform([0, 0, 0], 0.02, 0, 0.03, (5.0, -2.0, 1.0))])
    moving = sitk.Image(pair.moving)
    moving.SetOrigin(apart.TransformPoint(pair.moving.GetOrigin()))
    came = register(pair.fixed, moving, RIGID, initial_transform=near)
    back = sitk.CompositeTransform([apart.GetInverse(), came.transform])
    start = sitk.CompositeTransform([apart.GetInverse(), near])
    assert pair.error_mm(back) < 0.8 * pair.error_mm(start)
    assert came.transform.GetNumberOfTransforms() == 1


def test_another_start_is_kept_behind(pair: PhantomPair) -> None:
    grid = Grid.of(pair.moving).padded(8).resampled(9.0)
    initial = DisplacementField.from_transform(pair.truth, grid).to_transform()
    tilt = sitk.Euler3DTransform([0, 0, 0], 0.0, 0.06, 0.0, (0.0, 6.0, 0.0))
    moving_away = DisplacementField.from_transform(sitk.CompositeTransform([initial, tilt]), grid).to_transform()
    came = register(pair.fixed, pair.moving, RIGID, initial_transform=moving_away)
    assert pair.error_mm(came.transform) < 0.6 * pair.error_mm(moving_away)
    kept, changed = (came.transform.GetNthTransform(k) for k in range(2))
    assert changed.IsLinear()
    assert not kept.IsLinear()
    assert apart_mm(kept, moving_away, Grid.of(pair.fixed)) == 0.0
    assert apart_mm(sitk.CompositeTransform([kept, changed]), came.transform, Grid.of(pair.fixed)) < 1e-9


def test_representations_made_before(pair: PhantomPair) -> None:
    made = represent_pair(pair.fixed, pair.moving, Representer(device="cpu", threads=1))
    came = register(pair.fixed, pair.moving, replace(RIGID, model="is never opened"), representations=made)
    assert apart_mm(came.transform, register(pair.fixed, pair.moving, RIGID).transform, Grid.of(pair.fixed)) == 0.0
    narrow = replace(made[1], values=made[1].values[..., :12], mixture=None)
    with pytest.raises(ShapeError, match="fixed has 24 channels and moving 12"):
        register(pair.fixed, pair.moving, RIGID, representations=(made[0], narrow))


def with_mixture(
    pair: tuple[Representation, Representation], mixture: Values | None
) -> tuple[Representation, Representation]:
    first, second = (replace(side, mixture=None if mixture is None else np.float32(mixture)) for side in pair)
    return first, second


def test_channels_are_mixed_where_scans_are_deformed_and_only_there(pair: PhantomPair) -> None:
    """As if mixed representations had come, but for the linear stages."""
    made = represent_pair(pair.fixed, pair.moving, Representer(device="cpu", threads=1))
    mixture = np.random.default_rng(0).normal(size=(24, 24))
    stages = ("rigid", "deformable")
    plain, came = (
        register(pair.fixed, pair.moving, replace(CONFIG, stages=stages), representations=with_mixture(made, m))
        for m in (None, mixture)
    )
    assert came.undone == plain.undone == ()
    assert came.stages[0].cosine_after == plain.stages[0].cosine_after
    assert apart_mm(came.transform, plain.transform, Grid.of(pair.fixed)) > 0.1
    rigid = register(pair.fixed, pair.moving, RIGID, representations=with_mixture(made, None)).transform
    with threadpool_limits(1, user_api="blas"):  # as `register` does it, to the bit
        first, second = (side.mixed() for side in with_mixture(made, mixture))
    config = replace(CONFIG, stages=("deformable",))
    before = register(pair.fixed, pair.moving, config, representations=(first, second), initial_transform=rigid)
    assert apart_mm(came.transform, before.transform, Grid.of(pair.fixed)) < 1e-3
    unmixed = replace(CONFIG, stages=stages, deformable=DeformableConfig(mixed=False))
    left = register(pair.fixed, pair.moving, unmixed, representations=with_mixture(made, mixture))
    assert apart_mm(left.transform, plain.transform, Grid.of(pair.fixed)) == 0.0


def test_smaller_voxels_are_looked_at_with_the_weights_that_the_pair_had(
    pair: PhantomPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    fitted = stages_module.fit_freeform

    def watched(levels: list[Level], linear: Values, config: DeformableConfig, *rest: Any) -> Deformation:
        weights.append(config.weights)
        return fitted(levels, linear, config, *rest)

    monkeypatch.setattr(stages_module, "fit_freeform", watched)
    came = register(pair.fixed, pair.moving, replace(CONFIG, stages=("deformable", "refine")))
    assert weights == [(came.details["diffusion"], came.details["bending_mm2"])]
    assert weights[0][0] == pytest.approx(0.1)
    assert weights[0][1] != CONFIG.deformable.bending_mm2
    register(pair.fixed, pair.moving, replace(CONFIG, stages=("refine",)))
    assert weights[1] == CONFIG.deformable.weights


def test_channels_are_mixed_in_smaller_voxels_too(pair: PhantomPair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fitted = stages_module.fit_freeform
    monkeypatch.setattr(
        stages_module, "fit_freeform", lambda levels, *rest: seen.append(levels) or fitted(levels, *rest)
    )
    register(pair.fixed, pair.moving, replace(CONFIG, stages=("refine",)))
    [[level]] = seen
    make = PairRepresenter(Representer(device="cpu", threads=1))
    assert make.representer.mixture is not None
    assert level.fixed.mixture is level.moving.mixture is None  # done
    assert np.linalg.norm(level.moving.values, axis=-1) == pytest.approx(1.0, abs=1e-5)
    _, plain = make.finer(
        pair.fixed, pair.moving, (level.fixed.grid,) * 2, level.moving.grid.spacing_mm[0], (level.points_mm,) * 2
    )
    assert plain.grid == level.moving.grid
    assert plain.mixed().values == pytest.approx(level.moving.values, abs=1e-6)


@pytest.mark.parametrize("side", [0, 1])
def test_channels_are_left_as_they_are_unless_both_sides_know_how(pair: PhantomPair, side: int) -> None:
    made = represent_pair(pair.fixed, pair.moving, Representer(device="cpu", threads=1))
    half = [replace(r, mixture=None) if k == side else r for k, r in enumerate(made)]
    problem = Problem([Level(half[0], half[1], pair.fixed_labels > 0)], pair.moving_labels, np.zeros(3), CONFIG)
    assert problem.mixed() is problem
    assert len(problem.levels) == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RegisterConfig(), True),
        (RegisterConfig(deformable=DeformableConfig(mixed=False)), False),
        (RegisterConfig(backend="torch"), True),
        (RegisterConfig(backend="torch", instance=InstanceConfig(metric="mind")), False),
        (RegisterConfig(backend="lapirn"), False),
        (RegisterConfig(backend="elastix"), False),
    ],
)
def test_whose_channels_are_mixed(config: RegisterConfig, expected: bool) -> None:
    assert config.mixes is expected


def test_images_in_different_places(pair: PhantomPair) -> None:
    moving = sitk.Image(pair.moving)
    moving.SetOrigin([o + 500.0 for o in moving.GetOrigin()])
    with pytest.raises(RegistrationError, match="do not overlap; allow the centre stage"):
        register(pair.fixed, moving, RIGID)
    came = register(pair.fixed, moving, replace(CONFIG, stages=("centre", "rigid")))
    back = sitk.CompositeTransform([sitk.TranslationTransform(3, (-500.0,) * 3), came.transform])
    assert pair.error_mm(back) < 0.7 * pair.error_mm(IDENTITY)


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_unusable_masks(pair: PhantomPair, side: str) -> None:
    elsewhere = Grid.of(pair.fixed).resampled(6.0).image() + 1
    with pytest.raises(GeometryError, match=f"{side} mask: the mask lies on another grid"):
        register(pair.fixed, pair.moving, RIGID, **{f"{side}_mask": elsewhere})
    with pytest.raises(DataError, match=f"{side} mask: the mask is empty"):
        register(pair.fixed, pair.moving, RIGID, **{f"{side}_mask": Grid.of(pair.fixed).image()})


def test_a_bad_stage_is_undone_and_the_next_goes_on(pair: PhantomPair, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored = State(np.diag([-1.0, 1.0, 1.0, 1.0]))
    monkeypatch.setitem(pipeline.RUN, "rigid", lambda *_: (mirrored, "what it did"))
    came = register(pair.fixed, pair.moving, replace(CONFIG, stages=("rigid", "affine")))
    assert came.undone == ("rigid",)
    assert came.stages[0].remark == "undone: it mirrors the image"
    assert came.stages[0].cosine_after < came.stages[0].cosine_before == came.stages[1].cosine_before
    assert came.stages[1].kept
    assert pair.error_mm(came.transform) < pair.error_mm(IDENTITY)


def test_number_of_threads_is_for_this_registration_only(pair: PhantomPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    used: list[int] = []

    def rigid(_: object, state: State, __: object) -> tuple[State, str]:
        used.append(threads())
        return state, ""

    monkeypatch.setitem(pipeline.RUN, "rigid", rigid)
    register(pair.fixed, pair.moving, RIGID)
    assert (used, threads()) == ([1], 3)


def test_scans_that_agree_little_are_told(pair: PhantomPair, linear: RegistrationResult) -> None:
    noise = np.random.default_rng(0).normal(100.0, 30.0, Grid.of(pair.moving).shape).astype(np.float32)
    stranger = Grid.of(pair.moving).stamp(sitk.GetImageFromArray(noise))
    (warning,) = register(pair.fixed, stranger, RIGID).warnings
    assert "mean cosine" in warning
    assert linear.warnings == ()
