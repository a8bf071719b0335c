"""The weights inside an ONNX file, read without the `onnx` package.

A protobuf message is a sequence of keys and values; a key is (field number << 3) + kind. Of the many fields of an ONNX
file four matter here: ModelProto.graph, GraphProto.initializer, and the type and the name of a TensorProto.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from dsir_metric.errors import ModelFileError

__all__ = ["weights_hash"]

_GRAPH, _INITIALIZER, _DATA_TYPE = 7, 5, 2
_FLOAT = b"\1"
_CONTENT = (1, 4, 9)  # shape, and the values in either of their two places
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def weights_hash(path: Path) -> str:
    """SHA-256 of shapes and values of the float32 tensors in an ONNX file, in their order; their names do not count.

    Raises
    ------
    ModelFileError
        If the file is no ONNX.
    """
    digest = hashlib.sha256()
    try:
        for graph in _values(memoryview(path.read_bytes()), _GRAPH):
            for tensor in _values(graph, _INITIALIZER):
                if _FLOAT in list(_values(tensor, _DATA_TYPE)):
                    for number, value in _fields(tensor):
                        if number in _CONTENT:
                            digest.update(f"{number} {len(value)}\n".encode())
                            digest.update(value)
    except (IndexError, ValueError) as error:
        raise ModelFileError(f"{path}: is no ONNX file ({error}); make it with `dsir-metric export`") from error
    return digest.hexdigest()


def _values(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for number, value in _fields(message) if number == wanted)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and raw value of every field of a message."""
    at = 0
    while at < len(message):
        key, start = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            at = _varint(message, start)[1]
        elif kind == _BYTES:
            size, start = _varint(message, start)
            at = start + size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at = start + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"field of kind {kind}")
        yield key >> 3, message[start:at]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
