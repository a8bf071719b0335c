"""NRRD: one file (.nrrd), or a header beside its data (.nhdr)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from dsir_metric.errors import DataError
from dsir_metric.io.files import regular_file
from dsir_metric.io.header import Header, check_sizes
from dsir_metric.io.text_header import integers, is_plain_name, read_lines

__all__ = ["ENDINGS", "inspect"]

ENDINGS = (".nrrd", ".nhdr")

_TYPES = {
    1: "signed char|int8|int8_t|uchar|unsigned char|uint8|uint8_t",
    2: "short|short int|signed short|signed short int|int16|int16_t"
    "|ushort|unsigned short|unsigned short int|uint16|uint16_t",
    4: "int|signed int|int32|int32_t|uint|unsigned int|uint32|uint32_t|float",
    8: "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t"
    "|ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t|double",
}
_VOXEL_BYTES = {name: size for size, names in _TYPES.items() for name in names.split("|")}
_CODINGS: dict[str, Literal["raw", "gzip"]] = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}
_NUMBER = r"[+-]?(?:\d{1,40}\.?\d{0,40}|\.\d{1,40})(?:[eE][+-]?\d{1,3})?"
_VECTOR = rf"(?:none|\(\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{0,3}}\s*\))"
_SHAPES = {  # what a field that is judged here looks like; the others of the format go to a process of their own
    "type": r"[a-z0-9_ ]{1,30}",
    "dimension": r"\d{1,2}",
    "space": r"[a-zA-Z0-9 -]{1,60}",
    "sizes": r"\d{1,18}(?: +\d{1,18}){0,7}",
    "space directions": rf"{_VECTOR}(?: +{_VECTOR}){{0,7}}",
    "space origin": _VECTOR,
    "space units": r"[\w\" .-]{1,100}",
    "spacings": rf"(?:{_NUMBER}|nan|NaN)(?: +(?:{_NUMBER}|nan|NaN)){{0,7}}",
    "measurement frame": rf"{_VECTOR}(?: +{_VECTOR}){{0,3}}",
    "kinds": r"[\w?-]{1,40}(?: +[\w?-]{1,40}){0,7}",
    "centers": r"[\w?]{1,10}(?: +[\w?]{1,10}){0,7}",
    "centerings": r"[\w?]{1,10}(?: +[\w?]{1,10}){0,7}",
    "endian": "little|big",
    "encoding": "|".join(_CODINGS),
    "content": ".{0,200}",
    "data file": ".{1,200}",
    "datafile": ".{1,200}",
}
_MAGIC = r"NRRD000[1-6]"
_FIELD = re.compile(r"([A-Za-z ]{1,30}): ?(.*)")


def inspect(path: Path) -> Header | None:
    """What an NRRD image promises; None if its header is not a simple one, so that it cannot be judged.

    Raises
    ------
    DataError
        If it is no NRRD, a size is not positive, or the file of its data is not there.

    References
    ----------
    https://teem.sourceforge.net/nrrd/format.html
    """
    with path.open("rb") as file:
        if file.read(4) != b"NRRD":
            raise DataError(f"{path}: is no image that ITK reads as NRRD, whatever its name says; give another")
    detached = path.name.lower().endswith(".nhdr")
    read = read_lines(path, None if detached else "")
    fields = None if read is None else _fields(read[0])
    beside = "" if fields is None else fields.get("data file", fields.get("datafile", ""))
    if read is None or fields is None or bool(beside) != detached or (beside and not is_plain_name(beside)):
        return None
    coding, name = _CODINGS[fields["encoding"]], str(path)
    size_bytes = check_sizes(integers(fields["sizes"]), name) * _VOXEL_BYTES[fields["type"]]
    data = regular_file(path.with_name(beside)) if beside else path
    files = {"scan.nhdr": path, beside: data} if beside else {"scan.nrrd": path}
    return Header("NrrdImageIO", files, data, read[1], coding, size_bytes, intent=fields.get("space", ""))


def _fields(lines: list[str]) -> dict[str, str] | None:
    """The fields of a header that is simple: each once, of the shape it should have, and enough of them."""
    if not re.fullmatch(_MAGIC, lines[0]):
        return None
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if not line or line.startswith("#") or ":=" in line:
            continue
        found = _FIELD.fullmatch(line)
        name, value = (found[1].lower(), found[2].strip()) if found else ("", "")
        if name in fields or not re.fullmatch(_SHAPES.get(name, r"(?!)"), value):
            return None
        fields[name] = value
    whole = {"type", "dimension", "sizes", "encoding"} <= set(fields) and fields["type"] in _VOXEL_BYTES
    return fields if whole and len(integers(fields["sizes"])) == int(fields["dimension"]) else None
