"""Quiet C++ libraries which print on the screen what they report as an error as well."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["silenced"]

_STANDARD_ERROR = 2


@contextmanager
def silenced() -> Iterator[TextIO]:
    """Drop what this process, all threads of it, prints on standard error; for a command line, never a library.

    Yields
    ------
    text file
        Standard error as it was, for what is to be seen nevertheless.
    """
    try:
        kept = os.fdopen(os.dup(_STANDARD_ERROR), "w", encoding="utf-8")
    except OSError:  # a service may have none
        yield sys.stderr
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STANDARD_ERROR)
        yield kept
    finally:
        kept.flush()
        os.dup2(kept.fileno(), _STANDARD_ERROR)
        kept.close()
        os.close(nowhere)
