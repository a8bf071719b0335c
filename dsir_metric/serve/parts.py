"""What is used of kserve, imported when a server starts."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import SimpleNamespace

from dsir_metric.errors import MissingDependencyError
from dsir_metric.packages import Package

__all__ = ["kserve_parts"]

_PACKAGE = Package("serve", "kserve", "0.21")
_WANTED = {
    "kserve": ("Model", "ModelRepository"),
    "kserve.model_server": ("app",),
    "kserve.protocol.dataplane": ("DataPlane",),
    "kserve.protocol.grpc": ("grpc_predict_v2_pb2",),
    "kserve.protocol.grpc.grpc_predict_v2_pb2": ("ModelInferResponse",),
    "kserve.protocol.grpc.grpc_predict_v2_pb2_grpc": ("add_GRPCInferenceServiceServicer_to_server",),
    "kserve.protocol.grpc.servicer": ("InferenceServicer",),
    "kserve.protocol.model_repository_extension": ("ModelRepositoryExtension",),
    "kserve.protocol.rest.server": ("RESTServer",),
    "google.protobuf.message": ("DecodeError",),
    "grpc": ("StatusCode", "aio", "ssl_server_credentials", "stream_unary_rpc_method_handler"),
    "uvicorn": ("Config", "Server"),
    "uvicorn.protocols.http.auto": ("AutoHTTPProtocol",),
}


def kserve_parts() -> SimpleNamespace:
    """Classes of kserve, grpc and uvicorn by their own names. kserve parses `sys.argv` when imported: it is given none.

    Raises
    ------
    MissingDependencyError
        If kserve is not installed, or tritonclient was imported before it: both define the same messages.
    """
    _PACKAGE.check()
    kept, sys.argv = sys.argv, sys.argv[:1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on what kserve uses of others
            found = {
                name: getattr(importlib.import_module(home), name) for home, names in _WANTED.items() for name in names
            }
    except (ImportError, AttributeError, TypeError) as error:
        raise MissingDependencyError(
            f"kserve cannot be imported ({error}); pip install 'dsir-metric[serve]', and be no client in this process"
        ) from error
    finally:
        sys.argv = kept
    return SimpleNamespace(**found)
