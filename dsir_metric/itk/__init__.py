"""The ITK face (extra `itk`)."""

from dsir_metric.itk.convert import from_itk, to_itk, to_sitk
from dsir_metric.itk.transforms import transform_to_itk, transform_to_sitk

__all__ = ["from_itk", "to_itk", "to_sitk", "transform_to_itk", "transform_to_sitk"]
