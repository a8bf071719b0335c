"""MetaImage: one file (.mha), or a header beside its data (.mhd)."""

from __future__ import annotations

import re
from pathlib import Path

from dsir_metric.errors import DataError
from dsir_metric.io.files import regular_file
from dsir_metric.io.header import Header, check_sizes
from dsir_metric.io.text_header import integers, is_plain_name, numbers, read_lines

__all__ = ["ENDINGS", "inspect"]

ENDINGS = (".mha", ".mhd")

_VOXEL_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_NEEDED = ("ObjectType", "NDims", "BinaryData", "DimSize", "ElementType", "ElementDataFile")
_VECTORS = {  # how many numbers each has, as a power of NDims
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 2),
    **dict.fromkeys(("Offset", "Position", "Origin", "CenterOfRotation", "ElementSpacing", "ElementSize"), 1),
}
_MOST_AXES = 4
_TRUTH = "True|False|true|false"
_SHAPES = {
    "ObjectType": "Image",
    "NDims": rf"[1-{_MOST_AXES}]",
    "BinaryData": "True|true",
    "BinaryDataByteOrderMSB": _TRUTH,
    "ElementByteOrderMSB": _TRUTH,
    "CompressedData": _TRUTH,
    "CompressedDataSize": r"\d{1,18}",
    "DimSize": r"\d{1,18}(?:\s+\d{1,18})*",
    "ElementNumberOfChannels": r"[1-9]\d{0,4}",
    "ElementType": "|".join(_VOXEL_BYTES),
    "ElementDataFile": r".{1,200}",
    "AnatomicalOrientation": r"[A-Z?]{1,4}",
}
_FIELD = re.compile(r"([A-Za-z][\w\[\].|-]{0,60}) *= *(.*)")
_OTHER_FIELDS = re.compile(r"Object|Element|Binary|Compress|Header|Sequence|Color|ID|Parent|NDims", re.IGNORECASE)


def inspect(path: Path) -> Header | None:
    """What a MetaImage promises; None if its header is not a simple one, so that it cannot be judged.

    Raises
    ------
    DataError
        If a size is not positive, or the file of its data is not there.

    References
    ----------
    https://docs.itk.org/en/latest/learn/metaio.html
    """
    read = read_lines(path, r"ElementDataFile *= *.*")
    fields = None if read is None else _fields(read[0])
    if read is None or fields is None:
        return None
    beside = fields["ElementDataFile"]
    if local := beside.upper() == "LOCAL":
        data, offset = path, read[1]
    elif is_plain_name(beside):
        data, offset = regular_file(path.with_name(beside)), 0
    else:
        return None
    files = {"scan.mha": path} if local else {"scan.mhd": path, beside: data}
    zipped = fields.get("CompressedData", "").lower() == "true"
    voxels = check_sizes(integers(fields["DimSize"]), str(path)) * int(fields.get("ElementNumberOfChannels", 1))
    if zipped and data.stat().st_size - offset < int(fields.get("CompressedDataSize", 0)):
        raise DataError(f"{path}: is truncated: its compressed voxels end before they should; copy the file again")
    size_bytes = voxels * _VOXEL_BYTES[fields["ElementType"]]
    return Header("MetaImageIO", files, data, offset, "zlib" if zipped else "raw", size_bytes)


def _fields(lines: list[str]) -> dict[str, str] | None:
    """The fields of a header that is simple: each once, of the shape it should have, and enough of them."""
    fields: dict[str, str] = {}
    for line in lines:
        found = _FIELD.fullmatch(line)
        if not found or found[1] in fields or not _is_sound(found[1], found[2].strip(), int(fields.get("NDims", 0))):
            return None
        fields[found[1]] = found[2].strip()
    if not all(name in fields for name in _NEEDED):
        return None
    return fields if len(integers(fields["DimSize"])) == int(fields["NDims"]) else None


def _is_sound(name: str, value: str, axes: int) -> bool:
    """Whether a field has the shape it should have; what the programs add that wrote it is any text."""
    if name in _VECTORS:
        values = numbers(value)
        return values is not None and len(values) == max(axes, 1) ** _VECTORS[name] and axes > 0
    if name in _SHAPES:
        return bool(re.fullmatch(_SHAPES[name], value))
    return not _OTHER_FIELDS.match(name)
