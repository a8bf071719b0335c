"""The model as kserve knows it: what it is asked for its state, its tensors and its metrics."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, DsirError
from dsir_metric.represent.wire import CARD, DESCRIPTORS, IMAGE, Tensor
from dsir_metric.serve.answer import Answerer
from dsir_metric.serve.config import ServeConfig
from dsir_metric.serve.limit import Turnstile
from dsir_metric.serve.request import InferenceRequest

__all__ = ["Outputs", "data_plane"]

Outputs = dict[str, NDArray[Any]]
_log = logging.getLogger("dsir_metric.serve")
_MOST_TEXT_VOXELS = 50_000  # 24 numbers each


def data_plane(kserve: SimpleNamespace, config: ServeConfig, answerer: Answerer) -> Any:
    """kserve's DataPlane, which both protocols ask, with the one model in it."""  # noqa: D403
    repository = kserve.ModelRepository()
    repository.update(_model(kserve, config, answerer))
    return kserve.DataPlane(repository)


def _model(kserve: SimpleNamespace, config: ServeConfig, answerer: Answerer) -> Any:
    turnstile = Turnstile(config.concurrency, config.queue)

    class Model(kserve.Model):  # type: ignore[misc, name-defined]
        """Says what it takes and gives, and answers an InferenceRequest."""

        def get_input_types(self) -> list[dict[str, Any]]:
            return [_told(tensor) for tensor in answerer.offer.inputs]

        def get_output_types(self) -> list[dict[str, Any]]:
            return [_told(tensor) for tensor in answerer.offer.outputs]

        async def predict(self, payload: InferenceRequest, headers: Mapping[str, str] | None = None) -> Outputs:
            return await _answer(answerer, turnstile, payload)

    model = Model(config.name)
    model.ready = True
    return model


async def _answer(answerer: Answerer, turnstile: Turnstile, request: InferenceRequest) -> Outputs:
    """Outputs that a request asks for. Whoever cancels this ends the computation before its next tile."""
    found: Outputs = {}
    if CARD in request.outputs:
        found[CARD] = answerer.offer.to_bytes()
    if DESCRIPTORS in request.outputs:
        try:
            _check_text(request, answerer.offer.precision)
            task = await asyncio.to_thread(answerer.check, request.inputs)
        except DsirError as error:
            _log.warning("refused: %s", error)
            raise
        abandoned = threading.Event()
        found[DESCRIPTORS] = await turnstile.run(lambda: answerer.describe(task, abandoned), abandoned.set)
    return {name: found[name] for name in request.outputs}


def _check_text(request: InferenceRequest, precision: str) -> None:
    """Refuse what would be written out number by number: half precision has no text, and large answers take minutes."""
    if DESCRIPTORS not in request.as_text:
        return
    if precision == "fp16":
        raise ConfigError("half precision (fp16) cannot be answered as text; ask for binary data")
    if IMAGE.name in request.inputs and request.inputs[IMAGE.name].size > _MOST_TEXT_VOXELS:
        raise ConfigError(f"no image of more than {_MOST_TEXT_VOXELS} voxels is answered as text; ask for binary data")


def _told(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
