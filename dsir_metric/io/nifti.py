"""NIfTI and Analyze 7.5, in one file or two: ITK takes half a file, a spacing of zero and NaN voxels without a word."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsir_metric.errors import DataError, GeometryError
from dsir_metric.io.files import regular_file
from dsir_metric.io.header import Header, check_sizes, read_start

__all__ = ["ENDINGS", "inspect", "is_whole"]

ENDINGS = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")

_LENGTH, _LENGTH_2 = 348, 540  # bytes of the header of NIfTI-1 and Analyze, and of NIfTI-2
_FIRST_VOXEL = 352  # the least offset of voxels in the file of the header, by the standard
_MOST_HEADER = 1 << 12  # bytes; extensions of a header are not written here
_MOST_OFFSET = 2**31  # ITK keeps the offset of the voxels as a C int
_VOXEL_BYTES = {  # by the code of the data type; https://nifti.nimh.nih.gov/nifti-1
    **dict.fromkeys((2, 256), 1),
    **dict.fromkeys((4, 512), 2),
    128: 3,
    **dict.fromkeys((8, 16, 768, 2304), 4),
    **dict.fromkeys((32, 64, 1024, 1280), 8),
    **dict.fromkeys((1536, 1792), 16),
    2048: 32,
}
_FLOATS = {16: "f4", 64: "f8"}  # the data types that can hold NaN
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


class _Fields(NamedTuple):
    """The fields of a header that matter, as they are in the file."""

    dim: tuple[int, ...]
    datatype: int
    pixdim: tuple[float, ...]
    vox_offset: float
    qform_code: int
    sform_code: int
    qform: tuple[float, ...]
    sform: tuple[float, ...]
    intent_name: bytes
    magic: bytes

    @classmethod
    def of(cls, header: bytes, order: str) -> _Fields:
        form = order + "40x8h14xh4x8ff140x2h6f12f16s4s"
        values = struct.unpack(form, header[:_LENGTH])
        offset, qform_code, sform_code = values[17:20]
        qform, sform = values[20:26], values[26:38]
        return cls(values[:8], values[8], values[9:17], offset, qform_code, sform_code, qform, sform, *values[38:])


def inspect(path: Path) -> Header:
    """What a NIfTI-1 or Analyze image promises.

    Parameters
    ----------
    path : Path
        The file of both, or either of the two.

    Raises
    ------
    DataError
        If it is none, or its header is cut short or damaged.
    GeometryError
        If a spacing of the first three axes is zero, or where the voxels lie is not finite.

    References
    ----------
    https://nifti.nimh.nih.gov/nifti-1; https://eeg.sourceforge.net/ANALYZE75.pdf.
    """
    name, ending = str(path), _ending(path)
    single = ending.lower().startswith(".nii")
    head, data = (path, path) if single else _pair(path, ending)
    header, head_zipped = read_start(head, _LENGTH, name)
    order = _byte_order(header, name)
    fields = _Fields.of(header, order)
    nifti = _check_magic(fields.magic, single, name)
    voxels = _voxels(fields, single, name)
    if nifti:
        _check_placed(fields, name)
    zipped = head_zipped if single else read_start(data, 0, name)[1]
    offset = int(fields.vox_offset)
    suffixes = [".gz" if z else "" for z in (head_zipped, zipped)]
    files = (
        {f"scan.nii{suffixes[0]}": path} if single else {"scan.hdr" + suffixes[0]: head, "scan.img" + suffixes[1]: data}
    )
    sheared = nifti and fields.sform_code > 0
    return Header(
        "NiftiImageIO",
        files,
        data,
        offset=0 if zipped else offset,
        coding="gzip" if zipped else "raw",
        size_bytes=voxels * _VOXEL_BYTES[fields.datatype],
        skipped=offset if zipped else 0,
        floats=order + _FLOATS[fields.datatype] if fields.datatype in _FLOATS else None,
        axes=_RAS_TO_LPS @ np.reshape(fields.sform, (3, 4))[:, :3] if sheared else None,
        intent=fields.intent_name.split(b"\0")[0].decode("latin-1") if nifti else "",
    )


def is_whole(path: Path, voxel_bytes: int) -> bool:
    """Whether a single-file NIfTI that was written a moment ago has so many bytes of voxels, by its length.

    ITK's writer says nothing when the disk is full. A zipped file ends with its length, modulo 2^32, before it was
    zipped.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        length = file.seek(-4 if zipped else 0, os.SEEK_END)
        if zipped:
            length = int.from_bytes(file.read(4), "little")
    return (length - voxel_bytes) % 2**32 < _MOST_HEADER


def _ending(path: Path) -> str:
    longest = sorted(ENDINGS, key=len, reverse=True)
    return next(path.name[-len(e) :] for e in longest if path.name.lower().endswith(e))


def _pair(path: Path, ending: str) -> tuple[Path, Path]:
    """The header and the voxels of an image in two files."""
    stem, upper = path.name.removesuffix(ending), ending[1:2].isupper()
    found = []
    for kind in ("hdr", "img"):
        kinds = [f".{kind}", f".{kind}.gz"]
        if kind in ending.lower():
            found.append(path)
            continue
        names = [stem + (k.upper() if upper else k) for k in (kinds if len(ending) < len(".hdr.gz") else kinds[::-1])]
        beside = [path.with_name(n) for n in names]
        found.append(regular_file(next((p for p in beside if p.exists()), beside[0])))
    return found[0], found[1]


def _byte_order(header: bytes, name: str) -> str:
    lengths = {"<": int.from_bytes(header[:4], "little"), ">": int.from_bytes(header[:4], "big")}
    if _LENGTH_2 in lengths.values():
        raise DataError(f"{name}: is NIfTI-2, which ITK does not read; save it as NIfTI-1 first")
    order = next((o for o, length in lengths.items() if length == _LENGTH), None)
    if order is None:
        raise DataError(f"{name}: is no NIfTI image, whatever its name says; give an image that ITK reads")
    if len(header) < _LENGTH:
        raise DataError(f"{name}: is truncated in its header; copy the file again")
    return order


def _check_magic(magic: bytes, single: bool, name: str) -> bool:
    """Whether it is NIfTI rather than Analyze, which has no magic bytes."""
    nifti = magic == (b"n+1\0" if single else b"ni1\0")
    if not nifti and (single or magic[:1] == b"n"):
        raise DataError(f"{name}: is no NIfTI-1 image, its magic bytes are {magic!r}; the header is damaged")
    return nifti


def _voxels(fields: _Fields, single: bool, name: str) -> int:
    """How many voxels there are, after a look at all that says where in the file they are."""
    axes = fields.dim[0]
    if not 1 <= axes <= 7:
        raise DataError(f"{name}: the number of axes must be 1 to 7, got {axes}; the header is damaged")
    if fields.datatype not in _VOXEL_BYTES:
        raise DataError(f"{name}: the data type must be one of NIfTI's, got {fields.datatype}; the header is damaged")
    if not 0 <= fields.vox_offset < _MOST_OFFSET:  # NaN is not, either
        raise DataError(
            f"{name}: vox_offset must be a byte of the file, got {fields.vox_offset}; the header is damaged"
        )
    if single and fields.vox_offset < _FIRST_VOXEL:  # ITK would begin in the last four bytes of the header
        raise DataError(
            f"{name}: vox_offset must be {_FIRST_VOXEL} or more in one file, got {fields.vox_offset:g}; mend the header"
        )
    spacing = fields.pixdim[1 : 1 + min(axes, 3)]
    if not all(math.isfinite(s) and s != 0 for s in spacing):
        raise GeometryError(f"{name}: the spacing {spacing} has a zero or is not finite; mend the header")
    first, *others = fields.dim[1 : 1 + axes]
    return check_sizes((first, *(n or 1 for n in others)), name)  # as the NIfTI library takes a 0


def _check_placed(fields: _Fields, name: str) -> None:
    """See that qform and sform are finite: ITK takes 0 for what is not."""
    for form, code, values in (
        ("qform", fields.qform_code, fields.qform),
        ("sform", fields.sform_code, fields.sform),
    ):
        if code > 0 and not all(map(math.isfinite, values)):
            raise GeometryError(f"{name}: the {form} is not finite; mend the header")
