"""Know the content of a file again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dsir_metric.errors import DataError
from dsir_metric.io.zarr import is_zarr, store_of

__all__ = ["content_hash"]


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file; of an image in a Zarr store, that of all files of the store and of which image is meant.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    try:
        if not is_zarr(path):
            return _file_hash(Path(path))
        store = store_of(path)
        files = sorted(p for p in store.rglob("*") if p.is_file())
        parts = [str(path)[len(str(store)) :], *((p.relative_to(store).as_posix(), _file_hash(p)) for p in files)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
