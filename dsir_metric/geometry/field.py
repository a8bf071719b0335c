"""A displacement for every voxel of a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import GeometryError, ShapeError
from dsir_metric.geometry.grid import Grid

__all__ = ["DisplacementField", "jacobian_statistics"]

_SLAB_VOXELS = 1 << 19


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """u of phi(x) = x + u(x), which maps fixed points to moving points.

    Parameters
    ----------
    values : ndarray of float64, shape (z, y, x, 3)
        Displacement at each voxel centre; components x, y, z in LPS mm.
    grid : Grid
        Where the voxels lie.

    Raises
    ------
    ShapeError
        If `values` does not fit `grid`.
    """

    values: NDArray[np.float64]
    grid: Grid

    def __post_init__(self) -> None:
        if self.values.shape != (*self.grid.shape, 3):
            raise ShapeError(
                f"a displacement field of shape {(*self.grid.shape, 3)} is expected; {self.values.shape} came"
            )

    @classmethod
    def from_transform(cls, transform: sitk.Transform, grid: Grid) -> DisplacementField:
        """Sample any 3-D transform at the voxel centres of `grid`."""
        image = sitk.TransformToDisplacementField(
            transform, sitk.sitkVectorFloat64, grid.size, grid.origin_mm, grid.spacing_mm, grid.direction
        )
        return cls(sitk.GetArrayFromImage(image), grid)

    @classmethod
    def from_voxels(cls, values: NDArray[np.floating[Any]], grid: Grid) -> DisplacementField:
        """Displacements (3, z, y, x), components x, y, z, in voxels along the axes of `grid`."""
        return cls(np.moveaxis(values, 0, -1).astype(np.float64) @ grid.matrix.T, grid)

    def padded(self, margin_vox: int) -> DisplacementField:
        """The field with `margin_vox` more voxels on each side, edge values repeated."""
        margin = (margin_vox, margin_vox)
        return DisplacementField(
            np.pad(self.values, (margin, margin, margin, (0, 0)), mode="edge"), self.grid.padded(margin_vox)
        )

    def to_transform(self) -> sitk.DisplacementFieldTransform:
        """A transform that interpolates these displacements linearly and is the identity outside the grid."""
        values = np.ascontiguousarray(self.values, np.float64)
        return sitk.DisplacementFieldTransform(self.grid.stamp(sitk.GetImageFromArray(values, isVector=True)))

    def length_mm(self) -> NDArray[np.float64]:
        """Length of each displacement, (z, y, x), in mm."""
        lengths: NDArray[np.float64] = np.linalg.norm(self.values, axis=-1)
        return lengths

    def jacobian_determinant(self) -> NDArray[np.float64]:
        """Determinant of d phi / d x at each voxel, (z, y, x): 1 keeps the volume, 0 or less folds.

        Central differences, one-sided at the border; an axis of length 1 counts as constant.
        """
        determinant = np.empty(self.grid.shape)
        for source, core, inner in _slabs(self.grid.shape):
            determinant[core] = self._slab_determinant(self.values[source])[inner]
        return determinant

    def _slab_determinant(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        axes = np.reshape(self.grid.direction, (3, 3))
        along = []  # d phi / d (index axis in mm): the derivative of u plus the axis itself
        for column, (axis, spacing) in enumerate(zip((2, 1, 0), self.grid.spacing_mm, strict=True)):
            moves = values.shape[axis] > 1
            along.append(
                [
                    (np.gradient(values[..., k], spacing, axis=axis) if moves else 0.0) + axes[k, column]
                    for k in range(3)
                ]
            )
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = along
        volume = ax * (by * cz - bz * cy) - bx * (ay * cz - az * cy) + cx * (ay * bz - az * by)
        return np.broadcast_to(volume * np.linalg.det(axes), values.shape[:3])

    def jacobian_statistics(self, mask: NDArray[np.bool_] | None = None) -> dict[str, float]:
        """Figures that tell a plausible deformation from a broken one.

        Parameters
        ----------
        mask : ndarray of bool, shape (z, y, x), optional
            Voxels that count; all by default.

        Returns
        -------
        dict
            `folded_percent` (determinant 0 or less), `min`, `p01`, `median`, `p99`, `max`, `mean`, and `sd_log`, the
            standard deviation of the logarithm of the determinant clipped to [0.001, 1000].

        Raises
        ------
        ShapeError
            If the mask has another shape.
        GeometryError
            If no voxel of the mask is set.
        """
        determinant = self.jacobian_determinant()
        if mask is not None and mask.shape != determinant.shape:
            raise ShapeError(f"a mask of shape {determinant.shape} (z, y, x) is expected; {mask.shape} came")
        return _statistics(determinant.ravel() if mask is None else determinant[mask.astype(bool)])


def _slabs(shape: tuple[int, int, int]) -> Iterator[tuple[slice, slice, slice]]:
    """Pieces of a grid (z, y, x) along z that derivatives can be taken in without holding those of the whole.

    Yields
    ------
    source, core, inner : slice
        Slices with a neighbour on either side where there is one; those that are meant; where they lie in `source`.
    """
    thick = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thick):
        stop = min(start + thick, shape[0])
        low = max(start - 1, 0)
        yield slice(low, min(stop + 1, shape[0])), slice(start, stop), slice(start - low, stop - low)


def _statistics(determinants: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Figures of Jacobian determinants (n,), see `DisplacementField.jacobian_statistics`; their order is lost.

    Raises
    ------
    GeometryError
        If there are none.
    """
    if determinants.size == 0:
        raise GeometryError("the mask for the Jacobian statistics is empty; set the voxels that count")
    p01, median, p99 = np.percentile(determinants, [1, 50, 99], overwrite_input=True)
    found = {
        "folded_percent": float(100 * np.mean(determinants <= 0)),
        "min": float(determinants.min()),
        "p01": float(p01),
        "median": float(median),
        "p99": float(p99),
        "max": float(determinants.max()),
        "mean": float(determinants.mean(dtype=np.float64)),
    }
    logs = np.log(np.clip(determinants, 1e-3, 1e3, out=determinants), out=determinants)
    logs -= logs.mean(dtype=np.float64)  # in place: `std` would take two copies of them
    return found | {"sd_log": float(np.sqrt(np.square(logs, out=logs).mean(dtype=np.float64)))}


def jacobian_statistics(
    transform: Callable[[NDArray[np.float64]], NDArray[np.float64]], grid: Grid
) -> dict[str, float]:
    """`DisplacementField.jacobian_statistics` of a map of points (n, 3), LPS mm, without the field on a whole grid."""
    determinants = np.empty(grid.shape, np.float32)
    for source, core, inner in _slabs(grid.shape):
        part = grid.slab(source)
        points = part.points_mm()
        moved = transform(points.reshape(-1, 3)).reshape(points.shape)
        determinants[core] = DisplacementField(moved - points, part).jacobian_determinant()[inner]
    return _statistics(determinants.ravel())
