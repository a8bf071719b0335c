"""Whether a stage may keep what it found."""

from __future__ import annotations

import numpy as np

from dsir_metric.metric.transforms import point_map
from dsir_metric.register.chance import Margin, margin
from dsir_metric.register.pair import Level
from dsir_metric.register.state import Points, State

__all__ = ["Guard", "scans_objection"]

_LEAST_SCALE, _MOST_SCALE = 0.6, 1.6
_LEAST_OVERLAP = 0.25
_FEW_POINTS = 3000  # enough to tell a pose from chance
_LEAST_TOLD = 0.98  # of normalised mutual information - 1


class Guard:
    """Judges states, always on the same points of the fixed image.

    Parameters
    ----------
    level : Level
    points : int
        Foreground points to judge on.
    seed : int
        Of their choice.
    """

    def __init__(self, level: Level, points: int, seed: int) -> None:
        self._metric = level.metric(points, seed)
        self._few, self._seed = level.metric(_FEW_POINTS, seed), seed
        self._moving, self._after = level.moving.grid, level.after

    def score(self, state: State) -> float:
        """Mean cosine; a point that leaves the moving image or its mask counts 0, so that leaving never pays."""
        return float(self._metric.agreements(self._points(state)[None])[0])

    def margin(self, state: State) -> Margin:
        """Agreement over the points that both scans show, against chance."""
        return margin(self._few, state.map(self._few.points_mm), self._seed)

    def overlap(self, state: State) -> float:
        """Share of the points that fall inside the box of the moving image."""
        places = self._points(state)
        index = self._moving.to_index(places if self._after is None else point_map(self._after).map(places))
        inside = (index >= -0.5) & (index < np.asarray(self._moving.size) - 0.5)
        return float(inside.all(axis=1).mean())

    def objection(self, before: State, after: State, *, must_improve: bool = True) -> str | None:
        """Why the step from one state to the next must be undone, or None.

        A stage that looked at another metric need not improve the cosine.
        """
        linear = after.linear[:3, :3]
        if not np.all(np.isfinite(self._points(after))):
            return "it is not finite"
        if np.linalg.det(linear) <= 0:
            return "it mirrors the image"
        scales = np.linalg.svd(linear, compute_uv=False)
        if scales.min() < _LEAST_SCALE or scales.max() > _MOST_SCALE:
            return f"it scales by {scales.min():.2f} to {scales.max():.2f}"
        was, now = self.overlap(before), self.overlap(after)
        if now < _LEAST_OVERLAP and now < was:
            return f"the overlap falls from {100 * was:.0f} % to {100 * now:.0f} %"
        old, new = self.score(before), self.score(after)
        if must_improve and new < old:
            return f"the metric does not improve (mean cosine {old:.4f} before, {new:.4f} after)"
        return None

    def _points(self, state: State) -> Points:
        return state.map(self._metric.points_mm)


def scans_objection(level: Level, before: State, after: State) -> str | None:
    """Why the scans of a level themselves, descriptors apart, want a step undone, or None; None without scans."""
    information, points = level.information(), level.points_mm
    if information is None:
        return None
    old, new = (-information.at_points(state.map(points))[0] for state in (before, after))
    if new - 1 < _LEAST_TOLD * (old - 1):
        return f"the scans tell less of each other (mutual information {old:.4f} before, {new:.4f} after)"
    return None
