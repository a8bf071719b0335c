"""Whether a stage may keep what it found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsir_metric.geometry import Grid
from dsir_metric.metric import CosineMetric
from dsir_metric.register.search import agreement

__all__ = ["Guard"]

_LEAST_SCALE, _MOST_SCALE = 0.5, 2.0
_LEAST_OVERLAP = 0.25


class Guard:
    """Judges a transform against the one before it, always on the same points.

    Parameters
    ----------
    metric : CosineMetric
        Its points are the foreground of the fixed image.
    moving : Grid
        Box of the moving image.
    margin : float
        How much better the mean cosine must be for a change to be worth keeping.
    """

    def __init__(self, metric: CosineMetric, moving: Grid, margin: float = 0.0) -> None:
        self.metric, self.moving, self.margin = metric, moving, margin

    @property
    def points_mm(self) -> NDArray[np.float64]:
        """Points of the fixed image the judgement rests on, (n, 3) LPS mm."""
        return self.metric.points_mm

    def score(self, mapped_mm: NDArray[np.float64]) -> float:
        """Mean cosine with the points at `mapped_mm`; points that left the moving image count 0."""
        return agreement(self.metric, mapped_mm)

    def overlap(self, mapped_mm: NDArray[np.float64]) -> float:
        """Share of the points that fall inside the box of the moving image."""
        index = self.moving.to_index(mapped_mm)
        inside = (index >= -0.5) & (index < np.asarray(self.moving.size) - 0.5)
        return float(inside.all(axis=1).mean())

    def objection(
        self, before_mm: NDArray[np.float64], after_mm: NDArray[np.float64], linear: NDArray[np.float64]
    ) -> str | None:
        """Why the change from `before_mm` to `after_mm` must be undone, or None.

        Parameters
        ----------
        before_mm, after_mm : ndarray, shape (n, 3)
            The points under the transform before and after the stage.
        linear : ndarray, shape (4, 4)
            Linear part after the stage.
        """
        if not np.all(np.isfinite(after_mm)):
            return "it is not finite"
        if np.linalg.det(linear[:3, :3]) <= 0:
            return "it mirrors the image"
        scales = np.linalg.svd(linear[:3, :3], compute_uv=False)
        if scales.min() < _LEAST_SCALE or scales.max() > _MOST_SCALE:
            return f"it scales by {scales.min():.2f} to {scales.max():.2f}"
        was, now = self.overlap(before_mm), self.overlap(after_mm)
        if now < _LEAST_OVERLAP and now < was:
            return f"the overlap falls from {100 * was:.0f} % to {100 * now:.0f} %"
        worse, better = self.score(before_mm), self.score(after_mm)
        if better < worse + self.margin:
            return f"the metric does not improve (mean cosine {worse:.4f} before, {better:.4f} after)"
        return None
