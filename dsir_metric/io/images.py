"""Read and write images; what cannot be registered is refused here, with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import DataError, GeometryError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.io.atomic import atomic
from dsir_metric.io.files import named_for_itk
from dsir_metric.io.nifti import is_whole
from dsir_metric.io.reorient import Reorient
from dsir_metric.io.voxels import Layout, read_layout, read_voxels
from dsir_metric.io.zarr import is_zarr, open_zarr, read_zarr
from dsir_metric.io.zarr_write import put_zarr, write_zarr

__all__ = [
    "IMAGE_ENDINGS",
    "check_image",
    "check_mask",
    "put_image",
    "read_grid",
    "read_image",
    "read_labels",
    "read_mask",
    "write_image",
]

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".ome.zarr")

_COMPLEX = (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)
_EXACT = {np.dtype(np.float32): 2**24, np.dtype(np.float64): 2**53}  # whole numbers up to here are apart
_LABEL_TYPES = {  # and the least and largest number that each holds
    sitk.sitkInt32: (-(2**31), 2**31 - 1),
    sitk.sitkUInt32: (0, 2**32 - 1),
    sitk.sitkInt64: (-(2**63), 2**63 - 1),
}


def read_image(path: str | Path, *, reorient: Reorient | None = None) -> sitk.Image:
    """Read a scalar 3-D image.

    Parameters
    ----------
    path : str or Path
        NIfTI-1, Analyze, NRRD, MetaImage, GIPL, MINC, or one DICOM file of a volume. A fourth axis of length 1 is
        dropped. Or OME-Zarr, see `dsir_metric.io.zarr` for how to choose a level or channel.
    reorient : {"nearest"}, optional
        Where the axes of a file are up to 1 degree off right angles, take the nearest rotation about the middle of
        the box, with a warning that says by how many mm its corners move.

    Returns
    -------
    sitk.Image
        float32, with the geometry of the file.

    Raises
    ------
    DataError
        If the file is missing, truncated or no image; if voxels are NaN or infinite, or all are equal.
    ShapeError
        If it is not 3-D or has several components.
    GeometryError
        If the spacing is not positive or the direction not orthonormal.
    MemoryError
        If it does not fit into memory.
    """
    return check_image(_read(path, reorient), str(path))


def check_image(image: sitk.Image, name: str, *, plane: bool = False) -> sitk.Image:
    """The checks of `read_image` on an image in memory; `name` begins the error messages. Gives it as float32.

    An image that is what it should be comes back as it is: a second handle would cost its voxels a second time as soon
    as either is looked at as an array. With `plane`, a 2-D image is one of those that pass.
    """
    image = _scalar_volume(image, name, plane=plane)
    image = image if image.GetPixelID() == sitk.sitkFloat32 else sitk.Cast(image, sitk.sitkFloat32)
    values = sitk.GetArrayViewFromImage(image)
    broken = int(values.size - np.isfinite(values).sum())
    if broken:
        raise DataError(f"{name}: {broken} voxels are NaN or infinite; replace them, by 0 or air, before")
    if values.min() == values.max():
        raise DataError(f"{name}: all voxels are {values.min():g}; an image with some contrast is expected")
    return image


def read_grid(path: str | Path, *, reorient: Reorient | None = None) -> Grid:
    """Grid of a 3-D image with one component, from the header alone; voxels are not looked at.

    Parameters
    ----------
    path : str or Path
    reorient : {"nearest"}, optional
        See `read_image`.

    Raises
    ------
    DataError, ShapeError, GeometryError
        As `read_image`, so far as the header tells.
    """
    if is_zarr(path):
        return _volume_grid(path)
    layout = read_layout(Path(path), reorient)
    size, axes = layout.size, len(layout.size)
    if axes not in (3, 4) or any(n != 1 for n in size[3:]) or layout.components != 1:
        raise ShapeError(
            f"{path}: has {axes} axes {size} and {layout.components} component(s); a scalar 3-D image is expected"
        )
    return _grid(layout, path)


def read_labels(path: str | Path, *, reorient: Reorient | None = None) -> sitk.Image:
    """Read a 3-D label image; labels stored as floats are taken when they are whole numbers.

    Parameters
    ----------
    path : str or Path
    reorient : {"nearest"}, optional
        See `read_image`.

    Returns
    -------
    sitk.Image
        int32, or uint32 or int64 where a label needs it; 0 is background.

    Raises
    ------
    DataError, ShapeError, GeometryError
        As `read_image`, but a constant image is allowed; DataError also if a label is no whole number, or so large that
        the file or a resampled image may hold another (2^24 in single precision, else 2^53).
    """
    image = _scalar_volume(_read(path, reorient), str(path))
    values: NDArray[np.generic] = sitk.GetArrayViewFromImage(image)
    if not np.all(np.isfinite(values)) or np.any(values != np.rint(values)):
        raise DataError(f"{path}: labels are whole numbers, others came; was an image given for a label image?")
    least, largest = values.min().item(), values.max().item()
    most = _EXACT.get(values.dtype, 2**53)  # ITK resamples in double precision
    if max(-least, largest) > most:
        raise DataError(
            f"{path}: a label must be at most {most} as {values.dtype}, got {max(-least, largest):.0f}; store labels "
            "as integers, or renumber them"
        )
    kind = next(kind for kind, (low, high) in _LABEL_TYPES.items() if low <= least and largest <= high)
    labels: sitk.Image = sitk.Cast(image, kind)
    return labels


def read_mask(path: str | Path, like: Grid, *, reorient: Reorient | None = None) -> sitk.Image:
    """Read a mask, where anything but 0 counts.

    Parameters
    ----------
    path : str or Path
    like : Grid
        Grid of the image the mask belongs to.
    reorient : {"nearest"}, optional
        See `read_image`.

    Returns
    -------
    sitk.Image
        uint8, 0 or 1.

    Raises
    ------
    DataError
        If no voxel is set, or one is NaN.
    GeometryError
        If the mask lies on another grid than `like`.
    """
    return check_mask(_read(path, reorient), like, str(path))


def check_mask(image: sitk.Image, like: Grid, name: str) -> sitk.Image:
    """The checks of `read_mask` on a mask in memory; `name` begins the error messages. Gives it as uint8, 0 or 1."""
    image = _scalar_volume(image, name)
    if not Grid.of(image).matches(like):
        raise GeometryError(
            f"{name}: the mask lies on another grid (size {image.GetSize()}) than its image (size {like.size}); "
            "resample it, nearest neighbour, onto the image"
        )
    broken = int(np.isnan(sitk.GetArrayViewFromImage(image)).sum())
    if broken:
        raise DataError(f"{name}: {broken} voxels of the mask are NaN; set them to 0 or 1")
    mask: sitk.Image = sitk.NotEqual(image, 0)
    if not sitk.GetArrayViewFromImage(mask).any():
        raise DataError(f"{name}: the mask is empty; set the voxels that count, or leave the mask out")
    return mask


def write_image(image: sitk.Image, path: str | Path) -> None:
    """Write an image in the format of the ending of `path`, compressed where it can be, whole or not at all.

    Raises
    ------
    DataError
        If the folder or a full disk refuses the file, or no format fits the ending.
    """
    if is_zarr(path):
        write_zarr(image, path)
        return
    with atomic(path) as temporary:
        put_image(image, temporary)


def put_image(image: sitk.Image, path: Path) -> None:
    """Write an image into a file, or an empty folder, that appears when it is whole; see `write_together`.

    Raises
    ------
    OSError, RuntimeError
        If it cannot be written.
    """
    if is_zarr(path):
        put_zarr(image, path)
        return
    with named_for_itk(path) as name:
        sitk.WriteImage(image, name, useCompression=True)
    size = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    if path.name.lower().endswith((".nii", ".nii.gz")) and not is_whole(path, size):
        raise RuntimeError("ITK wrote a part of it and did not say why")


def _volume_grid(path: str | Path) -> Grid:
    grid = open_zarr(path, scalar=True).grid
    if grid.dimension != 3:
        raise ShapeError(f"{path}: has 2 axes {grid.size[:2]} and 1 component(s); a scalar 3-D image is expected")
    return grid


def _grid(layout: Layout, path: str | Path) -> Grid:
    spacing, origin = layout.spacing_mm, layout.origin_mm
    direction = tuple(layout.direction[:3, :3].ravel().tolist())
    try:
        return Grid(layout.size[:3], spacing[:3], origin[:3], direction)  # type: ignore[arg-type]
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def _read(path: str | Path, reorient: Reorient | None = None) -> sitk.Image:
    return read_zarr(path, scalar=True) if is_zarr(path) else read_voxels(Path(path), reorient)


def _scalar_volume(image: sitk.Image, name: str, *, plane: bool = False) -> sitk.Image:
    """The image, 3-D (with `plane`, or 2-D), with one real component and a sound geometry."""
    if not isinstance(image, sitk.Image):
        raise DataError(f"{name}: is a {type(image).__name__}; a sitk.Image is expected (read it with read_image)")
    size = image.GetSize()
    if image.GetDimension() == 4 and size[3] == 1:
        image = image[:, :, :, 0]
    expected = "a scalar 3-D or 2-D image" if plane else "a scalar 3-D image"
    if image.GetDimension() not in ((2, 3) if plane else (3,)):
        hint = " Pick one volume with image[..., 0]." if image.GetDimension() == 4 else ""
        raise ShapeError(f"{name}: has {len(size)} axes {size}; {expected} is expected.{hint}")
    if min(size[:3]) < 2:
        kind = "slice" if image.GetDimension() == 3 else "line"
        raise ShapeError(f"{name}: is a single {kind} {size}; {expected} is expected")
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetPixelID() in _COMPLEX:
        raise ShapeError(
            f"{name}: has voxels of type {image.GetPixelIDTypeAsString()}; one real number each is expected"
        )
    try:
        Grid.of(image)
    except (GeometryError, ShapeError) as error:
        raise type(error)(f"{name}: {error}") from error
    return image
