"""How well the labels of two images cover each other."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from dsir_metric.errors import GeometryError
from dsir_metric.geometry import Grid

__all__ = ["dice"]


def dice(fixed_labels: sitk.Image, moved_labels: sitk.Image) -> dict[int, float]:
    """Dice coefficient of each label.

    Parameters
    ----------
    fixed_labels, moved_labels : sitk.Image
        Integer 3-D images on the same grid; 0 is background.

    Returns
    -------
    dict
        2 |A and B| / (|A| + |B|) for every label that either image has.

    Raises
    ------
    GeometryError
        If the two grids differ.

    References
    ----------
    Dice, L. R. (1945). Measures of the amount of ecologic association between species. Ecology 26(3), 297-302.
    https://doi.org/10.2307/1932409
    """
    if not Grid.of(fixed_labels).matches(Grid.of(moved_labels)):
        raise GeometryError("the two label images lie on different grids; resample one onto the other first")
    a, b = (sitk.GetArrayViewFromImage(image).ravel() for image in (fixed_labels, moved_labels))
    labels = np.union1d(a, b)
    sizes = [dict(zip(*np.unique(v, return_counts=True), strict=True)) for v in (a, b, a[a == b])]
    in_a, in_b, in_both = ([s.get(label, 0) for label in labels] for s in sizes)
    return {
        int(label): float(2 * both / (one + other))
        for label, one, other, both in zip(labels, in_a, in_b, in_both, strict=True)
        if label != 0
    }
