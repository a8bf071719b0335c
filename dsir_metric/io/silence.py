"""Quiet C++ libraries which print on the screen what they report as an error as well."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["silenced"]

_STANDARD_ERROR = 2


@contextmanager
def silenced() -> Iterator[None]:
    """Drop what this process, all threads of it, prints on standard error; for a command line, never a library."""
    try:
        kept = os.dup(_STANDARD_ERROR)
    except OSError:  # a service may have none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STANDARD_ERROR)
        yield
    finally:
        os.dup2(kept, _STANDARD_ERROR)
        os.close(kept)
        os.close(nowhere)
