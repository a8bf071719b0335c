"""Two views of one anatomy, where they lie, and what draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric.bounds import Range
from dsir_metric.config import Settings
from dsir_metric.errors import ConfigError

__all__ = ["BACKGROUND", "Affine", "Placement", "Source", "Views", "Volume", "inside"]

Volume = NDArray[np.float32]
Affine = NDArray[np.float64]
BACKGROUND = 0.05  # up to here a voxel is background, of a scan in [0, 1] and of a label map alike


@dataclass(frozen=True)
class Views:
    """Two views of one anatomy.

    Parameters
    ----------
    first, second : ndarray of float32, shape (z, y, x), in [0, 1]
    foreground : ndarray of bool, shape (z, y, x)
        Where the anatomy is in the first view.
    warp : ndarray, shape (3, 4)
        Affine map from voxels of the first view to voxels of the second, z, y, x; the identity in the paper.
    """

    first: Volume
    second: Volume
    foreground: NDArray[np.bool_]
    warp: Affine


VoxelSize = Annotated[float, Range(1e-4, 1000)]  # mm


@dataclass(frozen=True)
class Placement(Settings):
    """Size and random pose of a pair of crops.

    Parameters
    ----------
    crop : int
        Edge of the cubic crop in voxels, a multiple of 8.
    spacing_mm : tuple of float
        Smallest and largest voxel size a crop is seen at.
    rotation_deg : float
        Largest turn of both views about each axis.
    relative_rotation_deg, relative_scale, relative_shift_vox : float
        Largest turn, log scale and shift of the second view against the first, about and along each axis. Zero in the
        paper; otherwise the voxel grid of one view is no cue for matching the other.
    """

    crop: Annotated[int, Range(16, 1024)] = 48
    spacing_mm: tuple[VoxelSize, VoxelSize] = (1.0, 1.0)
    rotation_deg: Annotated[float, Range(0, 180)] = 0.0
    relative_rotation_deg: Annotated[float, Range(0, 180)] = 0.0
    relative_scale: Annotated[float, Range(0, 2)] = 0.0
    relative_shift_vox: Annotated[float, Range(0, 1000)] = 0.0

    def check_together(self) -> None:
        """See that the smallest voxel size comes first."""
        smallest, largest = self.spacing_mm
        if smallest > largest:
            raise ConfigError(f"spacing_mm must have the smallest voxel size first, got {list(self.spacing_mm)}")

    @property
    def middle(self) -> NDArray[np.float64]:
        """Continuous index of the centre of a crop."""
        return np.full(3, (self.crop - 1) / 2)

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], Affine]:
        """A 3 x 3 matrix from voxel steps of the first view to mm, and the warp from first to second (`Views`)."""
        spacing = float(np.exp(rng.uniform(*np.log(self.spacing_mm))))
        relative = _rotation(rng, self.relative_rotation_deg) @ np.diag(
            np.exp(rng.uniform(-1, 1, 3) * self.relative_scale)
        )
        shift = rng.uniform(-1, 1, 3) * self.relative_shift_vox
        offset = self.middle + shift - relative @ self.middle
        return _rotation(rng, self.rotation_deg) * spacing, np.concatenate([relative, offset[:, None]], axis=1)

    def cut(
        self,
        volume: NDArray[np.generic],
        centre: NDArray[np.float64],
        matrix: NDArray[np.float64],
        order: int,
        finer: int = 1,
    ) -> Volume:
        """The crop whose voxel i lies at centre + matrix (i - middle), in voxels of `volume` (z, y, x).

        With `finer` the same cube in voxels that many times smaller.
        """
        size, step = finer * self.crop, matrix / finer
        offset = centre - step @ np.full(3, (size - 1) / 2)
        crop: Volume = ndimage.affine_transform(volume, step, offset, (size,) * 3, order=order, cval=0.0)
        return crop

    def cut_both(
        self,
        volume: NDArray[np.generic],
        centre: NDArray[np.float64],
        matrix: NDArray[np.float64],
        warp: Affine,
        order: int,
        finer: int = 1,
        other: NDArray[np.generic] | None = None,
    ) -> tuple[Volume, Volume]:
        """First and second crop; voxel i of the first is the same anatomy as warp(i) of the second; see `cut`.

        The second crop is cut from `other`, if given, which lies on the grid of `volume`.
        """
        back = np.linalg.inv(warp[:, :3])
        middle = back @ (self.middle - warp[:, 3])  # of the second view, as an index of the first
        first = self.cut(volume, centre, matrix, order, finer)
        source = volume if other is None else other
        return first, self.cut(source, centre + matrix @ (middle - self.middle), matrix @ back, order, finer)

    def fields(
        self, rng: np.random.Generator, warp: Affine, count: int, nodes: int, finer: int = 1
    ) -> list[tuple[Volume, Volume]]:
        """`count` random fields in [-1, 1], each on both crops, linear between `nodes` / 1.6 nodes an edge."""
        step = np.eye(3) * (nodes - 1) / (1.6 * self.crop)
        drawn = rng.uniform(-1, 1, (count, nodes, nodes, nodes)).astype(np.float32)
        return [self.cut_both(f, np.full(3, (nodes - 1) / 2), step, warp, 1, finer) for f in drawn]

    def coordinates(self, warp: Affine, finer: int = 1) -> tuple[Volume, Volume]:
        """Where the voxels of both crops lie, (3, z, y, x), in edges of the first crop from its middle, z, y, x."""
        index = (np.indices((finer * self.crop,) * 3, np.float32) + np.float32(0.5)) / finer - np.float32(0.5)
        back = np.linalg.inv(warp[:, :3]).astype(np.float32)
        moved = np.tensordot(back, index - warp[:, 3].astype(np.float32)[:, None, None, None], 1)
        first, second = ((i - self.middle[0]) / self.crop for i in (index, moved))
        return first.astype(np.float32), second.astype(np.float32)


def _rotation(rng: np.random.Generator, largest_deg: float) -> NDArray[np.float64]:
    angles = np.deg2rad(rng.uniform(-1, 1, 3) * largest_deg)
    return np.reshape(sitk.Euler3DTransform((0, 0, 0), *angles.tolist()).GetMatrix(), (3, 3))


class Source(Protocol):
    """Anything that draws views; the same generator state draws the same views."""

    def draw(self, rng: np.random.Generator) -> Views:
        """Two views of a random anatomy."""
        ...


def inside(rng: np.random.Generator, volume: NDArray[np.generic]) -> NDArray[np.float64]:
    """Index (z, y, x) of a random foreground voxel."""
    flat = volume.reshape(-1)
    for _ in range(64):
        k = int(rng.integers(flat.size))
        if flat[k] > BACKGROUND:
            break
    return np.array(np.unravel_index(k, volume.shape), float)
