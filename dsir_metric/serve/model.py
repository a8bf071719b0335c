"""An `Answerer` as kserve wants a model: tensors of a request in, tensors of a response out."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, DsirError, ModelFileError
from dsir_metric.represent.wire import CARD, DESCRIPTORS, IMAGE, Tensor
from dsir_metric.serve.answer import Answerer
from dsir_metric.serve.config import VERSION, ServeConfig
from dsir_metric.serve.limit import Full, Turnstile

__all__ = ["data_plane"]

_log = logging.getLogger("dsir_metric.serve")
_MOST_TEXT_VOXELS = 50_000  # 24 numbers each


def data_plane(kserve: SimpleNamespace, config: ServeConfig, answerer: Answerer) -> Any:
    """kserve's DataPlane, which both protocols ask, with the one model in it."""  # noqa: D403

    class DataPlane(kserve.DataPlane):  # type: ignore[misc, name-defined]
        """Reads the body of a binary request as bytes, where kserve's makes a list of Python numbers of it."""

        def decode_inference_request(self, body: Any, headers: Mapping[str, str], model_name: str) -> Any:
            if not isinstance(body, bytes):
                return super().decode_inference_request(body, headers, model_name)
            try:
                length = int(headers.get("inference-header-content-length", len(body)))
                return _decoded(kserve, body, length, model_name)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise kserve.InvalidInput(f"the request is damaged ({error!r})") from error

    repository = kserve.ModelRepository()
    repository.update(_model(kserve, config, answerer))
    return DataPlane(repository)


def _model(kserve: SimpleNamespace, config: ServeConfig, answerer: Answerer) -> Any:
    turnstile = Turnstile(config.concurrency, config.queue)

    class Model(kserve.Model):  # type: ignore[misc, name-defined]
        """Says what it takes and gives, and answers."""

        def get_input_types(self) -> list[dict[str, Any]]:
            return [_told(tensor) for tensor in answerer.offer.inputs]

        def get_output_types(self) -> list[dict[str, Any]]:
            return [_told(tensor) for tensor in answerer.offer.outputs]

        async def predict(self, payload: Any, headers: Mapping[str, str] | None = None) -> Any:
            try:
                return _response(kserve, config.name, payload, await _answer(kserve, answerer, turnstile, payload))
            except Full as full:
                busy = kserve.ServerNotReady()
                busy.reason = busy.error_msg = str(full)  # the one for gRPC, the other for HTTP
                raise busy from full
            except ModelFileError as error:
                _log.error("%s", error)
                raise kserve.InferenceError(str(error)) from error
            except DsirError as error:
                _log.warning("refused: %s", error)
                raise kserve.InvalidInput(str(error)) from error

    model = Model(config.name)
    model.ready = True
    return model


async def _answer(
    kserve: SimpleNamespace, answerer: Answerer, turnstile: Turnstile, payload: Any
) -> dict[str, NDArray[Any]]:
    """Outputs that a request asks for; all of them where it names none."""
    if not isinstance(payload, kserve.InferRequest):
        raise ConfigError("only the Open Inference Protocol, /v2, is spoken here")
    wanted = [output.name for output in payload.request_outputs or ()] or [DESCRIPTORS, CARD]
    given = {entry.name: _array(entry) for entry in payload.inputs}
    found: dict[str, NDArray[Any]] = {}
    if CARD in wanted:
        found[CARD] = answerer.offer.to_bytes()
    if DESCRIPTORS in wanted:
        _check_text(payload, answerer.offer.precision, given)
        found[DESCRIPTORS] = await turnstile.run(lambda: answerer(given))
    return found


def _check_text(payload: Any, precision: str, given: Mapping[str, NDArray[Any]]) -> None:
    """Refuse what would be written out number by number: half precision has no text, and large answers take minutes."""
    if payload.request_outputs and not payload.from_grpc:
        binary = all(output.binary_data for output in payload.request_outputs)
    else:
        binary = payload.use_binary_outputs or (payload.from_grpc and precision == "fp16")
    if binary:
        return
    if precision == "fp16":
        raise ConfigError("half precision (fp16) cannot be answered as text; ask for binary data")
    if IMAGE.name in given and given[IMAGE.name].size > _MOST_TEXT_VOXELS:
        raise ConfigError(f"no image of more than {_MOST_TEXT_VOXELS} voxels is answered as text; ask for binary data")


def _array(entry: Any) -> NDArray[Any]:
    """A tensor of a request."""
    try:
        value: NDArray[Any] = entry.as_numpy()
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{entry.name}: the content does not fit {entry.datatype} {entry.shape} ({error})") from error
    return value


def _response(kserve: SimpleNamespace, name: str, payload: Any, outputs: Mapping[str, NDArray[Any]]) -> Any:
    """Tensors to kserve's response. Without the last two arguments it would answer in JSON, whatever was asked for."""
    kinds = {"float16": "FP16", "float32": "FP32", "uint8": "UINT8"}
    tensors = []
    for output, value in outputs.items():
        tensors.append(kserve.InferOutput(output, list(value.shape), kinds[value.dtype.name]))
        tensors[-1].set_data_from_numpy(value)
    return kserve.InferResponse(
        payload.id or "",
        name,
        tensors,
        model_version=VERSION,
        requested_outputs=payload.request_outputs,
        use_binary_outputs=payload.use_binary_outputs,
    )


def _decoded(kserve: SimpleNamespace, body: bytes, length: int, model_name: str) -> Any:
    """An InferRequest whose tensors are views of the bytes behind the JSON."""
    told = json.loads(body[:length])
    content, at, inputs = memoryview(body), length, []
    for entry in told["inputs"]:
        parameters = dict(entry.get("parameters") or {})
        tensor = kserve.InferInput(str(entry["name"]), entry["shape"], entry["datatype"], entry.get("data"), parameters)
        size = parameters.get("binary_data_size")
        if size is not None:
            tensor._raw_data = content[at : at + size]
            at += size
        inputs.append(tensor)
    if at != len(body):
        raise ValueError(f"the tensors are said to have {at - length} of {len(body) - length} bytes")
    outputs = [
        kserve.RequestedOutput(str(entry["name"]), dict(entry.get("parameters") or {}))
        for entry in told.get("outputs") or ()
    ]
    return kserve.InferRequest(
        model_name,
        inputs,
        request_id=str(told.get("id") or ""),
        parameters=dict(told.get("parameters") or {}),
        request_outputs=outputs or None,
    )


def _told(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
