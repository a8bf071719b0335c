"""From two scans to one transform: represent once, then stage after stage, each kept only if it helps."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numba
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.config import to_dict
from dsir_metric.errors import RegistrationError
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.io import check_image
from dsir_metric.metric import CosineMetric, Sampling
from dsir_metric.metric.transforms import point_map
from dsir_metric.register.config import RegisterConfig
from dsir_metric.register.deformable import deform
from dsir_metric.register.guard import Guard
from dsir_metric.register.linear import affine_matrix, as_affine, as_rigid, fit
from dsir_metric.register.pair import Level, foreground, pyramid
from dsir_metric.register.result import Progress, RegistrationResult, StageReport
from dsir_metric.register.search import centre, middle, search
from dsir_metric.represent import Representer, represent_pair

__all__ = ["register"]

Matrix = NDArray[np.float64]
OnProgress = Callable[[Progress], None]
_LINEAR_MM = 4.0  # voxel size, at least, of the rigid and affine stages
_LINEAR_POINTS = 40_000
_SHARE = {"represent": 0.3, "centre": 0.02, "search": 0.13, "rigid": 0.05, "affine": 0.05, "deformable": 0.45}


def register(
    fixed: sitk.Image,
    moving: sitk.Image,
    config: RegisterConfig | None = None,
    *,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    initial_transform: sitk.Transform | None = None,
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
        Points that map outside it do not count; any grid.
    initial_transform : sitk.Transform, optional
        Fixed to moving, LPS mm. If it is linear the stages improve it; otherwise they work in front of it.
    on_progress : callable, optional
        Receives a `Progress` now and then.

    Returns
    -------
    RegistrationResult

    Raises
    ------
    ShapeError, GeometryError, DataError
        If an image or mask is unusable.
    RegistrationError
        If the images do not overlap and no stage that could bring them together is allowed.
    """
    run = _Run(config or RegisterConfig(), on_progress or (lambda _: None))
    started = time.perf_counter()
    if run.config.threads is not None:
        numba.set_num_threads(min(run.config.threads, numba.config.NUMBA_NUM_THREADS))
    fixed, moving = check_image(fixed, "fixed"), check_image(moving, "moving")
    run.represent(fixed, moving, fixed_mask, moving_mask)
    run.start_from(initial_transform)
    for name in run.config.stages:
        run.stage(name)
    return run.result(Grid.of(fixed), time.perf_counter() - started)


@dataclass
class _State:
    """Where the registration stands: x -> rest(linear(x + u(x)))."""

    linear: Matrix
    displacement: sitk.BSplineTransform | None = None

    def transform(self, centre_mm: NDArray[np.float64]) -> sitk.CompositeTransform:
        """ITK composite: what was added last is applied first."""
        parts: list[sitk.Transform] = [as_affine(self.linear, centre_mm)]
        if self.displacement is not None:
            parts.append(self.displacement)
        return sitk.CompositeTransform(parts)


class _Run:
    """One registration under way."""

    def __init__(self, config: RegisterConfig, on_progress: OnProgress) -> None:
        self.config, self.on_progress = config, on_progress
        self.reports: list[StageReport] = []
        self.seconds: dict[str, float] = {}
        self.done = 0.0
        names = ("represent", *config.stages)
        total = sum(_SHARE[n] for n in names)
        self.share = {n: _SHARE[n] / total for n in names}

    def tell(self, stage: str, fraction: float, metric: float | None = None) -> None:
        """Report progress inside a stage."""
        self.on_progress(Progress(stage, min(self.done + self.share[stage] * fraction, 1.0), metric))

    def represent(
        self, fixed: sitk.Image, moving: sitk.Image, fixed_mask: sitk.Image | None, moving_mask: sitk.Image | None
    ) -> None:
        """Represent both scans once and build the levels."""
        config, begin = self.config, time.perf_counter()
        self.tell("represent", 0.0)
        representer = Representer(config.model, config.device, config.threads)
        pair = represent_pair(
            fixed,
            moving,
            representer,
            spacing_mm=config.spacing_mm,
            fixed_intensity=config.fixed_intensity,
            moving_intensity=config.moving_intensity,
        )
        grid = pair[0].grid
        mask = foreground(fixed, grid) if fixed_mask is None else _on(grid, fixed_mask)
        self.moving_body = foreground(moving, pair[1].grid) if moving_mask is None else _on(pair[1].grid, moving_mask)
        self.levels = pyramid(Level(*pair, mask, moving_mask))
        linear = [lv for lv in self.levels if lv.spacing_mm >= _LINEAR_MM / 1.5][-1:] or self.levels[-1:]
        self.linear_level = linear[0]
        self.guard = Guard(self._metric(self.linear_level, _LINEAR_POINTS), pair[1].grid)
        self.pivot = middle(mask)
        self.seconds["represent"] = time.perf_counter() - begin
        self.done += self.share["represent"]

    def start_from(self, initial: sitk.Transform | None) -> None:
        """Take over an initial transform."""
        matrix = np.eye(4) if initial is None else affine_matrix(initial)
        self.state = _State(matrix)

    def _metric(self, level: Level, points: int) -> CosineMetric:
        """The metric of a level on about `points` of its masked voxels."""
        inside = int(np.count_nonzero(sitk.GetArrayViewFromImage(level.fixed_mask)))
        share = min(1.0, points / max(inside, 1))
        sampling = Sampling("none") if share == 1.0 else Sampling("random", share, self.config.seed)
        return CosineMetric(
            level.fixed, level.moving, fixed_mask=level.fixed_mask, moving_mask=level.moving_mask, sampling=sampling
        )

    def stage(self, name: str) -> None:
        """Run one stage and keep its outcome unless the guard objects."""
        begin, trace = time.perf_counter(), list[float]()
        self.tell(name, 0.0)
        before = self.guard_points(self.state)
        found, remark = getattr(self, f"_{name}")(trace)
        after = self.guard_points(found)
        unchanged = found is self.state
        objection = None if unchanged else self.guard.objection(before, after, found.linear)
        scores = self.guard.score(before), self.guard.score(after)
        if objection is None:
            self.state = found
        seconds = time.perf_counter() - begin
        self.reports.append(
            StageReport(name, objection is None, f"undone: {objection}" if objection else remark, *scores, seconds, tuple(trace))
        )
        self.seconds[name] = seconds
        self.done += self.share[name]

    def guard_points(self, state: _State) -> NDArray[np.float64]:
        """The guard's points under `state`, LPS mm."""
        points = self.guard.points_mm
        if state.displacement is not None:
            points = point_map(state.displacement).map(points)
        return points @ state.linear[:3, :3].T + state.linear[:3, 3]

    def _centre(self, trace: list[float]) -> tuple[_State, str]:
        level = self.levels[0]
        matrix = centre(level, self._metric(level, 4000), self.state.linear, self.moving_body)
        return (self.state if matrix is self.state.linear else _State(matrix)), ""

    def _search(self, trace: list[float]) -> tuple[_State, str]:
        level, config = self.levels[0], self.config.search
        matrix = search(level, self._metric(level, config.points), self.state.linear, config)
        return (self.state if matrix is self.state.linear else _State(matrix)), ""

    def _rigid(self, trace: list[float]) -> tuple[_State, str]:
        return self._fit(as_rigid(self.state.linear, self.pivot), "rigid", trace), ""

    def _affine(self, trace: list[float]) -> tuple[_State, str]:
        return self._fit(as_affine(self.state.linear, self.pivot), "affine", trace), ""

    def _fit(self, transform: sitk.Transform, name: str, trace: list[float]) -> _State:
        levels = list(dict.fromkeys((id(self.levels[0]), id(self.linear_level))))
        for step, level in enumerate(lv for lv in self.levels if id(lv) in levels):

            def watch(value: float, step: int = step) -> None:
                trace.append(value)
                self.tell(name, min(step / 2 + len(trace) / 200, 1.0), value)

            transform, _ = fit(self._metric(level, _LINEAR_POINTS), transform, 100, watch)
        return _State(affine_matrix(transform))

    def _deformable(self, trace: list[float]) -> tuple[_State, str]:
        def watch(fraction: float, value: float) -> None:
            trace.append(value)
            self.tell("deformable", fraction, value)

        domain = self.levels[-1].fixed.grid.padded(1)
        displacement, remarks = deform(self.levels, self.state.linear, domain, self.config.deformable, watch)
        return _State(self.state.linear, displacement), "; ".join(remarks)

    def result(self, grid: Grid, seconds: float) -> RegistrationResult:
        """Everything, put together."""
        transform = self.state.transform(self.pivot)
        inside = self.guard.overlap(self.guard_points(self.state))
        if inside == 0.0:
            raise RegistrationError(
                "the images do not overlap: use the centre stage, or give an initial transform that brings them together"
            )
        finest = self.levels[-1]
        jacobian = _field(transform, grid).jacobian_statistics()
        self.on_progress(Progress("done", 1.0))
        details: dict[str, object] = {
            "undone": [r.name for r in self.reports if not r.kept],
            "overlap": inside,
            "jacobian": jacobian,
            "working_spacing_mm": finest.spacing_mm,
            "fixed_representation": dict(finest.fixed.provenance),
            "moving_representation": dict(finest.moving.provenance),
            "seconds": {**self.seconds, "total": seconds},
            "config": to_dict(self.config),
            "versions": _versions(),
        }
        return RegistrationResult(transform, grid, tuple(self.reports), details)


def _field(transform: sitk.Transform, grid: Grid) -> DisplacementField:
    points = grid.points_mm()
    moved = point_map(transform).map(points.reshape(-1, 3)).reshape(points.shape)
    return DisplacementField(moved - points, grid)


def _on(grid: Grid, mask: sitk.Image) -> sitk.Image:
    """A mask, nearest neighbour, on `grid`."""
    return sitk.Resample(sitk.Cast(mask != 0, sitk.sitkUInt8), grid.image(), sitk.Transform(), sitk.sitkNearestNeighbor, 0)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("dsir-metric", "SimpleITK", "numpy", "scipy", "numba", "onnxruntime", "onnxruntime-gpu"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
