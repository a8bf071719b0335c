"""Centring and coarse search: bring two images near enough for an optimiser to take over."""

from __future__ import annotations

from itertools import product

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.metric import CosineMetric
from dsir_metric.register.config import SearchConfig
from dsir_metric.register.linear import affine_matrix, as_rigid, fit
from dsir_metric.register.pair import Level

__all__ = ["agreement", "centre", "search"]

Matrix = NDArray[np.float64]


def agreement(metric: CosineMetric, mapped_mm: NDArray[np.float64]) -> float:
    """Mean cosine over all sample points, in which one that leaves the moving image or its mask counts 0."""
    return float(metric.agreements(mapped_mm[None])[0])


def mapped(matrix: Matrix, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 3) under a 4 x 4 matrix."""
    return points_mm @ matrix[:3, :3].T + matrix[:3, 3]


def middle(mask: sitk.Image) -> NDArray[np.float64]:
    """Centroid of a mask, LPS mm."""
    z, y, x = (k.mean() for k in np.nonzero(sitk.GetArrayViewFromImage(mask)))
    return np.array(mask.TransformContinuousIndexToPhysicalPoint((float(x), float(y), float(z))))


def centre(level: Level, metric: CosineMetric, start: Matrix, moving_body: sitk.Image) -> Matrix:
    """The best of `start` and of the two shifts that bring image centres or foreground centroids together.

    The images stay where they are unless a shift agrees clearly better, so that a good header is not spoilt.
    """
    best, score = start, agreement(metric, mapped(start, metric.points_mm)) + 0.02
    pairs = (
        (level.fixed.grid.centre_mm, level.moving.grid.centre_mm),
        (middle(level.fixed_mask), middle(moving_body)),
    )
    for here, there in pairs:
        candidate = start.copy()
        candidate[:3, 3] += there - mapped(start, here)
        value = agreement(metric, mapped(candidate, metric.points_mm))
        if value > score:
            best, score = candidate, value
    return best


def search(level: Level, metric: CosineMetric, start: Matrix, config: SearchConfig) -> Matrix:
    """Rigid 4 x 4 matrix with the best agreement among a lattice of rotations and translations about `start`.

    Every candidate is judged on the metric's points; the best few, apart from one another, are refined by a rigid fit.
    """
    pivot = middle(level.fixed_mask)
    points = metric.points_mm
    turns = _lattice(config.rotation_deg, config.rotation_step_deg)
    shifts = _lattice(config.translation_mm, config.translation_step_mm)
    offsets = np.array(list(product(shifts, repeat=3)))
    scored: list[tuple[float, Matrix]] = []
    for angles in product(turns, repeat=3):
        turn = sitk.Euler3DTransform(pivot.tolist(), *np.deg2rad(angles).tolist())
        turned = start @ affine_matrix(turn)
        candidates = np.tile(turned, (len(offsets), 1, 1))
        candidates[:, :3, 3] += offsets
        values = metric.agreements(mapped(turned, points) + offsets[:, None])
        scored += zip(values.tolist(), candidates, strict=True)
    best, score = start, agreement(metric, mapped(start, points))
    for matrix in _apart(scored, points, config):
        refined = affine_matrix(fit(metric, as_rigid(matrix, pivot), 30)[0])
        value = agreement(metric, mapped(refined, points))
        if value > score:
            best, score = refined, value
    return best


def _lattice(half: float, step: float) -> NDArray[np.float64]:
    count = int(half / step + 1e-9)
    return np.arange(-count, count + 1) * step


def _apart(scored: list[tuple[float, Matrix]], points: NDArray[np.float64], config: SearchConfig) -> list[Matrix]:
    """The best candidates that differ from each better one by more than a translation step on average."""
    kept: list[NDArray[np.float64]] = []
    matrices: list[Matrix] = []
    few = points[:: max(1, len(points) // 50)]
    for _, matrix in sorted(scored, key=lambda pair: -pair[0]):
        moved = mapped(matrix, few)
        if all(np.linalg.norm(moved - k, axis=1).mean() > config.translation_step_mm for k in kept):
            kept.append(moved)
            matrices.append(matrix)
        if len(matrices) == config.candidates:
            break
    return matrices
