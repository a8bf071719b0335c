"""The stages of a registration, each a function from one state to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import SimpleITK as sitk

from dsir_metric.geometry import DisplacementField
from dsir_metric.register.backends import BACKENDS
from dsir_metric.register.config import Stage
from dsir_metric.register.deformable import fit_freeform
from dsir_metric.register.linear import affine_matrix, as_affine, as_rigid, fit
from dsir_metric.register.problem import Deformation, Problem, Report
from dsir_metric.register.search import centred, searched
from dsir_metric.register.state import Points, State

__all__ = ["LINEAR_POINTS", "RUN"]

LINEAR_POINTS = 40_000
_LINEAR_ITERATIONS = 100


StageFunction = Callable[[Problem, State, Report], tuple[State, str]]


def _centre(problem: Problem, state: State, report: Report) -> tuple[State, str]:
    level = problem.levels[0]
    metric = level.metric(4000, problem.config.seed)
    return _with_linear(state, centred(level, metric, state.linear, problem.pivot_mm, problem.moving_body)), ""


def _search(problem: Problem, state: State, report: Report) -> tuple[State, str]:
    level, config = problem.levels[0], problem.config
    return _with_linear(state, searched(level, state.linear, problem.pivot_mm, config.search, config.seed, report)), ""


def _rigid(problem: Problem, state: State, report: Report) -> tuple[State, str]:
    return _fitted(problem, state, as_rigid(state.linear, problem.pivot_mm), report), ""


def _affine(problem: Problem, state: State, report: Report) -> tuple[State, str]:
    return _fitted(problem, state, as_affine(state.linear, problem.pivot_mm), report), ""


def _deformable(problem: Problem, state: State, report: Report) -> tuple[State, str]:
    found = BACKENDS[problem.config.backend].deform(problem, state.linear, report)
    return _with_displacement(state, found), found.remark


def _refine(problem: Problem, state: State, report: Report) -> tuple[State, str]:
    config, grid = problem.config, problem.levels[-1].fixed.grid
    diffusion, bending_mm2 = state.weights or config.deformable.weights
    last = replace(
        config.deformable,
        lattice_mm=config.deformable.lattice_mm[-1:],
        iterations=(config.refine.iterations,),
        diffusion=diffusion,
        bending_mm2=bending_mm2,
    )
    start = None
    if state.displacement is not None:
        start = DisplacementField.from_transform(state.displacement, grid.padded(1))
    found = fit_freeform(problem.levels, state.linear, last, report, start)
    return _with_displacement(state, found), found.remark


def _fitted(problem: Problem, state: State, transform: sitk.Transform, report: Report) -> State:
    """A linear transform fitted at the coarsest level, then at the finest linear one."""
    levels = [problem.levels[0], problem.linear_level]
    for k, level in enumerate(levels):
        steps = 0

        def watch(value: float, k: int = k) -> None:
            nonlocal steps
            steps += 1
            report((k + steps / _LINEAR_ITERATIONS) / len(levels), value)

        metric = level.metric(LINEAR_POINTS, problem.config.seed)
        transform = fit(metric, transform, _LINEAR_ITERATIONS, watch)
    return _with_linear(state, affine_matrix(transform))


def _with_displacement(state: State, found: Deformation) -> State:
    return replace(state, displacement=found.transform, inverse=found.inverse, weights=found.weights)


def _with_linear(state: State, matrix: Points) -> State:
    return state if matrix is state.linear else replace(state, linear=matrix)


RUN: dict[Stage, StageFunction] = {
    "centre": _centre,
    "search": _search,
    "rigid": _rigid,
    "affine": _affine,
    "deformable": _deformable,
    "refine": _refine,
}
