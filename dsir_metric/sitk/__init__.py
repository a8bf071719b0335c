"""The SimpleITK face: a registration method that takes the place of SimpleITK's.

>>> from dsir_metric.sitk import ImageRegistrationMethod
"""

from dsir_metric.sitk.method import ImageRegistrationMethod

__all__ = ["ImageRegistrationMethod"]
