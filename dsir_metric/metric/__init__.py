"""The DNS cosine metric: compiled kernel, sampling, and the chain rule to the parameters of any transform."""

from dsir_metric.metric.cosine import CosineMetric
from dsir_metric.metric.sampling import Sampling

__all__ = ["CosineMetric", "Sampling"]
