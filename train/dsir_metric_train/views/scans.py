"""Views of real scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric.errors import DataError
from dsir_metric.io import read_image
from dsir_metric.represent.intensity import resolve_intensity
from dsir_metric_train.views.appearance import Appearance, random_appearance
from dsir_metric_train.views.placement import BACKGROUND, Placement, Views, Volume, inside

__all__ = ["Scans", "check_volume", "find_images", "isotropic"]

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")


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


def isotropic(image: sitk.Image, spacing_mm: float, *, labels: bool) -> NDArray[np.float32]:
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


def check_volume(volume: NDArray[np.number], placement: Placement, file: Path) -> None:
    """Refuse a volume, at 1 mm, that no crop can be cut from or that holds nothing."""
    needed, smallest = placement.crop * placement.spacing_mm[0], min(volume.shape)
    if smallest < needed:
        raise DataError(
            f"{file}: is {smallest} mm thin; a crop needs {needed:g} mm: leave it out, or make crops smaller"
        )
    if not (volume > BACKGROUND).any():
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
            fine = rule.apply(isotropic(image, 1.0, labels=False))
            check_volume(fine, placement, file)
            self.volumes.append((fine, ndimage.gaussian_filter(fine, 0.7)[::2, ::2, ::2].copy()))

    def draw(self, rng: np.random.Generator) -> Views:
        """A random crop of a random scan, and the same place of the same scan changed in appearance."""
        fine, coarse = self.volumes[int(rng.integers(len(self.volumes)))]
        matrix, warp = self.placement.draw(rng)
        volume, unit = (coarse, 2.0) if np.linalg.norm(matrix[0]) > 1.5 else (fine, 1.0)
        centre = inside(rng, coarse) * (2.0 / unit)
        crop, second = self.placement.cut_both(volume, centre, matrix / unit, warp, order=1)
        first = random_appearance(rng, crop, self.appearance, curve=self.both)
        return Views(first, random_appearance(rng, second, self.appearance), crop > BACKGROUND, warp)
