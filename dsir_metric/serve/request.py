"""A request as both protocols mean it, and the bounds of what one may say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import DataError
from dsir_metric.represent.wire import CARD, DESCRIPTORS

__all__ = [
    "MOST_ENTRIES",
    "MOST_TEXT_BYTES",
    "NUMPY_KINDS",
    "InferenceRequest",
    "check_count",
    "known_outputs",
    "quoted",
    "tensor_of_bytes",
    "tensor_of_numbers",
    "unique_inputs",
]

MOST_ENTRIES = 16  # inputs, outputs or parameters; there are 4 inputs and 2 outputs
MOST_TEXT_BYTES = 2 << 20  # of everything but binary tensors: 50,000 numbers, and a parser is done in some 50 ms
_MOST_NAME = 256  # characters of a name or an id
_MOST_AXES = 8
_MOST_ELEMENTS = 1 << 31  # along the axes that are not empty, and along each
_MOST_QUOTED = 60  # characters of what a client said, in an error
NUMPY_KINDS = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class InferenceRequest:
    """What a client asks for.

    Parameters
    ----------
    inputs : dict
        Arrays by name.
    outputs : tuple of str
        Names of what is to be answered.
    as_text : frozenset of str
        Those of them that are to be written out number by number.
    identifier : str
        Of the request; the answer repeats it.
    """

    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]
    as_text: frozenset[str] = frozenset()
    identifier: str = ""

    def __post_init__(self) -> None:
        if len(self.identifier) > _MOST_NAME:
            raise DataError(f"the id must have {_MOST_NAME} characters or fewer, got {len(self.identifier)}")


def quoted(said: object) -> str:
    """What a client said, as it may stand in an error: one line of ASCII, not too long."""
    text = ascii(said) if isinstance(said, str) else ascii(said)[: 4 * _MOST_QUOTED]
    return text if len(text) <= _MOST_QUOTED else f"{text[: _MOST_QUOTED - 3]}..."


def check_count(what: str, count: int) -> None:
    """See that there are not too many inputs, outputs or parameters.

    Raises
    ------
    DataError
        If there are.
    """
    if count > MOST_ENTRIES:
        raise DataError(f"the request must have {MOST_ENTRIES} {what} or fewer, got {count}")


def unique_inputs(pairs: Iterable[tuple[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Inputs by name.

    Raises
    ------
    DataError
        If a name occurs twice.
    """
    found: dict[str, NDArray[Any]] = {}
    for name, value in pairs:
        if name in found:
            raise DataError(f"input {quoted(name)} occurs twice; give it once")
        found[name] = value
    return found


def known_outputs(names: Sequence[str]) -> tuple[str, ...]:
    """The outputs that are asked for; all of them where none is named.

    Raises
    ------
    DataError
        If a name is unknown or occurs twice.
    """
    check_count("outputs", len(names))
    for name in names:
        if name not in (DESCRIPTORS, CARD):
            raise DataError(f"output {quoted(name)} is unknown; ask for {DESCRIPTORS} or {CARD}")
    if len(set(names)) < len(names):
        raise DataError("an output is asked for twice; ask for it once")
    return tuple(names) or (DESCRIPTORS, CARD)


def tensor_of_bytes(name: str, datatype: object, shape: object, content: memoryview) -> NDArray[Any]:
    """A tensor whose numbers are bytes, little endian; a view of them.

    Raises
    ------
    DataError
        If the type is none of numbers, or type, shape and bytes do not fit together.
    """
    kind, sizes = _kind(name, datatype), _sizes(name, shape)
    expected = math.prod(sizes) * kind.itemsize
    if content.nbytes != expected:
        raise DataError(
            f"input {quoted(name)} must have {expected} bytes for {datatype} {list(sizes)}, got {content.nbytes}"
        )
    return np.frombuffer(content, kind).reshape(sizes)


def tensor_of_numbers(name: str, datatype: object, shape: object, numbers: object) -> NDArray[Any]:
    """A tensor whose numbers are written out, in one list or nested ones.

    Raises
    ------
    DataError
        If the type is none of numbers, a number does not fit it, or there are more or fewer than the shape says.
    """
    kind, sizes = _kind(name, datatype), _sizes(name, shape)
    try:
        plain = np.array(numbers)
        if plain.dtype.kind not in "biuf" or (kind.kind in "biu" and plain.dtype.kind == "f" and plain.size):
            raise ValueError(f"they are {plain.dtype}")
        with np.errstate(over="ignore"):  # a number too large for FP32 becomes infinite, which is refused
            value = np.array(numbers, kind)
        return value.reshape(sizes)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"input {quoted(name)} has content that does not fit {datatype} {list(sizes)}: {quoted(str(error))}"
        ) from error


def _kind(name: str, datatype: object) -> np.dtype[Any]:
    kind = NUMPY_KINDS.get(datatype) if isinstance(datatype, str) else None
    if kind is None:
        raise DataError(f"input {quoted(name)} has datatype {quoted(datatype)}; give one of {', '.join(NUMPY_KINDS)}")
    return kind


def _sizes(name: str, shape: object) -> tuple[int, ...]:
    """Sizes of a tensor; a product of them cannot be negative, and is compared with what came."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) > _MOST_AXES:
        raise DataError(f"input {quoted(name)} must have a shape of up to {_MOST_AXES} numbers, got {quoted(shape)}")
    for size in shape:
        if type(size) is not int or not 0 <= size < _MOST_ELEMENTS:  # True is no size
            raise DataError(f"input {quoted(name)} has size {quoted(size)} in its shape; give whole numbers from 0 on")
    if math.prod(filter(None, shape)) >= _MOST_ELEMENTS:  # NumPy multiplies them even where another one is 0
        raise DataError(f"input {quoted(name)} must have fewer than {_MOST_ELEMENTS} numbers, got {quoted(shape)}")
    return tuple(shape)
