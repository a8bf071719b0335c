"""Representations in ITK's own `ImageRegistrationMethodv4`, through the compiled metric of itk-impact.

itk-impact compares the features that a TorchScript model makes of each image. The model given to it here makes nothing:
it returns the representation it was saved with.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from dsir_metric.errors import MissingDependencyError, ShapeError
from dsir_metric.itk.convert import from_itk, to_itk
from dsir_metric.itk.metric import mask_of
from dsir_metric.itk.package import load_itk
from dsir_metric.itk.transforms import transform_to_sitk
from dsir_metric.packages import Package
from dsir_metric.represent.representation import Representation

__all__ = ["IMPACT", "check_impact", "impact_method", "impact_metric"]

IMPACT = Package("itk-impact", "itk-impact", "0.1.6")
TORCH = Package("itk-impact", "torch", "2.12")


def check_impact() -> None:
    """See that itk-impact can be used here.

    Raises
    ------
    MissingDependencyError
        If it is absent or too old, or torch is not the one it was compiled against: it would crash.
    """
    IMPACT.check()
    for requirement in requires(IMPACT.package) or ():
        name, _, wanted = requirement.partition("==")
        found = TORCH.version or "none"
        if name.strip() == "torch" and not found.startswith(wanted.strip().removesuffix("*")):
            raise MissingDependencyError(
                f"itk-impact {IMPACT.version} was compiled against torch {wanted.strip()}, {found} is installed: "
                "pip install 'dsir-metric[itk-impact]' in an environment of its own"
            )


def impact_metric(
    fixed: Any, moving: Any, *, fixed_mask: Any = None, initial_transform: Any = None, device: str = "cpu"
) -> Any:
    """1 - cosine of two representations as a compiled ITK v4 metric, for every v4 optimiser.

    Parameters
    ----------
    fixed, moving : Representation or itk.VectorImage
        With the same number of channels.
    fixed_mask : itk.Image or itk.ImageMaskSpatialObject, optional
        Points count where it is not 0.
    initial_transform : itk.Transform, optional
        Fixed to moving points: the moving representation is resampled through it onto the fixed grid, once. What is
        found then comes before it: compose the two.
    device : str
        "cpu" or "cuda".

    Returns
    -------
    itk.ImpactImageToImageMetricv4
        With blank images of the same geometry as its fixed and moving image.

    Raises
    ------
    MissingDependencyError
        See `check_impact`.
    ShapeError
        If the numbers of channels differ.

    Notes
    -----
    The metric reads the moving representation at x + T(x) - T0(x), T0 the transform it was initialised with: begin
    with the identity and one resolution level, and give an earlier transform as `initial_transform`. Between voxels it
    interpolates with cubic B-splines, where our own metric is trilinear.

    References
    ----------
    Boussot et al., IMPACT: a generic semantic loss for multimodal medical image registration, arXiv:2503.24121.
    """
    check_impact()
    itk = load_itk()
    fixed, moving = (image if isinstance(image, Representation) else from_itk(image) for image in (fixed, moving))
    if fixed.channels != moving.channels:
        raise ShapeError(f"fixed has {fixed.channels} channels and moving {moving.channels}; use one model for both")
    if initial_transform is not None:
        moving = moving.resampled(fixed.grid, transform_to_sitk(initial_transform), extend=True).unit()
    scalar = itk.Image[itk.F, 3]
    metric = itk.ImpactImageToImageMetricv4[scalar, scalar].New()
    metric.AddFixedModelConfiguration(_stored(fixed))
    metric.AddMovingModelConfiguration(_stored(moving))
    metric.SetFixedImage(_blank(fixed))
    metric.SetMovingImage(_blank(moving))
    metric.SetMode("Static")
    metric.SetDistance(["Cosine"])
    metric.SetLayersWeight([1.0])
    metric.SetSubsetFeatures([fixed.channels])
    metric.SetPCA([0])
    metric.SetFeaturesMapUpdateInterval(-1)
    metric.NormalizeLossesOff()
    metric.SetDevice(device)
    metric.SetUseFixedImageGradientFilter(False)  # the blank images have no gradient worth an image
    metric.SetUseMovingImageGradientFilter(False)
    mask = mask_of(fixed_mask, "fixed mask")
    if mask is not None:
        spatial = itk.ImageMaskSpatialObject[3].New()
        spatial.SetImage(to_itk(sitk.NotEqual(mask, 0)))
        spatial.Update()
        metric.SetFixedImageMask(spatial)
    return metric


def impact_method(metric: Any) -> Any:
    """An `itk.ImageRegistrationMethodv4` with that metric and one level; it lacks a transform and an optimiser.

    Parameters
    ----------
    metric : itk.ImpactImageToImageMetricv4
        From `impact_metric`.

    Returns
    -------
    itk.ImageRegistrationMethodv4
        Every voxel of the fixed grid is a sample.
    """
    itk = load_itk()
    scalar = itk.Image[itk.F, 3]
    method = itk.ImageRegistrationMethodv4[scalar, scalar].New()
    method.SetMetric(metric)
    method.SetFixedImage(metric.GetFixedImage())
    method.SetMovingImage(metric.GetMovingImage())
    method.SetNumberOfLevels(1)
    method.SetShrinkFactorsPerLevel([1])
    method.SetSmoothingSigmasPerLevel([0.0])
    return method


def _stored(image: Representation) -> Any:
    """A model configuration whose model returns `image`; it holds the model, the file was only its way in."""
    from dsir_metric.torch.stored import save_stored

    itk = load_itk()
    with tempfile.TemporaryDirectory(prefix="dsir-impact-") as folder:
        path = Path(folder) / "stored.pt"
        save_stored(image, path)
        return itk.ImpactModelConfiguration(
            str(path), 3, 1, [0, 0, 0], list(image.grid.spacing_mm), [0, 0, 0], [True], False
        )


def _blank(image: Representation) -> Any:
    return to_itk(image.grid.image(sitk.sitkFloat32))
