"""Read and write images; what cannot be registered is refused here, with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import DataError, DsirError, GeometryError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.io.atomic import atomic
from dsir_metric.io.nifti import check_nifti, is_whole
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


def read_image(path: str | Path) -> sitk.Image:
    """Read a scalar 3-D image.

    Parameters
    ----------
    path : str or Path
        Any format ITK reads: NIfTI, NRRD, MetaImage, ... A fourth axis of length 1 is dropped. Or OME-Zarr, see
        `dsir_metric.io.zarr` for how to choose a level or channel.

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
    """
    return check_image(_read(Path(path)), str(path))


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


def read_grid(path: str | Path) -> Grid:
    """Grid of a 3-D image with one component, from the header alone; voxels are not looked at.

    Raises
    ------
    DataError, ShapeError, GeometryError
        As `read_image`, so far as the header tells.
    """
    if is_zarr(path):
        return _volume_grid(path)
    path = _present(Path(path))
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _translated(error, path) from error
    size, axes = reader.GetSize(), reader.GetDimension()
    if axes not in (3, 4) or any(n != 1 for n in size[3:]) or reader.GetNumberOfComponents() != 1:
        components = reader.GetNumberOfComponents()
        raise ShapeError(
            f"{path}: has {axes} axes {size} and {components} component(s); a scalar 3-D image is expected"
        )
    direction = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3].ravel().tolist()
    try:
        return Grid(size[:3], reader.GetSpacing()[:3], reader.GetOrigin()[:3], tuple(direction))
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def read_labels(path: str | Path) -> sitk.Image:
    """Read a 3-D label image; labels stored as floats are taken when they are whole numbers.

    Returns
    -------
    sitk.Image
        int32; 0 is background.

    Raises
    ------
    DataError, ShapeError, GeometryError
        As `read_image`, but a constant image is allowed; DataError if a label is no whole number.
    """
    image = _scalar_volume(_read(Path(path)), str(path))
    values: NDArray[np.generic] = sitk.GetArrayViewFromImage(image)
    if not np.all(np.isfinite(values)) or np.any(values != np.rint(values)):
        raise DataError(f"{path}: labels are whole numbers, others came; was an image given for a label image?")
    labels: sitk.Image = sitk.Cast(image, sitk.sitkInt32)
    return labels


def read_mask(path: str | Path, like: Grid) -> sitk.Image:
    """Read a mask, where anything but 0 counts.

    Parameters
    ----------
    path : str or Path
    like : Grid
        Grid of the image the mask belongs to.

    Returns
    -------
    sitk.Image
        uint8, 0 or 1.

    Raises
    ------
    DataError
        If no voxel is set.
    GeometryError
        If the mask lies on another grid than `like`.
    """
    return check_mask(_read(Path(path)), like, str(path))


def check_mask(image: sitk.Image, like: Grid, name: str) -> sitk.Image:
    """The checks of `read_mask` on a mask in memory; `name` begins the error messages. Gives it as uint8, 0 or 1."""
    image = _scalar_volume(image, name)
    if not Grid.of(image).matches(like):
        raise GeometryError(
            f"{name}: the mask lies on another grid (size {image.GetSize()}) than its image (size {like.size}); "
            "resample it, nearest neighbour, onto the image"
        )
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
    sitk.WriteImage(image, str(path), useCompression=True)
    size = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    if path.name.lower().endswith((".nii", ".nii.gz")) and not is_whole(path, size):
        raise RuntimeError("ITK wrote a part of it and did not say why")


def _present(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path}: there is no such file")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give an image file (convert a DICOM series to one first)")
    return path


def _volume_grid(path: str | Path) -> Grid:
    grid = open_zarr(path, scalar=True).grid
    if grid.dimension != 3:
        raise ShapeError(f"{path}: has 2 axes {grid.size[:2]} and 1 component(s); a scalar 3-D image is expected")
    return grid


def _read(path: Path) -> sitk.Image:
    if is_zarr(path):
        return read_zarr(path, scalar=True)
    _present(path)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        check_nifti(path)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise _translated(error, path) from error


def _translated(error: RuntimeError, path: Path) -> DsirError:
    """What SimpleITK says in many lines, as one of ours in one."""
    text = str(error)
    if "Zero-valued spacing" in text:
        return GeometryError(f"{path}: the spacing has a zero; mend the header")
    if "orthonormal" in text:
        return GeometryError(f"{path}: the direction matrix is not orthonormal; mend the header")
    if "Unable to determine ImageIO reader" in text:
        return DataError(f"{path}: is no image that ITK reads (NIfTI, NRRD, MetaImage, ...)")
    return DataError(f"{path}: is truncated or damaged; copy the file again")


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
