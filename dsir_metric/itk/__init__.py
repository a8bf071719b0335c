"""The ITK face (extra `itk`): images, transforms, the metric and registration in ITK's own types.

>>> from dsir_metric.itk import register
>>> transform = register(itk.imread("fixed.nii.gz"), itk.imread("moving.nii.gz")).transform
"""

from dsir_metric.itk.convert import from_itk, to_itk, to_sitk
from dsir_metric.itk.impact import impact_method, impact_metric
from dsir_metric.itk.metric import DNSCosineImageToImageMetricv4
from dsir_metric.itk.multi import channel_metrics, multi_metric_method
from dsir_metric.itk.registration import ItkRegistration, register
from dsir_metric.itk.transforms import transform_to_itk, transform_to_sitk

__all__ = [
    "DNSCosineImageToImageMetricv4",
    "ItkRegistration",
    "channel_metrics",
    "from_itk",
    "impact_method",
    "impact_metric",
    "multi_metric_method",
    "register",
    "to_itk",
    "to_sitk",
    "transform_to_itk",
    "transform_to_sitk",
]
