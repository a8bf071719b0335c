"""Read and write ITK transforms, in LPS millimetres."""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import DataError, GeometryError, ShapeError, is_out_of_memory
from dsir_metric.geometry import Grid, named
from dsir_metric.io import metaimage, nifti, nrrd
from dsir_metric.io.apart import read_apart
from dsir_metric.io.atomic import atomic
from dsir_metric.io.files import aliased, named_for_itk, regular_file
from dsir_metric.io.header import reading
from dsir_metric.io.room import check_room
from dsir_metric.io.voxels import intent, read_voxels

__all__ = ["check_transform", "put_transform", "read_transform", "write_transform"]

_LEAST_DETERMINANT = 1e-6
_IMAGES = (*nifti.ENDINGS, *nrrd.ENDINGS, *metaimage.ENDINGS)
_TEXTS = (".tfm", ".txt")
_MATLAB, _MATLAB_BIG = struct.Struct("<5I"), struct.Struct(">5I")  # the kind, rows, columns, complex or not, letters
_MOST_KIND = 5000  # of a matrix; above is the number read in the wrong byte order
_GRID = rb"(?m)^[ \t]*Displacement_Volume[ \t]*=[ \t]*([^;\s]+)"
_LPS = ("", "left-posterior-superior", "lps")
_LARGEST = 1e12  # a parameter beyond this, mm or not, is of no transform of a body
_PART_BYTES = 1 << 14  # of an HDF5 file beside the numbers, for each transform in it; measured: 9000 at most


def read_transform(path: str | Path) -> sitk.Transform:
    """Read a 3-D transform that maps fixed to moving points.

    Parameters
    ----------
    path : str or Path
        .h5, .tfm, .txt, .mat or .xfm, as ITK, Slicer and ANTs write them. Or an image of displacements (.nii.gz, .nrrd,
        .mha, ...) with three components a voxel, in LPS mm, as ANTs, greedy and ITK write them; a NIfTI that says it
        holds displacements (intent 1006) has them in RAS mm.

    Raises
    ------
    DataError
        If the file is missing or holds no transform, or one that is not finite or squeezes space flat.
    ShapeError
        If the transform is not 3-D.
    GeometryError
        If the displacements lie nowhere.
    MemoryError
        If it does not fit into memory.
    """
    path = regular_file(path, "give a file with a transform")
    if path.name.lower().endswith(_IMAGES):
        return check_transform(_displacements(path), str(path))
    if path.suffix.lower() in _TEXTS:
        _check_text(path)
    if path.suffix.lower() == ".mat":
        _check_matlab(path)
    files = {f"source{path.suffix}": path, **_grids(path)}
    with aliased(files) as source, tempfile.TemporaryDirectory(prefix="dsir-") as folder:
        copy = os.path.join(folder, "copy.h5")
        try:
            read_apart("transform", "", source, copy, str(path))
            transform: sitk.Transform = sitk.ReadTransform(copy)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError(f"{path}: does not fit into memory") from error
            raise DataError(
                f"{path}: is damaged, or holds no transform that ITK reads (.h5, .tfm, .txt, .mat, .xfm, or an image "
                "of displacements)"
            ) from error
    return check_transform(transform, str(path))


def _grids(path: Path) -> dict[str, Path]:
    """The files of displacements that an .xfm of MINC names, which lie beside it."""
    if path.suffix.lower() != ".xfm":
        return {}
    with reading(str(path)):
        names = {found.decode("utf-8", "replace") for found in re.findall(_GRID, path.read_bytes())}
    return {name: regular_file(path.with_name(name)) for name in names if os.path.basename(name) == name}


def _check_text(path: Path) -> None:
    """See that a transform in text is whole: ITK takes one that ends amid a number, or without its centre."""
    with reading(str(path)):
        content = path.read_bytes()
    names = re.findall(rb"^[ \t]*(Transform|Parameters|FixedParameters)[ \t]*:[ \t]*(\w*)", content, re.MULTILINE)
    counts = Counter(name for name, kind in names if not (name == b"Transform" and b"Composite" in kind))
    if not counts or len({counts[name] for name in (b"Transform", b"Parameters", b"FixedParameters")}) > 1:
        raise DataError(
            f"{path}: is damaged, or holds no transform: each needs lines Transform, Parameters and FixedParameters; "
            "copy the file again"
        )
    if not content.endswith(b"\n"):
        raise DataError(
            f"{path}: is damaged, or holds no transform: its last line does not end; copy the file again, or add a "
            "line break if it is whole"
        )


def _check_matlab(path: Path) -> None:
    """See that a file of MATLAB (level 4, as ITK writes) has all its numbers: ITK makes up those that are missing.

    References
    ----------
    https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf, chapter 2.
    """
    with reading(str(path)), path.open("rb") as file:
        length, end = path.stat().st_size, 0
        while end < length:
            file.seek(end)
            header = file.read(_MATLAB.size)
            if len(header) < _MATLAB.size:
                break
            kind, rows, columns, imaginary, letters = _MATLAB.unpack(header)
            if not 0 <= kind < _MOST_KIND:  # of a machine of the other byte order
                kind, rows, columns, imaginary, letters = _MATLAB_BIG.unpack(header)
            number = 4 if kind // 10 % 10 == 1 else 8  # bytes
            end += _MATLAB.size + letters + rows * columns * number * (2 if imaginary else 1)
    if end != length:
        raise DataError(f"{path}: is damaged, or holds no transform: numbers are missing at its end; copy it again")


def _displacements(path: Path) -> sitk.Transform:
    """The transform of an image of displacements."""
    image = read_voxels(path)
    said = intent(path)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise DataError(
            f"{path}: holds no transform: it is an image with {image.GetDimension()} axes {image.GetSize()} and "
            f"{image.GetNumberOfComponentsPerPixel()} component(s); an image of displacements has 3 of each"
        )
    if said.lower() not in _LPS:
        raise DataError(
            f"{path}: holds vectors of the kind {said!r}; displacements in LPS mm, as ANTs writes them, are expected: "
            "convert them first"
        )
    try:
        Grid.of(image)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error
    return sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))


def check_transform(transform: sitk.Transform, name: str) -> sitk.Transform:
    """The checks of `read_transform` on a transform in memory, which comes back as `named`; `name` begins messages."""
    if not isinstance(transform, sitk.Transform):
        raise DataError(f"{name}: is a {type(transform).__name__}; a sitk.Transform is expected (see read_transform)")
    if transform.GetDimension() != 3:
        raise ShapeError(f"{name}: the transform is {transform.GetDimension()}-D; a 3-D one is expected")
    try:
        transform = named(transform)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    if transform.IsLinear() and not _has_inverse(transform):
        raise DataError(f"{name}: the transform squeezes space flat or is not finite; give one that has an inverse")
    if not _is_finite(transform):
        raise DataError(f"{name}: the transform has parameters that are not finite; give one that was written whole")
    return transform


def _is_finite(transform: sitk.Transform) -> bool:
    part = transform.Downcast()
    if isinstance(part, sitk.CompositeTransform):
        return all(_is_finite(part.GetNthTransform(k)) for k in range(part.GetNumberOfTransforms()))
    if isinstance(part, sitk.DisplacementFieldTransform):  # the field as a tuple of parameters would take 20 times more
        values: NDArray[np.float64] = sitk.GetArrayViewFromImage(part.GetDisplacementField())
    else:
        values = np.array(part.GetParameters() + part.GetFixedParameters())
    return bool(np.all(np.abs(values) < _LARGEST))


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
    with named_for_itk(path) as name:
        sitk.WriteTransform(transform, name)


def _most_bytes(transform: sitk.Transform) -> int:
    """Size of an HDF5 file of a transform, rather too large."""
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        parts = (transform.GetNthTransform(k) for k in range(transform.GetNumberOfTransforms()))
        return _PART_BYTES + sum(map(_most_bytes, parts))
    numbers: int = transform.GetNumberOfParameters() + transform.GetNumberOfFixedParameters()
    return _PART_BYTES + 8 * numbers
