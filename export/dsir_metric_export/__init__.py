"""A trained network to a model file, ONNX with its card inside, checked against torch; and back, to train it on.

A model file to a model repository for servers as well: that alone needs no torch, so the rest is imported when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsir_metric_export.export import export_model, export_network
    from dsir_metric_export.read import read_network
    from dsir_metric_export.triton import Deployment, export_triton

__all__ = ["Deployment", "export_model", "export_network", "export_triton", "read_network"]

_HOMES = {
    "Deployment": "triton",
    "export_model": "export",
    "export_network": "export",
    "export_triton": "triton",
    "read_network": "read",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
