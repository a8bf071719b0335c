"""Views of random shapes, made here."""

from __future__ import annotations

import numpy as np

from dsir_metric_train.views.paint import Made, paint_both
from dsir_metric_train.views.placement import Views

__all__ = ["Shapes"]


class Shapes(Made):
    """Random shapes: the largest of several smooth random fields names the region of a voxel."""

    def draw(self, rng: np.random.Generator) -> Views:
        """New random shapes, painted twice."""
        _, warp = self.placement.draw(rng)
        count = int(rng.integers(4, 12)) + 1
        fields = self.placement.fields(rng, warp, count, int(rng.integers(7, 20)), self.paint.finer)
        detail = self.placement.fields(rng, warp, 1, int(rng.integers(16, 40)))[0]
        empty = rng.uniform() < 0.5

        def regions(view: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
            labels = np.argmax([pair[view] for pair in fields[1:]], axis=0).astype(np.int16) + 1
            return np.where(fields[0][view] < -0.2, 0, labels).astype(np.int16) if empty else labels

        return paint_both(rng, (regions(0), regions(1)), detail, self.paint, self.appearance, warp)
