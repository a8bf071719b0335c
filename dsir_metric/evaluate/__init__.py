"""Scores of a registration, and of the representations it compares."""

from dsir_metric.evaluate.overlap import dice
from dsir_metric.evaluate.overlay import overlay, read_outline
from dsir_metric.evaluate.retrieval import Retrieval, retrieval

__all__ = ["Retrieval", "dice", "overlay", "read_outline", "retrieval"]
