"""24 smooth channels known at every point: nothing is resampled, the truth of a pair made of them is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dsir_metric.geometry import Grid
from dsir_metric.register.pair import Level
from dsir_metric.represent import Representation

Array = NDArray[np.float64]
Map = Callable[[Array], Array]

GRID = Grid((24, 22, 20), (4.0, 4.0, 4.0), (-46.0, -42.0, -38.0))


def channels(points: Array) -> NDArray[np.float32]:
    """24 waves in random directions, 30 to 70 mm long, at points (..., 3)."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((24, 3))
    direction *= 2 * np.pi / rng.uniform(30, 70, (24, 1)) / np.linalg.norm(direction, axis=1, keepdims=True)
    return np.sin(points @ direction.T + rng.uniform(0, 6, 24)).astype(np.float32)


def level(truth: Map = lambda x: x, **fields: object) -> Level:
    """A pair that `truth` aligns perfectly."""
    moving = GRID.padded(6)
    mask = GRID.image() + 1
    pair = Representation(channels(truth(GRID.points_mm())), GRID), Representation(channels(moving.points_mm()), moving)
    return Level(*pair, mask, **fields)  # type: ignore[arg-type]


def with_scans(pair: Level) -> Level:
    """The pair with scans of their own: one channel of many waves, inverted on the moving side."""
    sides = []
    for side, sign in ((pair.fixed, 1), (pair.moving, -1)):
        values = sign * side.values.sum(axis=-1, keepdims=True)
        sides.append(Representation(((values + 12) / 24).clip(0, 1).astype(np.float32), side.grid))
    return replace(pair, scans=(sides[0], sides[1]))
