"""Centring and coarse search: bring two images near enough for an optimiser to take over."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.metric import CosineMetric
from dsir_metric.register.config import SearchConfig
from dsir_metric.register.linear import affine_matrix, as_rigid, fit
from dsir_metric.register.pair import Level
from dsir_metric.register.state import Matrix, Points, mapped

__all__ = ["centred", "middle", "searched"]

_REFINEMENTS = 30  # iterations of the fit from each chosen candidate
_CLEARLY = 0.02  # gain in mean cosine that is worth leaving the given header for


def middle(mask: sitk.Image) -> Points:
    """Centroid of a mask, LPS mm."""
    z, y, x = (k.mean() for k in np.nonzero(sitk.GetArrayViewFromImage(mask)))
    return np.array(mask.TransformContinuousIndexToPhysicalPoint((float(x), float(y), float(z))))


def centred(level: Level, metric: CosineMetric, start: Matrix, pivot_mm: Points, moving_body: sitk.Image) -> Matrix:
    """The best of `start` and of the two shifts that bring image centres or foreground centroids together.

    The images stay where they are unless a shift agrees clearly better, so that a good header is not spoilt.
    """
    candidates = [start]
    for here, there in ((level.fixed.grid.centre_mm, level.moving.grid.centre_mm), (pivot_mm, middle(moving_body))):
        shifted = start.copy()
        shifted[:3, 3] += there - mapped(start, here)
        candidates.append(shifted)
    values = _agreements(metric, candidates)
    values[0] += _CLEARLY
    return candidates[int(np.argmax(values))]


def searched(
    level: Level,
    start: Matrix,
    pivot_mm: Points,
    config: SearchConfig,
    seed: int,
    report: Callable[[float, float], None],
) -> Matrix:
    """Rigid 4 x 4 matrix with the best agreement among a lattice of rotations and translations about `start`.

    Every candidate is judged on a few points. The best, apart from one another, are refined by a rigid fit, and so is
    `start`, from which only a clearly better one leads away (`SearchConfig.significance`).
    """
    metric = level.metric(config.points, seed)
    points = metric.points_mm
    reach_mm = min(config.translation_mm, 0.25 * float(level.fixed.grid.extent_mm.min()))
    step_mm = reach_mm / config.translation_steps
    turns = list(product(_lattice(config.rotation_deg, config.rotation_step_deg), repeat=3))
    shifts = np.array(list(product(_lattice(reach_mm, step_mm), repeat=3)))
    values, matrices = np.empty((len(turns), len(shifts))), []
    for k, angles in enumerate(turns):
        turn = sitk.Euler3DTransform(pivot_mm.tolist(), *np.deg2rad(angles).tolist())
        matrices.append(start @ affine_matrix(turn))
        values[k] = metric.agreements(mapped(matrices[-1], points) + shifts[:, None])
        report((k + 1) / len(turns), -float(values[: k + 1].max()))
    chosen = [start, *_apart(values, matrices, shifts, points, step_mm, config.candidates)]
    refined = [affine_matrix(fit(metric, as_rigid(m, pivot_mm), _REFINEMENTS)) for m in chosen]
    scores = _agreements(metric, refined)
    scores[0] += config.significance * values.std()
    return refined[int(np.argmax(scores))]


def _agreements(metric: CosineMetric, matrices: list[Matrix]) -> NDArray[np.float64]:
    return metric.agreements(np.stack([mapped(m, metric.points_mm) for m in matrices]))


def _lattice(half: float, step: float) -> NDArray[np.float64]:
    count = int(half / step + 1e-9)
    return np.arange(-count, count + 1, dtype=float) * step


def _apart(
    values: NDArray[np.float64],
    matrices: list[Matrix],
    shifts: NDArray[np.float64],
    points: Points,
    apart_mm: float,
    count: int,
) -> list[Matrix]:
    """The best `count` candidates whose points lie more than `apart_mm` from those of each better one on average."""
    kept: list[Points] = []
    chosen: list[Matrix] = []
    few = points[:: max(1, len(points) // 50)]
    for flat in np.argsort(-values, axis=None, kind="stable"):
        turn, shift = divmod(int(flat), len(shifts))
        moved = mapped(matrices[turn], few) + shifts[shift]
        if all(np.linalg.norm(moved - k, axis=1).mean() > apart_mm for k in kept):
            kept.append(moved)
            candidate = matrices[turn].copy()
            candidate[:3, 3] += shifts[shift]
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen
