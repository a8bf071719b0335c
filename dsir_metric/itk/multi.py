"""One of ITK's own scalar metrics for each channel, and their sum where the wheel has it.

For unit vectors the squared differences of all channels add up to 2 - 2 cosine.
"""

from __future__ import annotations

from typing import Any

import SimpleITK as sitk

from dsir_metric.bridges.channels import channel_pair
from dsir_metric.errors import MissingDependencyError
from dsir_metric.itk.convert import from_itk, to_itk
from dsir_metric.itk.metric import mask_of
from dsir_metric.itk.package import load_itk
from dsir_metric.represent.representation import Representation

__all__ = ["channel_metrics", "multi_metric_method"]


def channel_metrics(fixed: Any, moving: Any, *, channels: int | None = None, fixed_mask: Any = None) -> list[Any]:
    """A `MeanSquaresImageToImageMetricv4` for each channel of two representations.

    At the voxels of both, half the sum of their values minus 1 is the negated mean cosine.

    Parameters
    ----------
    fixed, moving : Representation or itk.VectorImage
        Unit vectors, with the same number of channels.
    channels : int, optional
        How many channels an orthogonal projection of both images together leaves; all as they are by default.
    fixed_mask : itk.Image or itk.ImageMaskSpatialObject, optional
        Points count where it is not 0; on the grid of `fixed`.

    Returns
    -------
    list of itk.MeanSquaresImageToImageMetricv4
        Give them one and the same transform.

    Raises
    ------
    ConfigError, ShapeError, DataError
        See `channel_pair`.
    """
    itk = load_itk()
    fixed, moving = (image if isinstance(image, Representation) else from_itk(image) for image in (fixed, moving))
    mask = mask_of(fixed_mask, "fixed mask")
    if channels is not None:
        body = fixed.grid.image() + 1 if mask is None else mask
        pair = channel_pair(fixed, moving, body, moving.grid.image() + 1, channels)
        fixed, moving = pair.fixed, pair.moving
    scalar = itk.Image[itk.F, 3]
    metrics = []
    for first, second in zip(_channels(fixed), _channels(moving), strict=True):
        metric = itk.MeanSquaresImageToImageMetricv4[scalar, scalar].New()
        metric.SetFixedImage(first)
        metric.SetMovingImage(second)
        if mask is not None:
            spatial = itk.ImageMaskSpatialObject[3].New()
            spatial.SetImage(to_itk(sitk.NotEqual(mask, 0)))
            spatial.Update()
            metric.SetFixedImageMask(spatial)
        metrics.append(metric)
    return metrics


def multi_metric_method(fixed: Any, moving: Any, *, channels: int | None = None, fixed_mask: Any = None) -> Any:
    """An `itk.ImageRegistrationMethodv4` on the sum of the channels' metrics; it lacks a transform and an optimiser.

    Parameters
    ----------
    fixed, moving, channels, fixed_mask
        See `channel_metrics`.

    Returns
    -------
    itk.ImageRegistrationMethodv4
        With an `ObjectToObjectMultiMetricv4` of equal weights.

    Raises
    ------
    MissingDependencyError
        If this itk has no `ObjectToObjectMultiMetricv4`; no wheel up to 6.0b2 has it.
    """
    itk = load_itk()
    if not hasattr(itk, "ObjectToObjectMultiMetricv4"):
        raise MissingDependencyError(
            f"itk {itk.__version__} has no ObjectToObjectMultiMetricv4 in Python (it came into ITK after 6.0b2); use "
            "impact_metric (dsir-metric[itk-impact]) or DNSCosineImageToImageMetricv4"
        )
    scalar = itk.Image[itk.F, 3]
    together = itk.ObjectToObjectMultiMetricv4[3, 3, scalar].New()
    method = itk.ImageRegistrationMethodv4[scalar, scalar].New()
    for number, metric in enumerate(channel_metrics(fixed, moving, channels=channels, fixed_mask=fixed_mask)):
        together.AddMetric(itk.as_metric_base(metric))
        method.SetFixedImage(number, metric.GetFixedImage())
        method.SetMovingImage(number, metric.GetMovingImage())
    method.SetMetric(together)
    return method


def _channels(image: Representation) -> list[Any]:
    whole = image.to_sitk()
    return [to_itk(sitk.VectorIndexSelectionCast(whole, k)) for k in range(image.channels)]
