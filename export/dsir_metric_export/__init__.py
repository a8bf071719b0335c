"""A trained network to a model file: ONNX with its card inside, checked against torch."""

from dsir_metric_export.export import export_model, export_network

__all__ = ["export_model", "export_network"]
