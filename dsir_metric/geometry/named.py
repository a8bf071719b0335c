"""Transforms of kinds for which SimpleITK has no class."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from dsir_metric.errors import DataError

__all__ = ["named"]


def named(transform: sitk.Transform) -> sitk.Transform:
    """Return the same map made of transforms that SimpleITK has classes for.

    ITK-SNAP and Convert3D write a `MatrixOffsetTransformBase`. SimpleITK gives it as a composite whose only part is
    again that composite, without end; it becomes an affine transform here.

    Parameters
    ----------
    transform : sitk.Transform
        Of any dimension, in LPS mm.

    Returns
    -------
    sitk.Transform
        The one that was given, where all its parts have classes.

    Raises
    ------
    DataError
        If a part without a class is not linear.
    """
    if not _is_composite(transform) or not any(map(_is_composite, _parts(sitk.CompositeTransform(transform)))):
        return transform
    flat = sitk.CompositeTransform(transform)
    flat.FlattenTransform()  # what is a composite after this is a kind without a class
    return sitk.CompositeTransform([_affine(part) if _is_composite(part) else part for part in _parts(flat)])


def _is_composite(transform: sitk.Transform) -> bool:
    return bool(transform.GetTransformEnum() == sitk.sitkComposite)


def _parts(composite: sitk.CompositeTransform) -> list[sitk.Transform]:
    return [composite.GetNthTransform(k) for k in range(composite.GetNumberOfTransforms())]


def _affine(linear: sitk.Transform) -> sitk.AffineTransform:
    if not linear.IsLinear():
        raise DataError("a part of the transform is of a kind that SimpleITK has no class for: resample it to a field")
    axes = linear.GetDimension()
    offset = np.array(linear.TransformPoint((0.0,) * axes))
    columns = [np.array(linear.TransformPoint(unit)) - offset for unit in np.eye(axes).tolist()]
    return sitk.AffineTransform(np.transpose(columns).ravel().tolist(), offset.tolist())
