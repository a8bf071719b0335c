"""Deformable stage: free-form deformation under the DNS cosine metric, coarse to fine, fold-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize

from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.register.config import DeformableConfig
from dsir_metric.register.freeform import FreeForm
from dsir_metric.register.pair import Level
from dsir_metric.register.problem import Deformation, Problem, Report
from dsir_metric.register.state import mapped

__all__ = ["deform", "descended", "fit_freeform", "unfold"]

Array = NDArray[np.float64]


def deform(problem: Problem, linear: Array, report: Report) -> Deformation:
    """See `Deform`."""
    return fit_freeform(problem.levels, linear, problem.config.deformable, report)


def fit_freeform(
    levels: list[Level],
    linear: Array,
    config: DeformableConfig,
    on_iteration: Callable[[float, float], None],
    start: DisplacementField | None = None,
) -> Deformation:
    """Displacement u such that x -> linear(x + u(x)) aligns the pair.

    Parameters
    ----------
    levels : list of Level
        Coarse to fine; the last ones are used, one a lattice of `config`, the finest for the last.
    linear : ndarray, shape (4, 4)
        Fixed to moving, LPS mm, kept as it is.
    config : DeformableConfig
    on_iteration : callable
        Receives the finished fraction of the stage and the metric.
    start : DisplacementField, optional
        u to begin with, along the axes of the levels; none by default.

    Returns
    -------
    Deformation
        A `sitk.BSplineTransform`; the remark says what had to be smoothed against folding.
    """
    finest = levels[-1].fixed.grid
    domain = finest.padded(1)  # the box of the working grid may be a fraction of a voxel smaller than the image's
    freeform = FreeForm(domain, config.lattice_mm[0])
    coefficients = np.zeros(freeform.shape) if start is None else freeform.approximate(start)
    remarks, weighted = [], config
    count = len(config.lattice_mm)
    for k, lattice_mm in enumerate(config.lattice_mm):
        level = levels[max(0, len(levels) - count + k)]
        finer = FreeForm(domain, lattice_mm)
        if config.adaptive and 0 < k == count - 1:
            diffusion, bending_mm2 = freeform.adapted(coefficients, *config.weights)
            weighted = replace(config, diffusion=diffusion, bending_mm2=bending_mm2)
        coarse, freeform = freeform.refine(coefficients, finer), finer

        def report(step: int, value: float, k: int = k) -> None:
            on_iteration((k + min(step / config.iterations[k], 1.0)) / count, value)

        coefficients = _level(level, linear, freeform, coarse, weighted, config.iterations[k], report)
        coefficients, rounds = unfold(freeform, coefficients, finest, config.smallest_jacobian)
        if rounds:
            remarks.append(f"lattice {k + 1} of {count} was smoothed where it folded, in {rounds} rounds")
    return Deformation(freeform.to_transform(coefficients), "; ".join(remarks), weights=weighted.weights)


def _level(
    level: Level,
    linear: Array,
    freeform: FreeForm,
    start: Array,
    config: DeformableConfig,
    iterations: int,
    report: Callable[[int, float], None],
) -> Array:
    """Minimise metric + smoothness on one level by L-BFGS-B."""
    metric = level.metric()
    inside = sitk.GetArrayViewFromImage(level.fixed_mask) != 0
    box = ndimage.find_objects(inside.astype(np.uint8))[0]  # nothing outside the mask needs to be evaluated
    rows = np.flatnonzero(inside[box])
    bases = [basis[cut].astype(np.float32) for basis, cut in zip(freeform.bases(level.fixed.grid), box, strict=True)]
    points = metric.points_mm
    turn = linear[:3, :3]
    scans = level.information() if config.information > 0 else None

    def loss(coefficients: Array) -> tuple[float, Array]:
        u = freeform.evaluate(coefficients.astype(np.float32), bases)  # to 1e-6 mm, in half the time
        places = mapped(linear, points + u.reshape(3, -1)[:, rows].T)
        value, _, gradient = metric.at_points(places)
        gradient /= -metric.valid_points
        if scans is not None:
            bits, slopes = scans.at_points(places)
            value, gradient = value + config.information * bits, gradient + config.information * slopes
        u[:] = 0.0
        u.reshape(3, -1)[:, rows] = (gradient @ turn).T
        penalty, slope = freeform.smoothness(coefficients, config.diffusion, config.bending_mm2)
        return value + penalty, freeform.transpose(u, bases) + slope

    return descended(loss, start, iterations, report)


def descended(
    loss: Callable[[Array], tuple[float, Array]], start: Array, iterations: int, report: Callable[[int, float], None]
) -> Array:
    """Coefficients from which L-BFGS-B can go no further down.

    Parameters
    ----------
    loss : callable
        Value and derivative, in the shape of the coefficients.
    start : ndarray of float64, any shape
    iterations : int
        At most.
    report : callable
        Receives the number of iterations so far and the loss.

    Returns
    -------
    ndarray of float64, shape of `start`
    """
    steps, held = 0, [loss]

    def flat_loss(flat: Array) -> tuple[float, Array]:
        value, gradient = held[0](flat.reshape(start.shape))
        return value, gradient.ravel()

    def callback(intermediate_result: object) -> None:
        nonlocal steps
        steps += 1
        report(steps, float(intermediate_result.fun))  # type: ignore[attr-defined]

    options = {"maxiter": iterations, "ftol": 2e-6, "gtol": 0.0, "maxcor": 8}
    try:
        best = minimize(flat_loss, start.ravel(), jac=True, method="L-BFGS-B", options=options, callback=callback)
    finally:
        held.clear()  # the loss holds images, and SciPy may hold `flat_loss` in a reference cycle
    return np.asarray(best.x).reshape(start.shape)


def unfold(freeform: FreeForm, coefficients: Array, grid: Grid, smallest: float) -> tuple[Array, int]:
    """Smooth a displacement around every voxel of `grid` whose Jacobian determinant is below `smallest`.

    Each round blends the coefficients that reach such a voxel with their Gaussian average, in an ever wider
    neighbourhood, so that it ends: an entirely smoothed lattice does not fold.

    Returns
    -------
    coefficients : ndarray
        As they came where nothing folds.
    rounds : int
        How many rounds it took, 0 where nothing folds.
    """
    bases = freeform.bases(grid)
    rounds = 0
    while True:
        field = DisplacementField(np.moveaxis(freeform.evaluate(coefficients, bases), 0, -1), grid)
        bad = field.jacobian_determinant() < smallest
        if not bad.any():
            return coefficients, rounds
        rounds += 1
        reached = freeform.transpose(bad[None].astype(float), bases)[0] > 1e-3
        share = ndimage.gaussian_filter(ndimage.binary_dilation(reached, iterations=rounds).astype(float), 1.0)
        smooth = ndimage.gaussian_filter(coefficients, (0.0, 1.0, 1.0, 1.0), mode="nearest")
        coefficients = coefficients + np.minimum(share, 1.0) * (smooth - coefficients)
