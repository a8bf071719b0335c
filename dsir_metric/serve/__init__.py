"""A model behind HTTP and gRPC. kserve is imported when a server starts; a process that did so cannot be a client."""

from dsir_metric.serve.answer import Answerer
from dsir_metric.serve.config import ServeConfig
from dsir_metric.serve.server import Endpoints, serve

__all__ = ["Answerer", "Endpoints", "ServeConfig", "serve"]
