"""A trained network to a model file, ONNX with its card inside, checked against torch; and back, to train it on."""

from dsir_metric_export.export import export_model, export_network
from dsir_metric_export.read import read_network

__all__ = ["export_model", "export_network", "read_network"]
