"""Where training views come from: real scans, label maps, random shapes.

A source draws two views of one anatomy: same geometry, different appearance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric.errors import DataError
from dsir_metric.io import read_image, read_labels
from dsir_metric.represent.intensity import resolve_intensity
from dsir_metric_train.augment import Appearance, Volume, random_appearance, smooth_noise

__all__ = ["LabelMaps", "Placement", "Scans", "Shapes", "Source", "Views", "find_images"]

Affine = NDArray[np.float64]
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
_BACKGROUND = 0.05  # up to here a voxel is background, of a scan in [0, 1] and of a label map alike


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


@dataclass(frozen=True)
class Placement:
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

    crop: int = 48
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    rotation_deg: float = 0.0
    relative_rotation_deg: float = 0.0
    relative_scale: float = 0.0
    relative_shift_vox: float = 0.0

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
        self, volume: NDArray[np.generic], centre: NDArray[np.float64], matrix: NDArray[np.float64], order: int
    ) -> Volume:
        """The crop whose voxel i lies at centre + matrix (i - middle), in voxels of `volume` (z, y, x)."""
        offset = centre - matrix @ self.middle
        crop: Volume = ndimage.affine_transform(volume, matrix, offset, (self.crop,) * 3, order=order, cval=0.0)
        return crop

    def cut_both(
        self,
        volume: NDArray[np.generic],
        centre: NDArray[np.float64],
        matrix: NDArray[np.float64],
        warp: Affine,
        order: int,
    ) -> tuple[Volume, Volume]:
        """First and second crop; voxel i of the first is the same anatomy as warp(i) of the second."""
        back = np.linalg.inv(warp[:, :3])
        middle = back @ (self.middle - warp[:, 3])  # of the second view, as an index of the first
        first = self.cut(volume, centre, matrix, order)
        return first, self.cut(volume, centre + matrix @ (middle - self.middle), matrix @ back, order)


def _rotation(rng: np.random.Generator, largest_deg: float) -> NDArray[np.float64]:
    angles = np.deg2rad(rng.uniform(-1, 1, 3) * largest_deg)
    return np.reshape(sitk.Euler3DTransform((0, 0, 0), *angles.tolist()).GetMatrix(), (3, 3))


class Source(Protocol):
    """Anything that draws views; the same generator state draws the same views."""

    def draw(self, rng: np.random.Generator) -> Views:
        """Two views of a random anatomy."""
        ...


def find_images(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Image files below `folder` that match any of the glob `patterns`, sorted.

    Raises
    ------
    DataError
        If there is none.
    """
    found = sorted({p for pattern in patterns for p in folder.glob(pattern) if p.name.endswith(SUFFIXES)})
    if not found:
        raise DataError(f"no NIfTI, NRRD or MetaImage file in {folder} matches {', '.join(patterns)}; check the folder")
    return found


def _isotropic(image: sitk.Image, spacing_mm: float, *, labels: bool) -> NDArray[np.float32]:
    """`image` on an isotropic LPS grid, (z, y, x)."""
    image = sitk.DICOMOrient(image, "LPS")
    size = [max(1, round(n * s / spacing_mm)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    interpolator = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
    reference = sitk.Image(size, sitk.sitkUInt8)
    reference.SetSpacing([spacing_mm] * 3)
    reference.SetOrigin(image.GetOrigin())
    reference.SetDirection(image.GetDirection())
    low = float(sitk.GetArrayViewFromImage(image).min())
    out = sitk.Resample(image, reference, sitk.Transform(), interpolator, low, sitk.sitkFloat32)
    return sitk.GetArrayFromImage(out)


def _check(volume: NDArray[np.number], placement: Placement, file: Path) -> None:
    """Refuse a volume, at 1 mm, that no crop can be cut from or that holds nothing."""
    needed, smallest = placement.crop * placement.spacing_mm[0], min(volume.shape)
    if smallest < needed:
        raise DataError(
            f"{file}: is {smallest} mm thin; a crop needs {needed:g} mm: leave it out, or make crops smaller"
        )
    if not (volume > _BACKGROUND).any():
        raise DataError(f"{file}: is all background; leave it out, or check its intensity rule")


class Scans:
    """Real scans; the second view is the first under a random intensity transformation (section 3.3 of the paper).

    Parameters
    ----------
    files : sequence of Path
        Scalar 3-D images, each normalised as at run time and kept in memory at 1 mm and 2 mm.
    placement : Placement
    appearance : Appearance
    both : bool
        Whether the first view is transformed as well; the paper leaves it as it is.
    intensity : str
        As `dsir_metric.represent.resolve_intensity`.
    assume_spacing_mm : float
        Voxel size to believe instead of the header's; 0 believes the header.

    Raises
    ------
    DataError, ShapeError, GeometryError
        If a file is none that `read_image` takes, is smaller than a crop, or is all background.
    """

    def __init__(
        self,
        files: Sequence[Path],
        placement: Placement,
        appearance: Appearance,
        both: bool,
        intensity: str = "auto",
        assume_spacing_mm: float = 0.0,
    ) -> None:
        self.placement, self.appearance, self.both = placement, appearance, both
        self.volumes: list[tuple[Volume, Volume]] = []
        for file in files:
            image = read_image(file)
            if assume_spacing_mm:
                image.SetSpacing([assume_spacing_mm] * 3)
            rule = resolve_intensity(sitk.GetArrayViewFromImage(image), intensity)
            fine = rule.apply(_isotropic(image, 1.0, labels=False))
            _check(fine, placement, file)
            self.volumes.append((fine, ndimage.gaussian_filter(fine, 0.7)[::2, ::2, ::2].copy()))

    def draw(self, rng: np.random.Generator) -> Views:
        """A random crop of a random scan, and the same place of the same scan changed in appearance."""
        fine, coarse = self.volumes[int(rng.integers(len(self.volumes)))]
        matrix, warp = self.placement.draw(rng)
        volume, unit = (coarse, 2.0) if np.linalg.norm(matrix[0]) > 1.5 else (fine, 1.0)
        centre = _inside(rng, coarse) * (2.0 / unit)
        crop, second = self.placement.cut_both(volume, centre, matrix / unit, warp, order=1)
        first = random_appearance(rng, crop, self.appearance, curve=self.both)
        return Views(first, random_appearance(rng, second, self.appearance), crop > _BACKGROUND, warp)


class LabelMaps:
    """Label maps painted twice with random intensities: geometry shared, contrast not even monotone.

    Parameters
    ----------
    files : sequence of Path
        Integer 3-D label maps; 0 is background.
    placement : Placement
    appearance : Appearance
    strip_above : int
        Labels at or above this value (skull, skin) are removed in half of the draws; 0 never removes any.

    Raises
    ------
    DataError, ShapeError, GeometryError
        If a file is none that `read_labels` takes, is smaller than a crop, or holds no label.
    """

    def __init__(
        self, files: Sequence[Path], placement: Placement, appearance: Appearance, strip_above: int = 0
    ) -> None:
        self.placement, self.appearance, self.strip_above = placement, appearance, strip_above
        self.maps = [_isotropic(read_labels(file), 1.0, labels=True).astype(np.int16) for file in files]
        for labels, file in zip(self.maps, files, strict=True):
            _check(labels, placement, file)

    def draw(self, rng: np.random.Generator) -> Views:
        """A random crop of a random map, painted twice."""
        labels = self.maps[int(rng.integers(len(self.maps)))]
        matrix, warp = self.placement.draw(rng)
        first, second = self.placement.cut_both(labels, _inside(rng, labels), matrix, warp, order=0)
        if self.strip_above and rng.uniform() < 0.5:
            first, second = (np.where(c >= self.strip_above, 0, c) for c in (first, second))
        return _paint_both(rng, first, second, self.appearance, warp)


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
        return _paint_both(rng, crops[0], crops[1], self.appearance, warp)


def _inside(rng: np.random.Generator, volume: NDArray[np.generic]) -> NDArray[np.float64]:
    """Index (z, y, x) of a random foreground voxel."""
    flat = volume.reshape(-1)
    for _ in range(64):
        k = int(rng.integers(flat.size))
        if flat[k] > _BACKGROUND:
            break
    return np.array(np.unravel_index(k, volume.shape), float)


def _paint_both(
    rng: np.random.Generator,
    first: NDArray[np.number],
    second: NDArray[np.number],
    appearance: Appearance,
    warp: Affine,
) -> Views:
    """Views of two label crops; each region gets a mean and a texture of its own in each view."""
    return Views(_paint(rng, first, appearance), _paint(rng, second, appearance), first > 0, warp)


def _paint(rng: np.random.Generator, labels: NDArray[np.number], appearance: Appearance) -> Volume:
    values, inverse = np.unique(labels, return_inverse=True)
    mean = rng.uniform(0.05, 1, values.size).astype(np.float32)
    same = rng.uniform(size=values.size) < 0.1  # now and then two tissues look alike
    mean[same] = rng.choice(mean, int(same.sum()))
    if values[0] == 0 and rng.uniform() < 0.9:
        mean[0] = 0.0
    image = mean[inverse].reshape(labels.shape)
    texture = smooth_noise(rng, labels.shape, int(rng.integers(6, 20)))
    image = image * (1 + np.float32(rng.uniform(0, 0.15)) * texture)
    image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.8), truncate=2.5)  # partial volume
    return random_appearance(rng, image, appearance, curve=False)
