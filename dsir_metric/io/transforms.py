"""Read and write ITK transforms, in LPS millimetres."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

from dsir_metric.errors import DataError, ShapeError
from dsir_metric.io.atomic import atomic

__all__ = ["read_transform", "write_transform"]


def read_transform(path: str | Path) -> sitk.Transform:
    """Read a 3-D transform that maps fixed to moving points.

    Parameters
    ----------
    path : str or Path
        .h5, .tfm, .txt, .mat or .xfm, as ITK, Slicer and ANTs write them.

    Raises
    ------
    DataError
        If the file is missing or holds no transform.
    ShapeError
        If the transform is not 3-D.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        transform: sitk.Transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise DataError(f"{path}: holds no transform that ITK reads (.h5, .tfm, .txt, .mat, .xfm)") from error
    if transform.GetDimension() != 3:
        raise ShapeError(f"{path}: the transform is {transform.GetDimension()}-D; a 3-D one is expected")
    return transform


def write_transform(transform: sitk.Transform, path: str | Path) -> None:
    """Write a transform, in the format of the ending of `path` (.h5 or .tfm), whole or not at all.

    Raises
    ------
    DataError
        If the folder refuses the file or no format fits the ending.
    """
    with atomic(path) as temporary:
        sitk.WriteTransform(transform, str(temporary))
