"""Transforms, from ITK and to ITK: points go to the same places, parameters keep their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk

from dsir_metric.errors import ConfigError, DataError, ShapeError
from dsir_metric.itk.convert import to_itk, to_sitk
from dsir_metric.itk.package import load_itk
from dsir_metric.metric.transforms import concrete

__all__ = ["SUPPORTED", "transform_to_itk", "transform_to_sitk"]

_TEMPLATES: dict[str, tuple[int, ...]] = {  # template arguments in ITK after the precision
    "TranslationTransform": (3,),
    "Euler3DTransform": (),
    "VersorTransform": (),
    "VersorRigid3DTransform": (),
    "Similarity3DTransform": (),
    "ScaleTransform": (3,),
    "ScaleVersor3DTransform": (),
    "ScaleSkewVersor3DTransform": (),
    "AffineTransform": (3,),
    "BSplineTransform": (3, 3),
}
SUPPORTED = ("IdentityTransform", *_TEMPLATES, "DisplacementFieldTransform", "CompositeTransform")
_TAKE_DIMENSION = ("TranslationTransform", "ScaleTransform", "AffineTransform", "BSplineTransform")


def transform_to_sitk(transform: Any) -> sitk.Transform:
    """An ITK transform as a SimpleITK transform with the same parameters.

    Parameters
    ----------
    transform : itk.Transform or list of it
        3-D, one of `SUPPORTED`, B-splines of order 3; or what `itk.transformread` gives, a list with one transform.

    Returns
    -------
    sitk.Transform
        It owns copies of the parameters. In a composite the transform added last has the free parameters, whatever
        ITK was told to optimise.

    Raises
    ------
    DataError
        If it is no ITK transform, or a list with more than one.
    ShapeError
        If it is not 3-D.
    ConfigError
        If it is of another kind.
    """
    itk = load_itk()
    transform = _checked(_only(transform))
    name = transform.GetNameOfClass()
    if name == "CompositeTransform":
        parts = [transform.GetNthTransform(i) for i in range(transform.GetNumberOfTransforms())]
        return sitk.CompositeTransform([transform_to_sitk(part) for part in parts])
    if "DisplacementField" in name:  # those that smooth their updates among them
        field = to_sitk(transform.GetDisplacementField())
        return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    if name == "IdentityTransform":
        return sitk.Transform(3, sitk.sitkIdentity)
    if name not in _TEMPLATES:
        raise _unsupported(name)
    out: sitk.Transform = getattr(sitk, name)(*((3,) if name in _TAKE_DIMENSION else ()))
    out.SetFixedParameters(list(transform.GetFixedParameters()))
    out.SetParameters(np.asarray(itk.array_view_from_vnl_vector(transform.GetParameters())).tolist())
    return out


def transform_to_itk(transform: sitk.Transform) -> Any:
    """A SimpleITK transform as an ITK transform, double precision, with the same parameters.

    Parameters
    ----------
    transform : sitk.Transform
        3-D, one of `SUPPORTED`, B-splines of order 3.

    Returns
    -------
    itk.Transform
        What `itk.transformwrite` writes and `itk.resample_image_filter` takes. A composite is flat and optimises the
        transform added last alone, as it does in SimpleITK.

    Raises
    ------
    DataError
        If it is no SimpleITK transform.
    ShapeError
        If it is not 3-D.
    ConfigError
        If it is of another kind, or an empty composite.
    """
    itk = load_itk()
    if not isinstance(transform, sitk.Transform):
        raise DataError(f"a {type(transform).__name__} came; a sitk.Transform is expected")
    if transform.GetDimension() != 3:
        raise ShapeError(f"a 3-D transform is expected; a {transform.GetDimension()}-D one came")
    transform = concrete(transform)
    name = transform.GetName()
    if isinstance(transform, sitk.CompositeTransform):
        transform = sitk.CompositeTransform(transform)
        if transform.GetNumberOfTransforms() == 0:
            raise ConfigError("a composite transform without transforms came; give it one, or an identity transform")
        transform.FlattenTransform()  # ITK writes no composite inside another
        out = itk.CompositeTransform[itk.D, 3].New()
        for i in range(transform.GetNumberOfTransforms()):
            out.AddTransform(transform_to_itk(transform.GetNthTransform(i)))
        out.SetOnlyMostRecentTransformToOptimizeOn()
        return out
    if isinstance(transform, sitk.DisplacementFieldTransform):
        out = itk.DisplacementFieldTransform[itk.D, 3].New()
        out.SetDisplacementField(to_itk(transform.GetDisplacementField()))
        return out
    if transform.GetTransformEnum() == sitk.sitkIdentity:
        return itk.IdentityTransform[itk.D, 3].New()
    if name not in _TEMPLATES:
        raise _unsupported(name)
    if isinstance(transform, sitk.BSplineTransform) and transform.GetOrder() != 3:
        raise _unsupported(f"{name} of order {transform.GetOrder()}")
    template = getattr(itk, name)
    out = (template[(itk.D, *_TEMPLATES[name])] if _TEMPLATES[name] else template[itk.D]).New()
    out.SetFixedParameters(itk.OptimizerParameters[itk.D](list(transform.GetFixedParameters())))
    out.SetParameters(itk.OptimizerParameters[itk.D](list(transform.GetParameters())))
    return out


def _only(transform: Any) -> Any:
    """The one transform of a list, as `itk.transformread` gives it."""
    if not isinstance(transform, list | tuple):
        return transform
    if len(transform) != 1:
        raise DataError(
            f"a list of {len(transform)} transforms came; give one of them, or put them into an itk.CompositeTransform"
        )
    return transform[0]


def _checked(transform: Any) -> Any:
    """The transform as its own class, where it came as the general `itk.Transform`."""
    if not hasattr(transform, "GetInputSpaceDimension"):
        raise DataError(f"a {type(transform).__name__} came; an itk transform is expected")
    if transform.GetInputSpaceDimension() != 3:
        raise ShapeError(f"a 3-D transform is expected; a {transform.GetInputSpaceDimension()}-D one came")
    return load_itk().down_cast(transform)


def _unsupported(what: str) -> ConfigError:
    return ConfigError(f"a {what} came; supported are {', '.join(SUPPORTED)}, B-splines of order 3")
