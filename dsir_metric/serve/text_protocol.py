"""Requests and answers over HTTP: JSON, and behind it the tensors that are bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import DataError
from dsir_metric.serve.config import VERSION
from dsir_metric.serve.request import (
    MOST_TEXT_BYTES,
    NUMPY_KINDS,
    InferenceRequest,
    check_count,
    known_outputs,
    quoted,
    tensor_of_bytes,
    tensor_of_numbers,
    unique_inputs,
)

__all__ = ["decode", "encode", "json_bytes"]

_NAMES = {kind: name for name, kind in NUMPY_KINDS.items()}
_NUMBERS = 4096  # written at a time, so that other threads get their turn
_MISSING = object()


def json_bytes(header: str | None, length: int) -> int:
    """How many of the bytes of a request are JSON, by its header `inference-header-content-length`.

    Raises
    ------
    DataError
        If that is no number, more than there is, or too many.
    """
    if header is not None and not (header.isascii() and header.isdigit() and len(header) < 16):
        raise DataError(f"inference-header-content-length must be a number of bytes, got {quoted(header)}")
    found = length if header is None else int(header)
    if found > length:
        raise DataError(f"inference-header-content-length is {found}, but the request has {length} bytes")
    if found > MOST_TEXT_BYTES:
        raise DataError(
            f"the JSON of a request must have {MOST_TEXT_BYTES} bytes or fewer, got {found}; send binary data"
        )
    return found


def decode(body: memoryview, length: int) -> InferenceRequest:
    """Read a request; its tensors are views of `body`, whose first `length` bytes are JSON.

    Raises
    ------
    DataError
        If it is damaged, has too many entries, or JSON and bytes do not fit together.
    """
    try:
        told = json.loads(bytes(body[:length]))
    except (ValueError, RecursionError) as error:
        raise DataError(f"the request is no JSON ({quoted(str(error))})") from error
    told = _object("the request", told)
    parameters = _parameters("the request", told)
    inputs, at = [], length
    for entry in _entries(told, "inputs"):
        name, size = _name(entry), _binary_size(entry)
        content = body[at : at + (size or 0)]
        at += size or 0
        inputs.append((name, _tensor(name, entry, content if size is not None else None)))
    if at != len(body):
        raise DataError(f"the inputs must have the {len(body) - length} bytes behind the JSON, got {at - length}")
    asked = _entries(told, "outputs")
    outputs = known_outputs([_name(entry) for entry in asked])
    everywhere = parameters.get("binary_data_output")
    binary = {_name(entry): _parameters("an output", entry).get("binary_data", everywhere) for entry in asked}
    text = frozenset(name for name in outputs if binary.get(name, everywhere) is not True)
    identifier = told.get("id") or ""
    if not isinstance(identifier, str):
        raise DataError(f"the id must be text, got {quoted(identifier)}")
    return InferenceRequest(unique_inputs(inputs), outputs, text, identifier)


def encode(request: InferenceRequest, name: str, outputs: Mapping[str, NDArray[Any]]) -> tuple[int | None, list[Any]]:
    """Write an answer.

    Parameters
    ----------
    request : InferenceRequest
    name : str
        Of the model.
    outputs : mapping
        Arrays by name.

    Returns
    -------
    length : int or None
        Bytes of the JSON where bytes of tensors follow.
    parts : list of bytes-like
        The answer.
    """
    head = {"id": request.identifier, "model_name": name, "model_version": VERSION}
    told, parts = [], []
    for output, value in outputs.items():
        fields = {"name": output, "shape": list(value.shape), "datatype": _NAMES[value.dtype]}
        if output in request.as_text:
            told.append(f'{_json(fields)[:-1]},"data":[{",".join(_written(value))}]}}')
        else:
            told.append(_json({**fields, "parameters": {"binary_data_size": value.nbytes}}))
            parts.append(np.ascontiguousarray(value).data.cast("B"))
    text = f'{_json(head)[:-1]},"outputs":[{",".join(told)}]}}'.encode()
    return (len(text) if parts else None), [text, *parts]


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _written(value: NDArray[Any]) -> Iterator[str]:
    """Numbers of an array as text, some at a time."""
    flat = value.ravel()
    for start in range(0, flat.size, _NUMBERS):
        yield ",".join(map(repr, flat[start : start + _NUMBERS].tolist()))


def _object(what: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{what} must be a JSON object, got {quoted(value)}")
    return value


def _entries(told: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """The inputs or the outputs; there need not be outputs."""
    found = told.get(what, [] if what == "outputs" else _MISSING)
    found = [] if found is None else found
    if not isinstance(found, list):
        raise DataError(f"the {what} must be a list, got {'nothing' if found is _MISSING else quoted(found)}")
    check_count(what, len(found))
    return [_object(f"one of the {what}", entry) for entry in found]


def _name(entry: Mapping[str, Any]) -> str:
    name = entry.get("name")
    if not isinstance(name, str):
        raise DataError(f"a tensor must have a name, got {quoted(name)}")
    return name


def _parameters(what: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    found = _object(f"the parameters of {what}", entry.get("parameters") or {})
    check_count("parameters", len(found))
    return found


def _binary_size(entry: Mapping[str, Any]) -> int | None:
    """Bytes of an input behind the JSON; None where its numbers are written out."""
    size = _parameters("an input", entry).get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise DataError(f"binary_data_size must be a number of bytes, got {quoted(size)}")
    return size


def _tensor(name: str, entry: Mapping[str, Any], content: memoryview | None) -> NDArray[Any]:
    written = entry.get("data")
    if (content is None) == (written is None):
        raise DataError(f"input {quoted(name)} must have either data or binary_data_size")
    if content is None:
        return tensor_of_numbers(name, entry.get("datatype"), entry.get("shape"), written)
    return tensor_of_bytes(name, entry.get("datatype"), entry.get("shape"), content)
