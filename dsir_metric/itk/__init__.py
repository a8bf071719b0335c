"""The ITK face (extra `itk`)."""

from dsir_metric.itk.convert import to_itk

__all__ = ["to_itk"]
