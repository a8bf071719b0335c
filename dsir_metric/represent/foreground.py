"""Where in a scan there is something to compare."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric.errors import DataError
from dsir_metric.geometry import Grid, body_scale

__all__ = ["foreground"]

_MARGIN_MM = 4.0  # the outline of the anatomy is looked at from outside as well; of an adult, see `body_scale`


def foreground(image: sitk.Image, grid: Grid, name: str = "image") -> sitk.Image:
    """Where there is something to compare: the largest bright body of `image`, filled, 4 mm wider; on `grid`.

    The 4 mm are those of an adult patient, see `body_scale`.

    What a plane along the axes of `grid` shows enclosed is filled too: in a slab, a dark organ reaches its first or
    last slice and is open there.

    `name` begins the error message.

    Raises
    ------
    DataError
        If nothing in the image stands out.
    """
    low = float(sitk.GetArrayViewFromImage(image).min())
    coarse = sitk.Resample(
        image, grid.image(), sitk.Transform(grid.dimension, sitk.sitkIdentity), sitk.sitkLinear, low, sitk.sitkFloat32
    )
    values = sitk.GetArrayFromImage(coarse)
    floor, top = np.percentile(values, (0.5, 99))
    body = ndimage.binary_opening(values > floor + 0.08 * (top - floor))
    labels, count = ndimage.label(body)
    if count == 0:
        raise DataError(f"{name}: nothing stands out from the background; give a mask")
    if count > 1:
        body = labels == 1 + np.argmax(ndimage.sum_labels(body, labels, np.arange(1, count + 1)))
    steps = max(1, round(_MARGIN_MM * body_scale(grid) / min(grid.spacing_mm)))
    body = np.pad(body, steps + 1)
    body = _filled(ndimage.binary_closing(body, iterations=steps))
    body = ndimage.binary_dilation(body, iterations=steps)[(slice(steps + 1, -steps - 1),) * body.ndim]
    return grid.stamp(sitk.GetImageFromArray(body.astype(np.uint8)))


def _filled(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`body` without holes, in space or in any plane along the axes."""
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(body)
    if body.ndim == 3:
        for axis in range(3):
            within = ndimage.generate_binary_structure(3, 1)
            within.swapaxes(0, axis)[[0, 2]] = False  # neighbours in the plane alone
            filled |= ndimage.binary_fill_holes(body, within)
    return filled
