"""Read and write ITK transforms, in LPS millimetres."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dsir_metric.errors import DataError, ShapeError
from dsir_metric.io.atomic import atomic
from dsir_metric.io.room import check_room

__all__ = ["check_transform", "put_transform", "read_transform", "write_transform"]

_LEAST_DETERMINANT = 1e-6
_PART_BYTES = 1 << 14  # of an HDF5 file beside the numbers, for each transform in it; measured: 9000 at most


def read_transform(path: str | Path) -> sitk.Transform:
    """Read a 3-D transform that maps fixed to moving points.

    Parameters
    ----------
    path : str or Path
        .h5, .tfm, .txt, .mat or .xfm, as ITK, Slicer and ANTs write them.

    Raises
    ------
    DataError
        If the file is missing or holds no transform, or a linear one that squeezes space flat or is not finite.
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
    return check_transform(transform, str(path))


def check_transform(transform: sitk.Transform, name: str) -> sitk.Transform:
    """The checks of `read_transform` on a transform in memory; `name` begins the error messages."""
    if not isinstance(transform, sitk.Transform):
        raise DataError(f"{name}: is a {type(transform).__name__}; a sitk.Transform is expected (see read_transform)")
    if transform.GetDimension() != 3:
        raise ShapeError(f"{name}: the transform is {transform.GetDimension()}-D; a 3-D one is expected")
    if transform.IsLinear() and not _has_inverse(transform):
        raise DataError(f"{name}: the transform squeezes space flat or is not finite; give one that has an inverse")
    return transform


def _has_inverse(linear: sitk.Transform) -> bool:
    corners = np.array([linear.TransformPoint(p) for p in np.eye(4, 3).tolist()])
    edges = corners[:3] - corners[3]
    return bool(np.all(np.isfinite(edges)) and abs(np.linalg.det(edges)) > _LEAST_DETERMINANT)


def write_transform(transform: sitk.Transform, path: str | Path) -> None:
    """Write a transform, in the format of the ending of `path` (.h5 or .tfm), whole or not at all.

    Raises
    ------
    DataError
        If the folder refuses the file or no format fits the ending.
    """
    with atomic(path) as temporary:
        put_transform(transform, temporary)


def put_transform(transform: sitk.Transform, path: Path) -> None:
    """Write a transform into a file that appears when it is whole; see `write_together`.

    HDF5 crashes when the disk gets full while it writes, so it begins only where there is room.

    Raises
    ------
    OSError, RuntimeError
        If it cannot be written.
    """
    check_room(path, _most_bytes(transform))
    path.unlink()  # HDF5 locks the file that it writes, and refuses one that is locked
    sitk.WriteTransform(transform, str(path))


def _most_bytes(transform: sitk.Transform) -> int:
    """Size of an HDF5 file of a transform, rather too large."""
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        parts = (transform.GetNthTransform(k) for k in range(transform.GetNumberOfTransforms()))
        return _PART_BYTES + sum(map(_most_bytes, parts))
    numbers: int = transform.GetNumberOfParameters() + transform.GetNumberOfFixedParameters()
    return _PART_BYTES + 8 * numbers
