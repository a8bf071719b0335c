"""Images and representations, from ITK and to ITK, with their place in space."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk

from dsir_metric.errors import DataError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.itk.package import load_itk
from dsir_metric.represent.representation import Representation

__all__ = ["components", "from_itk", "to_itk", "to_sitk"]

_VECTORS = ("float32", "float64")
_SCALARS = ("uint8", "int16", "uint16", "int32", "uint32", "uint64", *_VECTORS)


def to_itk(picture: Representation | sitk.Image) -> Any:
    """A representation, or a SimpleITK image, as an ITK image.

    Parameters
    ----------
    picture : Representation or sitk.Image
        3-D.

    Returns
    -------
    itk.VectorImage or itk.Image
        A representation and a float image of several components become an `itk.VectorImage`, float32 or float64, one
        component a channel; a scalar image an `itk.Image` of its pixel type. Spacing, origin and direction (LPS mm)
        are the same. It owns a copy of the values.

    Raises
    ------
    MissingDependencyError
        If the Python package `itk` is not installed.
    ShapeError
        If an image is not 3-D.
    DataError
        If ITK's Python package has no image of this pixel type.
    """
    itk = load_itk()
    image = picture.to_sitk() if isinstance(picture, Representation) else picture
    if not isinstance(image, sitk.Image):
        raise DataError(f"a {type(image).__name__} came; a sitk.Image or a Representation is expected")
    grid = Grid.of(image)
    if grid.dimension != 3:
        raise ShapeError(f"a 3-D image is expected; a {grid.dimension}-D one came")
    values = sitk.GetArrayViewFromImage(image)
    vector = image.GetNumberOfComponentsPerPixel() > 1
    if values.dtype.name not in (_VECTORS if vector else _SCALARS):  # itk itself would think ten seconds about this
        raise DataError(f"itk has no image of {image.GetPixelIDTypeAsString()}; cast it to 32-bit float")
    if vector:
        pixel = {"float32": itk.F, "float64": itk.D}[values.dtype.name]
        out = itk.image_from_array(values, ttype=itk.VectorImage[pixel, 3])
    else:
        out = itk.image_from_array(values)
    out.SetSpacing(grid.spacing_mm)
    out.SetOrigin(grid.origin_mm)
    out.SetDirection(itk.matrix_from_array(np.reshape(grid.direction, (3, 3))))
    return out


def to_sitk(image: Any, name: str = "image") -> sitk.Image:
    """An ITK image as a SimpleITK image.

    Parameters
    ----------
    image : itk.Image, itk.VectorImage or a filter that gives one
        3-D, of any pixel type; brought up to date.
    name : str
        Begins the error messages.

    Returns
    -------
    sitk.Image
        Of the same pixel type, with spacing, origin and direction; the origin is that of the first voxel held, also
        where a region begins at an index other than 0. It owns a copy of the values.

    Raises
    ------
    DataError
        If something else came.
    ShapeError
        If it is not 3-D.
    """
    itk = load_itk()
    count = components(image, name)
    image = itk.output(image)
    if image.GetImageDimension() != 3:
        raise ShapeError(f"{name}: a 3-D image is expected; one with {image.GetImageDimension()} axes came")
    values = itk.array_from_image(image)
    region = image.GetBufferedRegion()
    out = sitk.GetImageFromArray(values.reshape(*values.shape[:3], *([count] if count > 1 else [])), isVector=count > 1)
    out.SetSpacing(list(image.GetSpacing()))
    out.SetOrigin(list(image.TransformIndexToPhysicalPoint(region.GetIndex())))
    out.SetDirection(itk.array_from_matrix(image.GetDirection()).ravel())
    return out


def from_itk(image: Any, name: str = "image") -> Representation:
    """A representation from its `itk.VectorImage`; the inverse of `to_itk` but for the provenance.

    Raises
    ------
    DataError
        If it is no ITK image.
    ShapeError
        If it is not 3-D, has one component only or components that are no floats; `name` begins the message.
    """
    return Representation.from_sitk(to_sitk(image, name), name)


def components(image: Any, name: str) -> int:
    """How many components a voxel of an ITK image has, which is brought up to date.

    Raises
    ------
    DataError
        If it is no ITK image.
    """
    itk = load_itk()
    image = itk.output(image)
    if not hasattr(image, "GetNumberOfComponentsPerPixel") or isinstance(image, sitk.Image):
        raise DataError(f"{name}: is a {type(image).__name__}; an itk image is expected")
    image.Update()
    return int(image.GetNumberOfComponentsPerPixel())
