"""Read what cannot be judged beforehand in a process of its own: a reader that crashes takes nothing else with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from dsir_metric.errors import DataError, is_out_of_memory

__all__ = ["read_apart"]

_WORKER = Path(__file__).with_name("apart_worker.py")
_SECONDS, _SECONDS_A_MB = 60, 1  # of one core, before a file is given up
_MEMORY_BYTES = 1 << 34  # where the machine does not say how much it has


def read_apart(kind: Literal["image", "header", "transform"], reader: str, source: str, target: str, name: str) -> Any:
    """Let another process read `source`, and write it to `target` in a form that this one reads without risk.

    Parameters
    ----------
    kind : {"image", "header", "transform"}
        A header is given back, rather than written.
    reader : str
        Of ITK, for images.
    source, target : str
        Files; in UTF-8.
    name : str
        Begins the messages.

    Returns
    -------
    dict
        Of a header: size, spacing, origin, direction and components. Otherwise nothing.

    Raises
    ------
    DataError
        If the reader crashes, does not end, or asks for more memory than there is.
    RuntimeError
        With the words of ITK.
    """
    seconds = _SECONDS + _SECONDS_A_MB * (os.stat(source).st_size >> 20)
    call = [sys.executable, "-P", str(_WORKER), kind, reader, source, target, str(_memory_bytes()), str(seconds)]
    done = subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise DataError(f"{name}: is damaged (its reader {_end(done.returncode)}); copy the file again") from error
    if "error" not in answer:
        return answer
    said = RuntimeError(answer["error"])
    if is_out_of_memory(said):
        raise DataError(f"{name}: is damaged, or larger than the memory of this machine; copy the file again") from said
    raise said


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _MEMORY_BYTES


def _end(code: int) -> str:
    return f"ends with signal {-code}" if code < 0 else f"ends with code {code}"
