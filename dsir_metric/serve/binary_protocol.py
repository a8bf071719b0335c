"""Requests and answers over gRPC: protobuf messages, whose size is looked at before they are taken apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import DataError
from dsir_metric.serve.config import VERSION
from dsir_metric.serve.request import (
    MOST_ENTRIES,
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

__all__ = ["decode", "encode", "parse", "split"]

_NAMES = {kind: name for name, kind in NUMPY_KINDS.items()}
_RAW_CONTENTS = 7  # number of the field raw_input_contents in ModelInferRequest
_MOST_FIELDS = 4 * MOST_ENTRIES + 8  # inputs, outputs, parameters and contents, and a few that are there once
_LENGTH_DELIMITED = 2  # wire type of everything in ModelInferRequest
_MOST_VARINT = 10  # bytes
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def split(message: bytes) -> tuple[bytes, list[memoryview]]:
    """Split a ModelInferRequest into what is to be parsed and the bytes of its tensors, which are not copied.

    A message of 60 MB can hold 30 million empty entries, which would take gigabytes once they are parsed.

    Raises
    ------
    DataError
        If it is none, or has too many entries or too much beside the bytes of tensors.
    """
    view = memoryview(message)
    head, contents = bytearray(), []
    for count, (field, start, at, stop) in enumerate(_fields(view)):
        if count >= _MOST_FIELDS:
            raise DataError(f"the request must have {MOST_ENTRIES} inputs, outputs and parameters or fewer, got more")
        if field == _RAW_CONTENTS:
            contents.append(view[at:stop])
        elif len(head) + stop - start > MOST_TEXT_BYTES:
            raise DataError(
                f"the request must have {MOST_TEXT_BYTES} bytes or fewer beside raw_input_contents, got more; send "
                "tensors there"
            )
        else:
            head += view[start:stop]
    return bytes(head), contents


def parse(message_class: Any, errors: type[Exception], message: bytes) -> Any:
    """A protobuf message.

    Raises
    ------
    DataError
        If the bytes are none.
    """
    try:
        return message_class.FromString(message)
    except errors as error:
        raise DataError(f"the request is no {message_class.DESCRIPTOR.name}; send one") from error


def decode(told: Any, raw: Sequence[memoryview]) -> InferenceRequest:
    """Read a ModelInferRequest.

    Parameters
    ----------
    told : ModelInferRequest
        Without the bytes of tensors.
    raw : list of memoryview
        Those; the tensors are views of them.

    Raises
    ------
    DataError
        If it has too many entries, or tensors and contents do not fit together.
    """
    for what, entries in (("inputs", told.inputs), ("outputs", told.outputs), ("parameters", told.parameters)):
        check_count(what, len(entries))
    if raw and len(raw) != len(told.inputs):
        raise DataError(f"raw_input_contents must have {len(told.inputs)} entries, one for every input, got {len(raw)}")
    contents: list[memoryview | None] = [*raw] or [None] * len(told.inputs)
    inputs = [(entry.name, _tensor(entry, content)) for entry, content in zip(told.inputs, contents, strict=True)]
    outputs = known_outputs([output.name for output in told.outputs])
    return InferenceRequest(unique_inputs(inputs), outputs, frozenset(), told.id)


def encode(kserve: SimpleNamespace, request: InferenceRequest, name: str, outputs: Mapping[str, NDArray[Any]]) -> bytes:
    """Write a ModelInferResponse, tensors as bytes."""
    answer = kserve.ModelInferResponse(id=request.identifier, model_name=name, model_version=VERSION)
    for output, value in outputs.items():
        answer.outputs.add(name=output, datatype=_NAMES[value.dtype], shape=value.shape)
        answer.raw_output_contents.append(np.ascontiguousarray(value).tobytes())
    message: bytes = answer.SerializeToString()
    return message


def _tensor(entry: Any, raw: memoryview | None) -> NDArray[Any]:
    shape = list(entry.shape)
    if raw is not None:
        if entry.HasField("contents"):
            raise DataError(f"input {quoted(entry.name)} must have either contents or raw_input_contents, got both")
        return tensor_of_bytes(entry.name, entry.datatype, shape, raw)
    field = _CONTENTS.get(entry.datatype)
    if field is None:
        raise DataError(f"input {quoted(entry.name)} of {quoted(entry.datatype)} must be numbers in raw_input_contents")
    return tensor_of_numbers(entry.name, entry.datatype, shape, list(getattr(entry.contents, field)))


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Number, start, start of the content and end of every field of a message whose fields say how long they are."""
    stop = 0
    while stop < len(message):
        start = stop
        tag, at = _varint(message, start)
        size, at = _varint(message, at)
        stop = at + size
        if tag & 7 != _LENGTH_DELIMITED or stop > len(message):
            raise DataError("the request is no ModelInferRequest; send one")
        yield tag >> 3, start, at, stop


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number in protobuf's coding, and where it ends."""
    value = 0
    for k, byte in enumerate(message[at : at + _MOST_VARINT]):
        value |= (byte & 127) << 7 * k
        if byte < 128:
            return value, at + k + 1
    raise DataError("the request is no ModelInferRequest; send one")
