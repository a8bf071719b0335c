"""Where the voxels of an image lie in space."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from dsir_metric.errors import GeometryError, ShapeError

__all__ = ["Grid"]

Triple = tuple[float, float, float]
_LABEL_MAPS = {sitk.sitkLabelUInt8, sitk.sitkLabelUInt16, sitk.sitkLabelUInt32, sitk.sitkLabelUInt64}
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Grid:
    """A regular lattice of voxel centres in LPS millimetres.

    A 2-D image has a grid too: one slice in the plane z = 0, as thick as the shorter edge of a pixel. So whatever
    works on points of space works on a plane; `image` and `stamp` give 2-D images back.

    Parameters
    ----------
    size : tuple of int
        Number of voxels along x, y, z.
    spacing_mm : tuple of float
        Distance of neighbouring voxel centres along x, y, z, in mm.
    origin_mm : tuple of float
        LPS position of the centre of voxel (0, 0, 0), in mm.
    direction : tuple of float
        Row-major 3 x 3 matrix whose columns are the unit vectors of the index axes.
    dimension : int
        3, or 2 for the grid of a 2-D image.

    Raises
    ------
    GeometryError
        If a size or spacing is not positive, a value is not finite, or `direction` is not orthonormal.

    Notes
    -----
    Lists, arrays, whole numbers and NumPy's numbers are kept as tuples of Python's own: SimpleITK takes no others.
    """

    size: tuple[int, int, int]
    spacing_mm: Triple = (1.0, 1.0, 1.0)
    origin_mm: Triple = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = _IDENTITY
    dimension: int = 3

    def __post_init__(self) -> None:
        for name in ("size", "spacing_mm", "origin_mm", "direction"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))
        if len(self.size) != 3 or min(self.size) < 1:
            raise GeometryError(f"a grid needs three positive sizes (x, y, z); {self.size} came")
        if not np.all(np.isfinite(self.spacing_mm)) or min(self.spacing_mm) <= 0:
            raise GeometryError(f"a grid needs three positive spacings in mm; {self.spacing_mm} came: mend the header")
        if not np.all(np.isfinite(self.origin_mm)):
            raise GeometryError(f"the origin {self.origin_mm} is not finite: mend the header")
        rotation = np.reshape(self.direction, (3, 3))
        if not np.all(np.isfinite(rotation)) or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3):
            raise GeometryError(f"the direction matrix {self.direction} is not orthonormal: mend the header")

    @classmethod
    def of(cls, image: sitk.Image) -> Grid:
        """Grid of a 3-D or 2-D SimpleITK image of voxels."""
        if image.GetPixelID() in _LABEL_MAPS:  # SimpleITK ends the process when it is asked for the voxels of one
            raise ShapeError("an image of voxels is expected; a label map came: convert it with sitk.LabelMapToLabel")
        size, spacing, origin = tuple(image.GetSize()), tuple(image.GetSpacing()), tuple(image.GetOrigin())
        direction = tuple(image.GetDirection())
        if image.GetDimension() == 3:
            return cls(size, spacing, origin, direction)
        if image.GetDimension() == 2:
            a, b, c, d = direction
            plane = (a, b, 0.0, c, d, 0.0, 0.0, 0.0, 1.0)
            return cls((*size, 1), (*spacing, min(spacing)), (*origin, 0.0), plane, 2)
        raise ShapeError(f"a 3-D or 2-D image is expected; one with {image.GetDimension()} axes {size} came")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape (z, y, x)."""
        return (self.size[2], self.size[1], self.size[0])

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """3 x 3 matrix from index steps (x, y, z) to mm."""
        return np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing_mm, np.float64)

    @cached_property
    def inverse_matrix(self) -> NDArray[np.float64]:
        """3 x 3 matrix from mm to index steps (x, y, z)."""
        return np.asarray(np.linalg.inv(self.matrix), np.float64)

    @property
    def extent_mm(self) -> NDArray[np.float64]:
        """Length of the box (voxels are boxes, not points) along its own x, y, z axes, in mm."""
        extent: NDArray[np.float64] = np.asarray(self.size) * np.asarray(self.spacing_mm)
        return extent

    @property
    def centre_mm(self) -> NDArray[np.float64]:
        """LPS position of the middle of the box, in mm."""
        return self.to_physical((np.asarray(self.size) - 1) / 2)

    def to_physical(self, index: ArrayLike) -> NDArray[np.float64]:
        """LPS mm of continuous indices (..., 3) in x, y, z order."""
        points: NDArray[np.float64] = np.asarray(index, float) @ self.matrix.T + np.asarray(self.origin_mm)
        return points

    def to_index(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Continuous indices (..., 3), x, y, z, of LPS points in mm."""
        offset = np.asarray(points_mm, float) - np.asarray(self.origin_mm)
        index: NDArray[np.float64] = offset @ self.inverse_matrix.T
        return index

    def points_mm(self) -> NDArray[np.float64]:
        """Centres of all voxels, (z, y, x, 3), last axis LPS mm."""
        z, y, x = np.meshgrid(*[np.arange(n, dtype=float) for n in self.shape], indexing="ij")
        return self.to_physical(np.stack([x, y, z], axis=-1))

    def resampled(self, spacing_mm: float | Triple) -> Grid:
        """The same box with another spacing: centre kept, size rounded to whole voxels."""
        spacing = np.broadcast_to(np.asarray(spacing_mm, float), 3)
        size = np.maximum(np.rint(self.extent_mm / spacing).astype(int), 1)
        return self._centred(size, spacing)

    def halved(self) -> Grid:
        """Voxels of twice the size; each centre lies amid 2 x 2 (x 2) of these, an odd last layer stands alone."""
        x, y, z = self.size
        dx, dy, dz = self.spacing_mm
        origin = self.to_physical((0.5, 0.5, 0.5 if self.dimension == 3 else 0.0)).tolist()
        size = (-(-x // 2), -(-y // 2), -(-z // 2))
        return replace(
            self, size=size, spacing_mm=(2 * dx, 2 * dy, 2 * dz), origin_mm=(origin[0], origin[1], origin[2])
        )

    def slab(self, part: slice) -> Grid:
        """The slices `part` (of step 1) along the last axis."""
        origin = self.to_physical((0, 0, part.start)).tolist()
        size = (self.size[0], self.size[1], part.stop - part.start)
        return replace(self, size=size, origin_mm=(origin[0], origin[1], origin[2]))

    def cropped(self, box: tuple[slice, slice, slice]) -> Grid:
        """The voxels in a box: slices (of step 1) along z, y, x."""
        z, y, x = box
        origin = self.to_physical((x.start, y.start, z.start)).tolist()
        size = (x.stop - x.start, y.stop - y.start, z.stop - z.start)
        return replace(self, size=size, origin_mm=(origin[0], origin[1], origin[2]))

    def scaled(self, factor: float) -> Grid:
        """The same voxels with all lengths, the origin's too, `factor` times as long."""
        (dx, dy, dz), (x, y, z) = self.spacing_mm, self.origin_mm
        return replace(
            self,
            spacing_mm=(factor * dx, factor * dy, factor * dz),
            origin_mm=(factor * x, factor * y, factor * z),
        )

    def padded(self, margin_vox: int) -> Grid:
        """The grid with `margin_vox` more voxels on each side."""
        return self._centred(np.asarray(self.size) + 2 * margin_vox, np.asarray(self.spacing_mm))

    def _centred(self, size: NDArray[np.int_], spacing: NDArray[np.float64]) -> Grid:
        if self.dimension == 2:
            size, spacing = np.append(size[:2], 1), np.append(spacing[:2], spacing[:2].min())
        rotation = np.reshape(self.direction, (3, 3))
        origin = self.centre_mm - rotation @ ((size - 1) / 2 * spacing)
        return replace(
            self,
            size=(int(size[0]), int(size[1]), int(size[2])),
            spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
            origin_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
        )

    def image(self, pixel_type: int = sitk.sitkUInt8, components: int = 0) -> sitk.Image:
        """An image of zeros on this grid."""
        empty = sitk.Image(list(self.size[: self.dimension]), pixel_type, components)
        return self.stamp(empty)

    def stamp(self, image: sitk.Image) -> sitk.Image:
        """Write this geometry into `image` (same size) and return it; the one slice of a 2-D grid is cut out."""
        axes = self.dimension
        if image.GetDimension() > axes and image.GetSize() == self.size:
            image = image[:, :, 0]
        if tuple(image.GetSize()) != self.size[:axes]:
            raise ShapeError(f"an image of size {self.size[:axes]} is expected; {image.GetSize()} came")
        image.SetSpacing(self.spacing_mm[:axes])
        image.SetOrigin(self.origin_mm[:axes])
        image.SetDirection(np.reshape(self.direction, (3, 3))[:axes, :axes].ravel().tolist())
        return image

    def matches(self, other: Grid, tolerance_vox: float = 1e-3) -> bool:
        """Whether two grids have their voxels in the same places, up to `tolerance_vox` of a voxel."""
        if (self.size, self.dimension) != (other.size, other.dimension):
            return False
        corners = np.array([(0, 0, 0), self.size, (self.size[0], 0, 0), (0, self.size[1], 0)], float)
        return bool(np.abs(self.to_index(other.to_physical(corners)) - corners).max() < tolerance_vox)


def _plain(name: str, values: ArrayLike) -> tuple[int | float, ...]:
    """Numbers of any kind as Python's own: whole ones for a size, else floats."""
    numbers, count = np.ravel(np.asarray(values)), 9 if name == "direction" else 3
    kind, text = (int, "whole numbers") if name == "size" else (float, "numbers")
    whole = kind is float or (numbers.dtype.kind in "iuf" and np.array_equal(numbers, np.floor(numbers)))
    if numbers.dtype.kind not in "iuf" or numbers.size != count or not whole:
        raise GeometryError(f"the {name} of a grid must be {count} {text}, got {values!r}")
    return tuple(kind(number) for number in numbers.tolist())
