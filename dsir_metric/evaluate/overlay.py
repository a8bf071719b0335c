"""Two scans laid over each other by the outlines of one organ, where nothing better is known."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

from dsir_metric.errors import DataError
from dsir_metric.io import read_voxels

__all__ = ["overlay", "read_outline"]

_REACH_MM = 10.0  # outlines farther apart than this do not pull at each other
_STEPS, _SMOOTHING_VOX = 60, 2.0  # of the demons


def read_outline(file: str | Path) -> sitk.Image:
    """An organ as a mask of 0 and 1: the first channel of a 4-D label file, or all labels of a 3-D one.

    Raises
    ------
    DataError
        If the file cannot be read, is neither, or holds no label.
    """
    labels = read_voxels(Path(file))
    if labels.GetNumberOfComponentsPerPixel() != 1 or labels.GetDimension() not in (3, 4):
        raise DataError(f"{file}: a label image with 3 axes, or 4, is expected; {labels.GetDimension()} axes came")
    organ: sitk.Image = (labels[:, :, :, 0] if labels.GetDimension() == 4 else labels) > 0
    if not sitk.GetArrayViewFromImage(organ).any():
        raise DataError(f"{file}: holds no label; the outline of an organ is needed")
    return organ


def overlay(fixed: sitk.Image, moving: sitk.Image, *, smooth: bool = False) -> sitk.Transform:
    """The transform that brings the outlines of two masks together, in the least-squares sense.

    It compares signed distances to the outlines. Inside the organ it is only as good as its form tells.

    Parameters
    ----------
    fixed, moving : sitk.Image
        Masks of 0 and 1.
    smooth : bool
        Whether a smooth displacement (demons) follows the affine transform.

    Returns
    -------
    sitk.Transform
        From points of `fixed` to points of `moving`, LPS mm.
    """
    affine: sitk.Transform = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    distances = [_distance(mask) for mask in (fixed, moving)]
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsConjugateGradientLineSearch(1.0, 200, 1e-7)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(affine)
    method.Execute(*distances)
    if not smooth:
        return affine
    coarse = distances[0][::2, ::2, ::2]
    moved = sitk.Resample(distances[1], coarse, affine, sitk.sitkLinear, _REACH_MM)
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(_STEPS)
    demons.SetStandardDeviations(_SMOOTHING_VOX)
    field = sitk.Cast(demons.Execute(coarse, moved), sitk.sitkVectorFloat64)
    return sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(field)])  # the last comes first


def _distance(mask: sitk.Image) -> sitk.Image:
    """Signed distance to the outline, mm, positive outside, up to `_REACH_MM`."""
    distance = sitk.SignedMaurerDistanceMap(mask, False, False, True)
    clamped: sitk.Image = sitk.Clamp(distance, sitk.sitkFloat32, -_REACH_MM, _REACH_MM)
    return clamped
