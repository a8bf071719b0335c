"""Views of real scans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric.errors import ConfigError, DataError, DsirError, ShapeError
from dsir_metric.io import read_image, read_layout
from dsir_metric.represent.intensity import resolve_intensity
from dsir_metric_train.views.appearance import Appearance, random_appearance
from dsir_metric_train.views.cache import Cache
from dsir_metric_train.views.placement import BACKGROUND, Placement, Views, Volume, inside

__all__ = ["FromFiles", "Scans", "check_volume", "coarser", "find_images", "isotropic"]

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".ome.zarr")


def find_images(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Image files below `folder` that match any of the glob `patterns`, sorted.

    Raises
    ------
    DataError
        If there is none.
    ConfigError
        If a pattern is none, or does not begin at the folder.
    """
    try:
        matches = {p for pattern in patterns for p in folder.glob(pattern)}
    except (ValueError, NotImplementedError) as error:  # pathlib: an empty pattern, an absolute one
        raise ConfigError(f"files {', '.join(map(repr, patterns))}: {error}; give patterns below {folder}") from error
    found = sorted(p for p in matches if p.name.lower().endswith(SUFFIXES))
    if not found:
        raise DataError(
            f"no NIfTI, NRRD or MetaImage file or OME-Zarr store in {folder} matches {', '.join(patterns)}; check the "
            "folder"
        )
    return found


def isotropic(
    image: sitk.Image,
    spacing_mm: float,
    *,
    labels: bool,
    like: sitk.Image | None = None,
    transform: sitk.Transform | None = None,
) -> NDArray[np.float32]:
    """`image` on an isotropic LPS grid, (z, y, x): its own, or that of `like`, from whose points `transform` leads."""
    whole = sitk.DICOMOrient(image if like is None else like, "LPS")
    size = [max(1, round(n * s / spacing_mm)) for n, s in zip(whole.GetSize(), whole.GetSpacing(), strict=True)]
    interpolator = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
    reference = sitk.Image(size, sitk.sitkUInt8)
    reference.SetSpacing([spacing_mm] * 3)
    reference.SetOrigin(whole.GetOrigin())
    reference.SetDirection(whole.GetDirection())
    low = float(sitk.GetArrayViewFromImage(image).min())
    kind = image.GetPixelID() if labels else sitk.sitkFloat32  # large label numbers are no float32
    out = sitk.Resample(image, reference, transform or sitk.Transform(), interpolator, low, kind)
    return sitk.GetArrayFromImage(out)


def check_volume(volume: NDArray[np.number], placement: Placement, file: Path) -> None:
    """Refuse a volume, at 1 mm, that no crop can be cut from or that holds nothing."""
    _check_size(min(volume.shape), placement, file)
    if not (volume > BACKGROUND).any():
        raise DataError(f"{file}: is all background; leave it out, or check its intensity rule")


def check_headers(files: Sequence[Path], placement: Placement, assume_spacing_mm: float = 0.0) -> None:
    """Refuse what the headers already tell: images that are flat, or thinner than a crop.

    A file whose header cannot be read passes: reading it says what is wrong.
    """
    flat = []
    for file in files:
        extent = _extent_mm(file, assume_spacing_mm)
        if len(extent) == 2:
            flat.append(file)
        elif extent and not flat:
            _check_size(max(1, round(min(extent))), placement, file)
    if flat:
        raise ShapeError(
            f"{flat[0]}: is a 2-D image, as {len(flat)} of {len(files)} here; 3-D scans are expected: move it away"
        )


def _extent_mm(file: Path, assume_spacing_mm: float) -> list[float]:
    """Extent along each axis of more than one voxel; nothing if the header is unreadable or has more than 3 such."""
    try:
        layout = read_layout(file)
    except DsirError:
        return []
    sizes = zip(layout.size, layout.spacing_mm, strict=True)
    extent = [n * (assume_spacing_mm or s) for n, s in sizes if n > 1]
    return extent if len(extent) <= 3 else []


def _check_size(smallest: float, placement: Placement, file: Path) -> None:
    needed = placement.crop * placement.spacing_mm[0]
    if smallest < needed:
        raise DataError(
            f"{file}: is {smallest} mm thin; a crop needs {needed:g} mm: leave it out, or make crops smaller"
        )


class FromFiles(ABC):
    """What is drawn from files, each read when it is first drawn.

    One that cannot be used is passed over and told in `unusable`; which it is depends on the files alone, so the same
    generator state draws the same views in any process.

    Parameters
    ----------
    files : sequence of Path
    placement : Placement
    appearance : Appearance
    intensity : str
        As `dsir_metric.represent.resolve_intensity`.
    assume_spacing_mm : float
        Voxel size to believe instead of the header's; 0 believes the header.
    cache : Cache, optional
        Keeps the volumes; may be shared with other sources.

    Attributes
    ----------
    unusable : dict
        Files that were drawn and passed over, and the error each gave.

    Raises
    ------
    DataError, ShapeError
        If a header tells that an image is smaller than a crop or 2-D.
    """

    def __init__(
        self,
        files: Sequence[Path],
        placement: Placement,
        appearance: Appearance,
        intensity: str = "auto",
        assume_spacing_mm: float = 0.0,
        cache: Cache | None = None,
    ) -> None:
        check_headers(files, placement, assume_spacing_mm)
        self.files, self.placement, self.appearance = files, placement, appearance
        self.intensity, self.assume_spacing_mm = intensity, assume_spacing_mm
        self.cache = cache or Cache()
        self.unusable: dict[str, DsirError] = {}

    @abstractmethod
    def read(self, file: Path) -> tuple[Volume, ...]:
        """The volumes of one file, (z, y, x), at 1 mm and at 2 mm; a `DsirError` if it cannot be used."""

    def key(self, file: Path) -> tuple[object, ...]:
        """All that the volumes of one file depend on."""
        return type(self), file, self.intensity, self.assume_spacing_mm

    def open(self, file: Path) -> sitk.Image:
        """One scan, with the voxel size to believe."""
        return self.believed(read_image(file))

    def believed(self, image: sitk.Image) -> sitk.Image:
        """An image, with the voxel size to believe."""
        if self.assume_spacing_mm:
            image.SetSpacing([self.assume_spacing_mm] * 3)
        return image

    def normalised(
        self, image: sitk.Image, file: Path, like: sitk.Image | None = None, transform: sitk.Transform | None = None
    ) -> Volume:
        """A scan in [0, 1], (z, y, x), at 1 mm; see `isotropic`.

        Raises
        ------
        DataError
            If it is smaller than a crop, or is all background.
        """
        rule = resolve_intensity(sitk.GetArrayViewFromImage(image), self.intensity)
        fine = rule.apply(isotropic(image, 1.0, labels=False, like=like, transform=transform))
        check_volume(fine, self.placement, file)
        return fine

    def any(self, rng: np.random.Generator) -> tuple[Volume, ...]:
        """The volumes of a random file; of another one if that is unusable.

        Raises
        ------
        DsirError
            If no file can be used; what the first one gave.
        """
        while len(self.unusable) < len(self.files):
            file = self.files[int(rng.integers(len(self.files)))]
            if str(file) in self.unusable:
                continue
            try:
                return self.cache.get(self.key(file), partial(self.read, file))
            except DsirError as error:
                self.unusable[str(file)] = error
        raise next(iter(self.unusable.values()))


def coarser(fine: Volume) -> Volume:
    """A volume of 1 mm at 2 mm."""
    coarse: Volume = ndimage.gaussian_filter(fine, 0.7)[::2, ::2, ::2].copy()
    return coarse


class Scans(FromFiles):
    """Real scans; the second view is the first under a random intensity transformation (section 3.3 of the paper).

    Parameters
    ----------
    files : sequence of Path
        Scalar 3-D images, each normalised as at run time and brought to 1 mm and 2 mm.
    placement, appearance, intensity, assume_spacing_mm, cache
        As in `FromFiles`.
    both : bool
        Whether the first view is transformed as well; the paper leaves it as it is.
    """

    def __init__(
        self,
        files: Sequence[Path],
        placement: Placement,
        appearance: Appearance,
        both: bool,
        intensity: str = "auto",
        assume_spacing_mm: float = 0.0,
        cache: Cache | None = None,
    ) -> None:
        super().__init__(files, placement, appearance, intensity, assume_spacing_mm, cache)
        self.both = both

    def read(self, file: Path) -> tuple[Volume, ...]:
        """One scan in [0, 1], (z, y, x), at 1 mm and at 2 mm.

        Raises
        ------
        DataError, ShapeError, GeometryError
            If it is none that `read_image` takes, is smaller than a crop, or is all background.
        """
        fine = self.normalised(self.open(file), file)
        return fine, coarser(fine)

    def draw(self, rng: np.random.Generator) -> Views:
        """A random crop of a random scan, and the same place of the same scan changed in appearance.

        Raises
        ------
        DsirError
            If no file can be used; what the first one gave.
        """
        fine, coarse = self.any(rng)
        matrix, warp = self.placement.draw(rng)
        volume, unit = (coarse, 2.0) if np.linalg.norm(matrix[0]) > 1.5 else (fine, 1.0)
        centre = inside(rng, coarse) * (2.0 / unit)
        crop, second = self.placement.cut_both(volume, centre, matrix / unit, warp, order=1)
        first = random_appearance(rng, crop, self.appearance, curve=self.both)
        return Views(first, random_appearance(rng, second, self.appearance), crop > BACKGROUND, warp)
