"""Views of label maps painted at random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import DataError
from dsir_metric.io import read_labels
from dsir_metric_train.views.appearance import Appearance
from dsir_metric_train.views.paint import Paint, paint_both
from dsir_metric_train.views.placement import Placement, Views, inside
from dsir_metric_train.views.scans import check_volume, isotropic

__all__ = ["LabelMaps"]

_LARGEST = np.iinfo(np.int16).max


class LabelMaps:
    """Label maps painted twice with random intensities: geometry shared, contrast not even monotone.

    Parameters
    ----------
    files : sequence of Path
        Integer 3-D label maps; 0 is background.
    placement : Placement
    paint : Paint
    appearance : Appearance
    strip_above : int
        Labels at or above this value (skull, skin) are removed in half of the draws; 0 never removes any.

    Raises
    ------
    DataError, ShapeError, GeometryError
        If a file is none that `read_labels` takes, is smaller than a crop, or holds no label.
    """

    def __init__(
        self, files: Sequence[Path], placement: Placement, paint: Paint, appearance: Appearance, strip_above: int = 0
    ) -> None:
        self.placement, self.paint, self.appearance, self.strip_above = placement, paint, appearance, strip_above
        self.maps = [_read(file, placement) for file in files]

    def draw(self, rng: np.random.Generator) -> Views:
        """A random crop of a random map, painted twice."""
        labels = self.maps[int(rng.integers(len(self.maps)))]
        matrix, warp = self.placement.draw(rng)
        first, second = self.placement.cut_both(labels, inside(rng, labels), matrix, warp, 0, self.paint.finer)
        if self.strip_above and rng.uniform() < 0.5:
            first, second = (np.where(c >= self.strip_above, 0, c) for c in (first, second))
        detail = self.placement.fields(rng, warp, 1, int(rng.integers(16, 40)))[0]
        return paint_both(rng, (first, second), detail, self.paint, self.appearance, warp)


def _read(file: Path, placement: Placement) -> NDArray[np.int16]:
    """A label map at 1 mm, (z, y, x)."""
    labels = isotropic(read_labels(file), 1.0, labels=True)
    largest = max(labels.max().item(), -labels.min().item())
    if largest > _LARGEST:
        raise DataError(f"{file}: has the label {largest:.0f}; {_LARGEST} is the largest: renumber them")
    check_volume(labels, placement, file)
    return labels.astype(np.int16)
