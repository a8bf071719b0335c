"""Scores of a registration."""

from dsir_metric.evaluate.overlap import dice

__all__ = ["dice"]
