"""Views of random shapes, made here."""

from __future__ import annotations

import numpy as np

from dsir_metric_train.views.appearance import Appearance
from dsir_metric_train.views.paint import paint_both
from dsir_metric_train.views.placement import Placement, Views

__all__ = ["Shapes"]


class Shapes:
    """Random shapes: the largest of several smooth random fields names the region of a voxel.

    Parameters
    ----------
    placement : Placement
        Only the crop and the warp between the views are used.
    appearance : Appearance
    """

    def __init__(self, placement: Placement, appearance: Appearance) -> None:
        self.placement, self.appearance = placement, appearance

    def draw(self, rng: np.random.Generator) -> Views:
        """New random shapes, painted twice."""
        _, warp = self.placement.draw(rng)
        nodes = int(rng.integers(7, 20))
        step = np.eye(3) * (nodes - 1) / (1.6 * self.placement.crop)
        middle = np.full(3, (nodes - 1) / 2)
        count = int(rng.integers(4, 12)) + 1
        fields = rng.uniform(-1, 1, (count, nodes, nodes, nodes)).astype(np.float32)
        pairs = [self.placement.cut_both(f, middle, step, warp, order=1) for f in fields]
        empty = rng.uniform() < 0.5
        crops = []
        for view in (0, 1):
            labels = np.argmax([pair[view] for pair in pairs[1:]], axis=0).astype(np.int16) + 1
            crops.append(np.where(pairs[0][view] < -0.2, 0, labels).astype(np.int16) if empty else labels)
        return paint_both(rng, crops[0], crops[1], self.appearance, warp)
