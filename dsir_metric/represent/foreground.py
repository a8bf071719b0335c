"""Where in a scan there is something to compare."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric.errors import DataError
from dsir_metric.geometry import Grid, body_scale

__all__ = ["foreground", "outlined"]

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
    bright = _bright(image, grid)
    labels, count = ndimage.label(bright)
    if count == 0:
        raise DataError(f"{name}: nothing stands out from the background; give a mask")
    if count > 1:
        bright = labels == 1 + np.argmax(ndimage.sum_labels(bright, labels, np.arange(1, count + 1)))
    return _mask(_widened(_body(bright, grid), _margin(grid)), grid)


def outlined(mask: sitk.Image, image: sitk.Image) -> sitk.Image:
    """Correct a mask around anatomy so that the outline of the anatomy counts as `foreground` sees it.

    Air up to 4 mm from what is bright is added where the mask is near, since an outline is seen from outside as well.
    Air farther away is removed, since it agrees with any other air. Bright voxels outside the mask stay out.

    Parameters
    ----------
    mask : sitk.Image
        uint8, not 0 where it counts.
    image : sitk.Image
        Scan that it belongs to, on any grid.

    Returns
    -------
    sitk.Image
        uint8, 0 or 1, on the grid of `mask`. A mask with nothing bright in it is returned as it is.
    """
    grid = Grid.of(mask)
    margin, inside = _margin(grid), sitk.GetArrayFromImage(mask) != 0
    body = _body(_bright(image, grid), grid)
    if not (body & inside).any():
        return mask
    near = _widened(body, margin)
    return _mask((inside & near) | (near & ~body & _widened(inside, 2 * margin)), grid)


def _bright(image: sitk.Image, grid: Grid) -> NDArray[np.bool_]:
    """What stands out from the background."""
    low = float(sitk.GetArrayViewFromImage(image).min())
    coarse = sitk.Resample(
        image, grid.image(), sitk.Transform(grid.dimension, sitk.sitkIdentity), sitk.sitkLinear, low, sitk.sitkFloat32
    )
    values = sitk.GetArrayFromImage(coarse)
    floor, top = np.percentile(values, (0.5, 99))
    bright: NDArray[np.bool_] = ndimage.binary_opening(values > floor + 0.08 * (top - floor))
    return bright


def _margin(grid: Grid) -> int:
    """Voxels."""
    return max(1, round(_MARGIN_MM * body_scale(grid) / min(grid.spacing_mm)))


def _body(bright: NDArray[np.bool_], grid: Grid) -> NDArray[np.bool_]:
    """Close gaps up to the margin and fill holes."""
    margin = _margin(grid)
    body = _filled(ndimage.binary_closing(np.pad(bright, margin + 1), iterations=margin))
    return body[(slice(margin + 1, -margin - 1),) * body.ndim]


def _widened(body: NDArray[np.bool_], voxels: int) -> NDArray[np.bool_]:
    wide: NDArray[np.bool_] = ndimage.binary_dilation(body, iterations=voxels)
    return wide


def _mask(inside: NDArray[np.bool_], grid: Grid) -> sitk.Image:
    return grid.stamp(sitk.GetImageFromArray(inside.astype(np.uint8)))


def _filled(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`body` without holes, in space or in any plane along the axes."""
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(body)
    if body.ndim == 3:
        for axis in range(3):
            within = ndimage.generate_binary_structure(3, 1)
            within.swapaxes(0, axis)[[0, 2]] = False  # neighbours in the plane alone
            filled |= ndimage.binary_fill_holes(body, within)
    return filled
