"""From two scans to one transform: represent once, then stage after stage, each kept only if it helps."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import SimpleITK as sitk

from dsir_metric.config import to_dict
from dsir_metric.errors import RegistrationError
from dsir_metric.geometry import Grid, body_scale, jacobian_statistics, rotation
from dsir_metric.io import check_image, check_mask, check_transform
from dsir_metric.metric.transforms import point_map
from dsir_metric.register.backends import BACKENDS
from dsir_metric.register.chance import Margin
from dsir_metric.register.config import RegisterConfig, Stage
from dsir_metric.register.forecast import (
    finer_bytes,
    levels_bytes,
    open_representer,
    orienting_bytes,
    turning_bytes,
    within_memory,
)
from dsir_metric.register.guard import Guard, scans_objection
from dsir_metric.register.linear import affine_matrix
from dsir_metric.register.orientation import ELSEWHERE_DEG, apart_deg, first_lead, oriented
from dsir_metric.register.pair import Level, pyramid
from dsir_metric.register.problem import Problem, askew_deg
from dsir_metric.register.result import Progress, RegistrationResult, StageReport
from dsir_metric.register.search import middle
from dsir_metric.register.stages import LINEAR_POINTS, RUN
from dsir_metric.register.state import State
from dsir_metric.register.units import Units
from dsir_metric.represent import PairRepresenter, Representation
from dsir_metric.represent.foreground import foreground, outlined
from dsir_metric.represent.pair import finer_spacing, resampled_scan, turned_grid
from dsir_metric.threads import at_most, one_for_blas

__all__ = ["register"]

OnProgress = Callable[[Progress], None]
_DOUBTFUL = 0.35  # mean cosine; scans of one anatomy that are aligned agree better than this
_GAIN = 0.1  # above chance: what one orientation must agree better by than others, a third of what is clear
_WHOLE = 0.9  # share of the points that both scans show: 0.97 or more for heads turned about, 0.6 to 0.84 for slabs
_PERFECT = 0.95  # mean cosine: of a scan and itself, or a crop of it; two scans of one head agree by 0.6 to 0.9
_DOUBT = "the scans agree little where both show something (mean cosine {:.2f}): look at the overlay"
_CHANCE = (
    "{} clearly better than chance: the mean cosine is {:.2f} where both scans show something, and {:.2f} at wrong "
    "poses; look at the overlay, and give an initial transform if it is wrong"
)
_LITTLE = "the moving scan covers {:.0f} % of what the fixed scan shows: elsewhere the transform is a guess"
_LEAST_COVERED = 0.25
_SEARCHED = "all orientations were searched, for the first pose was not surely better"
_FOLDED = "{:.2f} % of the voxels fold: the transform has no inverse there"
_ASKEW = "the moving scan lies {:.0f} degrees askew; more memory would let it be represented along turned axes"
_NOT_SEARCHED = "the pose is not clearly better than chance; {:.0f} MB of memory would let all orientations be searched"
_COARSE = "the refine stage was left out: {:.0f} MB of memory (--memory) would let it run"
_FOLLOW = ("rigid", "affine", "deformable")  # stages before which the moving scan may be represented again
_FITS = ("rigid", "affine", "deformable")  # what a user should know of where they are undone
_SHARE: dict[str, float] = {
    "represent": 0.5, "centre": 0.01, "search": 0.08, "rigid": 0.02, "affine": 0.02, "deformable": 0.2, "refine": 0.17
}  # fmt: skip


def register(
    fixed: sitk.Image,
    moving: sitk.Image,
    config: RegisterConfig | None = None,
    *,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    initial_transform: sitk.Transform | None = None,
    representations: tuple[Representation, Representation] | PairRepresenter | None = None,
    on_progress: OnProgress | None = None,
) -> RegistrationResult:
    """Register two scans of any modality.

    Parameters
    ----------
    fixed, moving : sitk.Image
        Scalar 3-D scans.
    config : RegisterConfig, optional
    fixed_mask : sitk.Image, optional
        Where the metric counts, on the grid of `fixed`; the bright body of `fixed` by default.
    moving_mask : sitk.Image, optional
        Points that map outside it do not count; on the grid of `moving`.
    initial_transform : sitk.Transform, optional
        Fixed to moving, LPS mm. If it is linear the stages improve it; otherwise they work in front of it.
    representations : tuple of Representation, or PairRepresenter, optional
        Of `fixed` and of `moving`, made before as `represent_pair` makes them, by a model or by anything else; the
        model, memory, spacing and intensities of `config` then play no part, and there is no refine stage. Or what
        makes them, in place of what `config` says.
    on_progress : callable, optional
        Receives a `Progress` now and then.

    Returns
    -------
    RegistrationResult

    Raises
    ------
    ShapeError, GeometryError, DataError
        If an image or mask is unusable, or the representations have different numbers of channels.
    RegistrationError
        If the images do not overlap and the stages cannot bring them together.
    """
    config = config or RegisterConfig()
    BACKENDS[config.backend].check(config)
    if representations is None:
        BACKENDS[config.backend].check_model(config)
    fixed, moving = check_image(fixed, "fixed"), check_image(moving, "moving")
    refines = config.refines and not isinstance(representations, tuple)
    stages = tuple(name for name in config.stages if name != "refine" or refines)
    clock = _Clock(stages, on_progress or (lambda _: None))
    grids = Grid.of(fixed), Grid.of(moving)
    units = Units(config.scale or body_scale(*grids))
    if initial_transform is not None:
        initial_transform = check_transform(initial_transform, "initial transform")
    with at_most(config.threads), one_for_blas():  # the matrices here are too small to share
        with clock.stage("represent"):
            made = units.representations(representations or _representer(config, *grids))
        masks = [mask if mask is None else units.image(mask) for mask in (fixed_mask, moving_mask)]
        start = _start(units.start(initial_transform))
        result = _register(units.image(fixed), units.image(moving), units.config(config), masks, start, made, clock)
    return units.result(replace(result, details=result.details | {"config": to_dict(config)}))


def _register(
    fixed: sitk.Image,
    moving: sitk.Image,
    config: RegisterConfig,
    masks: list[sitk.Image | None],
    state: State,
    representations: tuple[Representation, Representation] | PairRepresenter,
    clock: _Clock,
) -> RegistrationResult:
    warnings: list[str] = []
    again: list[int] = []  # bytes
    with clock.stage("represent"):
        make = None if isinstance(representations, tuple) else representations
        warnings += [make.remark] if make is not None and make.remark else []
        warnings += [make.representer.obstacle] if make is not None and make.representer.obstacle else []
        pair = representations if isinstance(representations, tuple) else representations(fixed, moving)
        problem = _prepare(fixed, moving, pair, config, masks, state)
        del pair
    guard = Guard(problem.linear_level, LINEAR_POINTS, config.seed)
    if guard.overlap(state) == 0.0 and "centre" not in config.stages:
        raise RegistrationError("the images do not overlap; allow the centre stage or give an initial transform")
    reports: list[StageReport] = []
    turner: PairRepresenter | None = make
    rival: float | None = None
    for name in clock.stages:
        if turner is not None and name in _FOLLOW:
            with clock.stage("represent"):
                problem, guard, needed = _along(problem, guard, state, fixed, moving, turner)
            again += needed
            left = askew_deg(problem, rotation(state.linear[:3, :3]))
            if needed and left > config.turn_deg:
                turner = None  # it agrees better as it was, or memory forbids: the next stage need not try
                warnings += [_ASKEW.format(left)] if _exceed(config, needed) else []
        if name == "deformable" and config.mixes:
            with clock.stage("represent"):
                problem = problem.mixed()
        if name == "refine" and make is not None:
            state, report, needed = _refined(problem, guard, state, fixed, moving, make, clock)
            again += needed
            reports += report
            warnings += _lacking(_COARSE, config, needed)
        else:
            state, only = _stage(name, problem, guard, state, clock)
            reports.append(only)
        if name == "search" and make is not None:
            problem, guard, state, needed, rival = _oriented(problem, guard, state, fixed, moving, make, clock)
            again += needed
            warnings += _lacking(_NOT_SEARCHED, config, [] if guard.margin(state).sure else needed)
            if rival is not None:
                reports[-1] = replace(reports[-1], remark=_SEARCHED, cosine_after=guard.score(state))
    if guard.overlap(state) == 0.0:
        raise RegistrationError("no stage made the images overlap; give an initial transform that does")
    transform, inverse = state.transform(problem.pivot_mm), state.inverse_transform(problem.pivot_mm)
    details, margin = _told(problem, guard, state), guard.margin(state)
    details |= {"agreement": margin.agreement, "chance": margin.chance, "above_chance": margin.above}
    lead = None if rival is None else _height(guard.margin(replace(state, displacement=None))) - rival
    warnings += _doubts(margin, guard.overlap(state), lead)
    warnings += [f"the {r.name} stage was {r.remark}" for r in reports if _to_tell(r)]
    del problem, guard  # the representations are not needed any more
    jacobian = jacobian_statistics(point_map(transform).map, Grid.of(fixed))
    details |= {
        "again_bytes": again,
        "warnings": [*dict.fromkeys(warnings), *_folded(jacobian["folded_percent"])],
        "jacobian": jacobian,
        "seconds": clock.seconds,
        "versions": _versions(),
    }
    clock.finish()
    return RegistrationResult(transform, Grid.of(fixed), tuple(reports), details, inverse)


def _told(problem: Problem, guard: Guard, state: State) -> dict[str, object]:
    """What the result says of the representations, and of how the scans lie in the end."""
    finest = problem.levels[-1]
    diffusion, bending_mm2 = state.weights or (None, None)
    return {
        "mean_cosine": guard.score(state),
        "overlap": guard.overlap(state),
        "turned_deg": askew_deg(problem, np.eye(3)),
        "diffusion": diffusion,
        "bending_mm2": bending_mm2,
        "working_spacing_mm": finest.spacing_mm,
        "fixed_representation": dict(finest.fixed.provenance),
        "moving_representation": dict(finest.moving.provenance),
    }


class _Clock:
    """Times the stages and tells how far the whole has come; a context manager around each stage."""

    def __init__(self, stages: tuple[Stage, ...], on_progress: OnProgress) -> None:
        self.stages = stages
        names = ("represent", *stages)
        whole = sum(_SHARE[n] for n in names)
        self._share = {n: _SHARE[n] / whole for n in names}
        self._on_progress, self._done, self._name = on_progress, 0.0, "represent"
        self._started = self._begin = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def stage(self, name: str) -> _Clock:
        """The clock, set to a stage."""
        self._name = name
        return self

    def __enter__(self) -> _Clock:
        self._begin = time.perf_counter()
        self.tell(0.0, None)
        return self

    def __exit__(self, *_: object) -> None:
        self._done += 0.0 if self._name in self.seconds else self._share[self._name]
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.perf_counter() - self._begin

    def tell(self, fraction: float, metric: float | None) -> None:
        """Report `fraction` of the current stage."""
        share = 0.0 if self._name in self.seconds else self._share[self._name]  # done before: this is beyond the plan
        overall = self._done + share * min(fraction, 1.0)
        self._on_progress(Progress(self._name, min(overall, 1.0), metric))

    def finish(self) -> None:
        """Add the total and report the end."""
        self.seconds["total"] = time.perf_counter() - self._started
        self._on_progress(Progress("done", 1.0))


def _start(initial: sitk.Transform | None) -> State:
    """A linear initial transform is taken apart, so that it can be improved; another one is kept behind."""
    if initial is None:
        return State()
    return State(affine_matrix(initial)) if initial.IsLinear() else State(after=initial)


def _representer(config: RegisterConfig, fixed: Grid, moving: Grid) -> PairRepresenter:
    """What represents the scans within the memory that `config` allows."""
    representer, spacing, remark = open_representer(config, fixed, moving), config.spacing_mm, ""
    if config.memory_bytes is not None:
        spacing, remark = within_memory(config, fixed, moving, representer)
    return PairRepresenter(representer, spacing, config.fixed_intensity, config.moving_intensity, remark=remark)


def _prepare(
    fixed: sitk.Image,
    moving: sitk.Image,
    pair: tuple[Representation, Representation],
    config: RegisterConfig,
    masks: list[sitk.Image | None],
    start: State,
) -> Problem:
    """Check the masks and build the levels."""
    fixed_mask, moving_mask = masks
    if fixed_mask is not None:
        fixed_mask = check_mask(fixed_mask, Grid.of(fixed), "fixed mask")
    if moving_mask is not None:
        moving_mask = check_mask(moving_mask, Grid.of(moving), "moving mask")
    mask = _body(fixed, fixed_mask, pair[0].grid, "fixed")
    moving_body = _body(moving, moving_mask, pair[1].grid, "moving")
    scans = _scans(fixed, moving, pair, config) if config.looks_at_scans else None
    reachable = None if moving_mask is None else moving_body
    levels = pyramid(Level(*pair, mask, reachable, start.after, scans))
    return Problem(levels, moving_body, middle(mask), config)


def _exceed(config: RegisterConfig, needed: list[int]) -> bool:
    """Whether something needed more bytes than there are."""
    return config.memory_bytes is not None and max(needed, default=0) > config.memory_bytes


def _lacking(text: str, config: RegisterConfig, needed: list[int]) -> list[str]:
    """The warning `text` with the MB that would have been needed, where they exceed the memory."""
    return [text.format(needed[0] / 1e6)] if _exceed(config, needed) else []


def _oriented(
    problem: Problem,
    guard: Guard,
    state: State,
    fixed: sitk.Image,
    moving: sitk.Image,
    make: PairRepresenter,
    clock: _Clock,
) -> tuple[Problem, Guard, State, list[int], float | None]:
    """The best pose of all orientations, where the present one is not surely better than chance and than the others.

    It is taken if it is further above chance by a clear gain, with the moving side along axes turned like it. Behind a
    transform that is not linear orientations are not searched; nor where memory forbids. The bytes that it takes come
    with it; and, if all were searched, how far above chance the best of other orientations is.
    """
    config, now = problem.config, guard.margin(state)
    if not config.search.orientations or state.after is not None or _comparable_nowhere_else(now):
        return problem, guard, state, [], None
    finest = problem.levels[-1]
    working = (finest.fixed.grid, finest.moving.grid)
    needed = orienting_bytes(Grid.of(fixed), Grid.of(moving), working, make.representer, shared=make.shared)
    if _exceed(config, [needed]):
        return problem, guard, state, [needed], None
    with clock.stage("search"):
        if now.sure and first_lead(fixed, moving, problem, state.linear, make) >= 0:
            return problem, guard, state, [needed], None
        others = [replace(state, linear=m) for m in oriented(fixed, moving, problem, state.linear, make, clock.tell)]
        there = [_seen_along(problem, guard, other, fixed, moving, make) for other in others]
        best, again = int(np.argmax(there)), [needed]
        if there[best] >= _height(now) + _GAIN:
            state = others[best]
            problem, guard, turning = _along(problem, guard, state, fixed, moving, make)
            again += turning
    rivals = [h for h, o in zip(there, others, strict=True) if apart_deg(o.linear, state.linear) > ELSEWHERE_DEG]
    return problem, guard, state, again, max(rivals, default=0.0)


def _seen_along(
    problem: Problem, guard: Guard, state: State, fixed: sitk.Image, moving: sitk.Image, make: PairRepresenter
) -> float:
    """How far above chance a pose is with the moving scan along axes turned like it."""
    return _height(_along(problem, guard, state, fixed, moving, make)[1].margin(state))


def _comparable_nowhere_else(now: Margin) -> bool:
    """Whether the agreement of other orientations says nothing about a pose.

    So it is with a thin slab, whose agreement by chance is unknown, and with a sure pose where one scan shows a part of
    the other, such as a slab that overlaps by half: turned about, all of it may agree by accident.
    """
    return now.shared > 0 and (now.above is None or (now.sure and now.shared < _WHOLE))


def _height(margin: Margin) -> float:
    """How far above chance; 0 where it is unknown."""
    return margin.above or 0.0


def _along(
    problem: Problem, guard: Guard, state: State, fixed: sitk.Image, moving: sitk.Image, make: PairRepresenter
) -> tuple[Problem, Guard, list[int]]:
    """The problem with the moving side along axes turned as it lies, and its guard, if it agrees better so.

    Not where it lies straight enough, nor where memory forbids; and the bytes that it takes, if it was to be done. The
    fixed side and the masks stay.
    """
    config, turn = problem.config, rotation(state.linear[:3, :3])
    if askew_deg(problem, turn) <= config.turn_deg:
        return problem, guard, []
    finest, grid = problem.levels[-1], Grid.of(moving)
    working = (finest.fixed.grid, finest.moving.grid)
    needed = turning_bytes(
        Grid.of(fixed), grid, working, turned_grid(grid, working[0], turn), make.representer, shared=make.shared
    )
    if _exceed(config, [needed]):
        return problem, guard, [needed]
    along = make.turned(moving, working[0], turn, levels_bytes(working, finest.fixed.channels))
    scans = finest.scans and (finest.scans[0], resampled_scan(moving, along.grid, config.moving_intensity))
    turned = replace(problem, levels=pyramid(replace(finest, moving=along, scans=scans)))
    judge = Guard(turned.linear_level, LINEAR_POINTS, config.seed)
    return (turned, judge, [needed]) if judge.score(state) > guard.score(state) else (problem, guard, [needed])


def _refined(
    problem: Problem,
    guard: Guard,
    state: State,
    fixed: sitk.Image,
    moving: sitk.Image,
    make: PairRepresenter,
    clock: _Clock,
) -> tuple[State, list[StageReport], list[int]]:
    """The refine stage and the bytes that it takes; none where smaller voxels are not worth while or memory forbids."""
    finest, config = problem.levels[-1], problem.config
    working = (finest.fixed.grid, finest.moving.grid)
    if askew_deg(problem, np.eye(3)) > 0:  # along turned axes: now it is known how far
        working = (working[0], turned_grid(Grid.of(moving), working[0], rotation(state.linear[:3, :3])))
    spacing = finer_spacing(working, config.refine.voxels)
    if spacing is None:
        return state, [], []
    needed = finer_bytes(Grid.of(fixed), Grid.of(moving), working, spacing, make.representer, shared=make.shared)
    if _exceed(config, [needed]):
        return state, [], [needed]
    with clock.stage("represent"):
        places = state.map(finest.points_mm)
        places = places if finest.after is None else point_map(finest.after).map(places)
        held = levels_bytes(working, finest.fixed.channels)
        first, second = make.finer(
            fixed, moving, working, spacing, (finest.points_mm, places), held, mixed=config.deformable.mixed
        )
        finer = replace(problem, levels=[replace(finest, fixed=first, moving=second)])
    state, report = _stage("refine", finer, guard, state, clock)
    return state, [report], [needed]


def _scans(
    fixed: sitk.Image, moving: sitk.Image, pair: tuple[Representation, Representation], config: RegisterConfig
) -> tuple[Representation, Representation]:
    """The scans on the grids of their representations, intensities in [0, 1]."""
    rules = (config.fixed_intensity, config.moving_intensity)
    first, second = (
        resampled_scan(image, side.grid, rule) for image, side, rule in zip((fixed, moving), pair, rules, strict=True)
    )
    return first, second


def _stage(name: Stage, problem: Problem, guard: Guard, state: State, clock: _Clock) -> tuple[State, StageReport]:
    """Run one stage; what it found is kept unless the guard objects."""
    trace: list[float] = []

    def report(fraction: float, metric: float) -> None:
        trace.append(metric)
        clock.tell(fraction, metric)

    with clock.stage(name):
        found, remark = RUN[name](problem, state, report)
        same_metric = name != "refine" and (name != "deformable" or problem.config.instance.metric == "dns")
        objection = None if found is state else guard.objection(state, found, must_improve=same_metric)
        if name == "refine" and objection is None:
            objection = scans_objection(problem.levels[-1], state, found)
    scores = guard.score(state), guard.score(found)
    remark = remark if objection is None else f"undone: {objection}"
    outcome = StageReport(name, objection is None, remark, *scores, clock.seconds[name], tuple(trace))
    return (found if outcome.kept else state), outcome


def _body(image: sitk.Image, mask: sitk.Image | None, grid: Grid, name: str) -> sitk.Image:
    """Return where the image counts, on `grid`: its foreground, or a mask whose outline is corrected."""
    if mask is None:
        return foreground(image, grid, name)
    return outlined(sitk.Resample(mask, grid.image(), sitk.Transform(), sitk.sitkNearestNeighbor), image)


def _to_tell(report: StageReport) -> bool:
    """Whether a user should know that a stage was undone; not where there was next to nothing to gain or to lose."""
    perfect = min(report.cosine_before, report.cosine_after) > _PERFECT
    return report.name in _FITS and not report.kept and not perfect


def _doubts(margin: Margin, overlap: float, lead: float | None) -> list[str]:
    """What is to be said of the agreement and of the overlap at the end."""
    doubts = []
    if not margin.clear or (lead is not None and lead < _GAIN):
        pose = "the pose is not" if lead is None else "no pose is"
        doubts.append(_CHANCE.format(pose, margin.agreement, margin.chance or 0.0))
    elif margin.agreement < _DOUBTFUL:
        doubts.append(_DOUBT.format(margin.agreement))
    return [*doubts, _LITTLE.format(100 * overlap)] if overlap < _LEAST_COVERED else doubts


def _folded(percent: float) -> list[str]:
    return [] if percent == 0 else [_FOLDED.format(percent)]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    packages = ("dsir-metric", "SimpleITK", "numpy", "scipy", "numba", "onnxruntime", "onnxruntime-gpu")
    for package in (*packages, *(b.package.package for b in BACKENDS.values() if b.package)):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
