"""The lines of a header in text, as NRRD and MetaImage have one before the voxels."""

from __future__ import annotations

import re
from pathlib import Path

from dsir_metric.io.header import reading

__all__ = ["integers", "is_plain_name", "numbers", "read_lines"]

_MOST_BYTES = 1 << 16  # of a header that is judged here
_MOST_LINE = 500  # bytes of a line; ITK's readers keep lines in buffers, of 1024 bytes and more
_NUMBER = r"[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,3})?"
_NUMBERS = re.compile(rf"{_NUMBER}(?:\s+{_NUMBER})*")
_INTEGERS = re.compile(r"\d{1,18}(?:\s+\d{1,18})*")
_NAME = re.compile(r"[\w.+ -]{1,200}", re.ASCII)


def read_lines(path: Path, last: str | None) -> tuple[list[str], int] | None:
    """The lines of a header and how many bytes they are; None if it is not plain text of lines that are short.

    Parameters
    ----------
    path : Path
    last : str, optional
        A pattern that matches the last line; without it the header is the whole file.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    lines: list[str] = []
    with reading(str(path)), path.open("rb") as file:
        while line := file.readline(_MOST_LINE + 1):
            text = line.rstrip(b"\r\n").replace(b"\t", b" ").decode("latin-1")
            printable = text.isascii() and (text.isprintable() or not text)
            if not printable or not line.endswith(b"\n") or file.tell() > _MOST_BYTES:
                return None
            lines.append(text)
            if last is not None and re.fullmatch(last, text):
                return lines, file.tell()
    return None if last is not None else (lines, 0)


def numbers(text: str) -> list[float] | None:
    """The numbers of a field, between spaces; None if there is anything else."""
    return [float(word) for word in text.split()] if _NUMBERS.fullmatch(text) else None


def integers(text: str) -> tuple[int, ...]:
    """The numbers, of up to 18 digits and without a sign, of a field; none if there is anything else."""
    return tuple(int(word) for word in text.split()) if _INTEGERS.fullmatch(text) else ()


def is_plain_name(text: str) -> bool:
    """Whether a field is the name of one file beside the header, rather than a path, a list or a pattern."""
    return bool(_NAME.fullmatch(text)) and text.strip(". ") != "" and text.upper() != "LIST"
