"""Views of random bodies: layers, organs, bones, vessels and folded sheets, made here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsir_metric_train.views.paint import Made, paint_both
from dsir_metric_train.views.placement import Views, Volume

__all__ = ["Bodies"]

Labels = NDArray[np.int16]


class Bodies(Made):
    """Random bodies. Lengths are in edges of the crop, so that a crop shows a whole body or a piece of an organ."""

    def draw(self, rng: np.random.Generator) -> Views:
        """A new random body, painted twice."""
        _, warp = self.placement.draw(rng)
        finer = self.paint.finer
        bend = self.placement.fields(rng, warp, 3, int(rng.integers(5, 10)), finer)
        fold = self.placement.fields(rng, warp, 1, int(rng.integers(7, 14)), finer)[0]
        detail = self.placement.fields(rng, warp, 1, int(rng.integers(16, 40)))[0]
        amount = np.float32(rng.uniform(0.02, 0.12))
        seed = int(rng.integers(2**31))
        labels = []
        for view, at in enumerate(self.placement.coordinates(warp, finer)):
            bent = at + amount * np.stack([pair[view] for pair in bend])
            labels.append(_body(np.random.default_rng(seed), bent, fold[view]))
        return paint_both(rng, (labels[0], labels[1]), detail, self.paint, self.appearance, warp)


def _body(rng: np.random.Generator, at: Volume, fold: Volume) -> Labels:
    """Labels at the points `at` (3, z, y, x); the same generator state makes the same body at any points."""
    labels = _trunk(rng, at)
    for k in range(int(rng.integers(6, 20))):
        _organ(rng, at, fold, labels, 8 + 2 * k)
    for _ in range(int(rng.integers(0, 4))):  # bones: a shell around marrow
        distance, radius = _tube(rng, at, 1), rng.uniform(0.04, 0.12)
        _set(labels, distance < radius, 4)
        _set(labels, distance < rng.uniform(0.4, 0.8) * radius, 5)
    for _ in range(int(rng.integers(0, 5))):  # vessels, arteries and veins
        _set(labels, _tube(rng, at, 5) < rng.uniform(0.015, 0.05), int(rng.integers(6, 8)))
    return labels


def _trunk(rng: np.random.Generator, at: Volume) -> Labels:
    """Background 0, skin and fat 1, muscle 2, inside 3."""
    size = np.exp(rng.uniform(np.log(0.35), np.log(3.0)))
    middle = rng.uniform(-0.8, 0.8, 3) * size
    depth = size * (1 - _radius(rng, at, middle, (0.7 * size, 1.3 * size)))
    fat, muscle = rng.uniform(0.02, 0.12, 2)
    labels: Labels = sum(depth > d for d in (0, fat, fat + muscle)).astype(np.int16)
    return labels


def _organ(rng: np.random.Generator, at: Volume, fold: Volume, labels: Labels, value: int) -> None:
    """An ellipsoid, now and then hollow, or filled by the sheets of a folded field."""
    radius = _radius(rng, at, rng.uniform(-0.7, 0.7, 3), (0.06, 0.4))
    _set(labels, radius < 1, value)
    kind = rng.uniform()
    if kind < 0.3:
        _set(labels, radius < rng.uniform(0.5, 0.9), value + 1)
    elif kind < 0.5:
        _set(labels, (radius < 0.95) & (np.abs(fold) < rng.uniform(0.1, 0.3)), value + 1)


def _set(labels: Labels, where: NDArray[np.bool_], value: int) -> None:
    labels[where & (labels > 0)] = value


def _radius(
    rng: np.random.Generator, at: Volume, middle: NDArray[np.floating], semi_axes: tuple[float, float]
) -> Volume:
    """Distance from `middle`, 1 on the surface of a randomly turned ellipsoid with semi-axes drawn in a range."""
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    low, high = np.log(semi_axes)
    shape = (turn / np.exp(rng.uniform(low, high, 3))[:, None]).astype(np.float32)
    offset = at - middle.astype(np.float32)[:, None, None, None]
    return np.asarray(np.linalg.norm(np.tensordot(shape, offset, 1), axis=0))


def _tube(rng: np.random.Generator, at: Volume, segments: int) -> Volume:
    """Distance to a random chain of line segments."""
    start, heading = rng.uniform(-0.7, 0.7, 3), rng.standard_normal(3)
    nearest = np.full(at.shape[1:], np.inf, np.float32)
    for _ in range(segments):
        heading = heading / np.linalg.norm(heading) + 0.5 * rng.standard_normal(3)
        span = (heading / np.linalg.norm(heading) * rng.uniform(0.2, 0.7)).astype(np.float32)
        offset = at - start.astype(np.float32)[:, None, None, None]
        along = np.clip(np.tensordot(span, offset, 1) / (span @ span), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(offset - span[:, None, None, None] * along, axis=0))
        start = start + span
    return nearest
