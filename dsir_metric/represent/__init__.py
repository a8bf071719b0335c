"""Scans to representations: intensity rule, tiles, ONNX Runtime. ONNX Runtime is imported when a model is opened."""

from dsir_metric.represent.cache import Cache
from dsir_metric.represent.card import ModelCard
from dsir_metric.represent.intensity import IntensityRule, resolve_intensity
from dsir_metric.represent.loading import load_card
from dsir_metric.represent.pair import PairRepresenter, represent_pair
from dsir_metric.represent.representation import Representation
from dsir_metric.represent.representer import Representer

__all__ = [
    "Cache",
    "IntensityRule",
    "ModelCard",
    "PairRepresenter",
    "Representation",
    "Representer",
    "load_card",
    "represent_pair",
    "resolve_intensity",
]
