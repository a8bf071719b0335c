"""Where points of space lie in an image: their continuous index, and whether a mask has them."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.metric import kernel

__all__ = ["Mask", "to_index"]

Points = NDArray[np.float64]


class Mask:
    """Nearest-voxel test of points against a mask image of a dimension."""

    def __init__(self, image: sitk.Image, dimension: int = 3) -> None:
        if image.GetDimension() != dimension:
            raise ShapeError(
                f"a {dimension}-D mask is expected, as the images are; a {image.GetDimension()}-D one came"
            )
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise ShapeError(f"a mask has one number a voxel; {image.GetPixelIDTypeAsString()} came")
        grid = Grid.of(image)
        self._values = np.ascontiguousarray(sitk.GetArrayViewFromImage(image) != 0).reshape(grid.shape)
        self._index = to_index(grid)

    def restrict(self, points: Points, valid: NDArray[np.bool_]) -> None:
        """Let `valid` go false at points outside the mask."""
        kernel.keep_inside_mask(self._values, points, *self._index, valid)


def to_index(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix and offset from LPS mm to continuous index."""
    return grid.inverse_matrix, -grid.inverse_matrix @ np.array(grid.origin_mm)
