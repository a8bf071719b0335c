"""Whether a pose is better than chance: its agreement against that of poses which are certainly wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dsir_metric.errors import RegistrationError
from dsir_metric.metric import CosineMetric
from dsir_metric.register.state import Points

__all__ = ["Margin", "margin"]

_POSES = 60  # their mean is known to a tenth of the margin that is asked for
_LEAST_DEG, _MOST_DEG = 40.0, 180.0  # descriptors of one anatomy hardly agree when it is turned by more than 40 degrees
_SHIFT = 0.2  # standard deviation of the shift of a wrong pose, in radii of gyration of the points
_LEAST_SHARE = 0.5  # a wrong pose must keep this share of the overlap to be compared
_LEAST_POSES = 10  # fewer wrong poses say nothing about chance
# Measured on 4 mm voxels: 0.58 to 0.8 for brains that are registered right, 0.5 for a thorax, 0.3 to 0.4 for slabs of
# two abdomens or of a neck; up to 0.38 for heads at a wrong pose, whose outlines agree; less than 0.28 for other wrong
# poses.
_CLEAR, _SURE = 0.3, 0.5


@dataclass(frozen=True)
class Margin:
    """Agreement at a pose, and at wrong ones.

    Parameters
    ----------
    agreement : float
        Mean cosine over the points that both scans show; 0 where there are none.
    chance : float or None
        The same at wrong poses, on average; None where too few of them overlap as much as the pose itself.
    shared : float
        Share of the points that both scans show, masks and all.
    """

    agreement: float
    chance: float | None
    shared: float

    @property
    def above(self) -> float | None:
        """How far the agreement lies above chance: 0 is chance, 1 is perfect agreement; None where it is unknown."""
        if self.chance is None:
            return None
        return (self.agreement - self.chance) / max(1.0 - self.chance, 1e-6)  # two constant images agree anywhere

    @property
    def clear(self) -> bool:
        """Whether the pose is clearly better than chance, as far as that is known; not where nothing overlaps."""
        return self.shared > 0 and (self.above is None or self.above >= _CLEAR)

    @property
    def sure(self) -> bool:
        """Whether the pose is so much better than chance that no other needs to be looked for."""
        return self.shared > 0 and (self.above is None or self.above >= _SURE)


def margin(metric: CosineMetric, places_mm: Points, seed: int) -> Margin:
    """Compare a pose with poses turned by 40 to 180 degrees about the middle of what both scans show.

    Parameters
    ----------
    metric : CosineMetric
    places_mm : ndarray, shape (n, 3)
        Where the pose takes each of `metric.points_mm`, LPS mm, before the metric's `moving_initial`.
    seed : int
        Of the wrong poses.
    """
    agreement, inside = _agreement(metric, places_mm)
    if not inside.any():
        return Margin(0.0, None, 0.0)
    rng = np.random.default_rng(seed)
    middle = places_mm[inside].mean(axis=0)
    away = places_mm - middle
    radius = float(np.sqrt(np.square(away[inside]).sum(axis=1).mean()))
    wrong = []
    for _ in range(_POSES):
        axis = rng.normal(size=3)
        turn = Rotation.from_rotvec(np.deg2rad(rng.uniform(_LEAST_DEG, _MOST_DEG)) * axis / np.linalg.norm(axis))
        found, seen = _agreement(metric, turn.apply(away) + middle + _SHIFT * radius * rng.normal(size=3))
        if seen.sum() >= _LEAST_SHARE * inside.sum():
            wrong.append(found)
    chance = float(np.mean(wrong)) if len(wrong) >= _LEAST_POSES else None
    return Margin(agreement, chance, float(inside.mean()))


def _agreement(metric: CosineMetric, places_mm: Points) -> tuple[float, NDArray[np.bool_]]:
    """Mean cosine over the points that count, and which those are."""
    try:
        value, cosine, _ = metric.at_points(places_mm)
    except RegistrationError:
        return 0.0, np.zeros(len(places_mm), bool)
    return -value, cosine != 0.0
