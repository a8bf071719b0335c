"""Representations on disk, found again by what they were made of."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric import __version__
from dsir_metric.bounds import Bytes
from dsir_metric.config import checked
from dsir_metric.errors import DataError
from dsir_metric.files import open_regular
from dsir_metric.geometry import Grid
from dsir_metric.io import atomic, locked
from dsir_metric.represent.intensity import IntensityRule
from dsir_metric.represent.representation import Representation

__all__ = ["Cache"]

_ENDING = ".dsir"
_DIGEST = 64  # hexadecimal digits of SHA-256
_ABANDONED_S = 3600.0  # nobody writes one file for so long: its writer is dead


@dataclass(frozen=True)
class Cache:
    """Representations in half precision, in a folder of limited size that several processes share.

    An entry is a file: the SHA-256 of its key and all that follows, a line of JSON (the provenance), and the values as
    little-endian float16. It appears whole or not at all. Where the size is exceeded, the entries that were longest not
    used go first. Descriptors are unit vectors, so half precision keeps them within 2.5e-4 a channel.

    Parameters
    ----------
    folder : Path
        Made when it is needed; on a file system of all machines where several use it.
    most_bytes : int
        Of all entries together; about, where the file system has no locks.

    Raises
    ------
    ConfigError
        If `most_bytes` is not positive, or more than any disk holds.

    Notes
    -----
    A representation is rounded whether it is found or made, so results do not depend on which. A damaged entry is made
    again. Where the folder cannot be written to, or the disk is full, nothing is kept, which is told once a process by
    a warning.
    """

    folder: Path
    most_bytes: int = 10_000_000_000

    def __post_init__(self) -> None:
        checked(Bytes, self.most_bytes, "most_bytes")

    def key(self, image: sitk.Image, grid: Grid, model_hash: str, rule: IntensityRule) -> str:
        """Name of the representation of a scan on `grid`.

        It is the SHA-256 of the voxels and their grid, `grid` (hence spacing and orientation), the weights of the
        model, the intensity rule and the version of this package.
        """
        parts = [__version__, asdict(Grid.of(image)), asdict(grid), model_hash, asdict(rule)]
        digest = hashlib.sha256(json.dumps(parts).encode())
        digest.update(np.ascontiguousarray(sitk.GetArrayViewFromImage(image)).data)
        return digest.hexdigest()

    def get(self, key: str, grid: Grid, make: Callable[[], Representation]) -> Representation:
        """The representation under `key`, from its file or else from `make`; one process makes it while others wait.

        Parameters
        ----------
        key : str
            See `key`.
        grid : Grid
            Of the representation.
        make : callable
            What it gives is rounded in place.

        Returns
        -------
        Representation
            Values rounded to half precision, as float32.
        """
        with self._locked(key[:2]):
            found = self._read(key, grid)
            if found is not None:
                return found
            made = make()
            values = made.values.astype("<f2")
            self._write(key, values, made)
        made.values[...] = values  # not a third copy
        return made

    def _read(self, key: str, grid: Grid) -> Representation | None:
        path = self._path(key)
        try:
            with open_regular(path) as file:
                content = file.read(self.most_bytes + 1)
        except OSError:
            return None
        digest = hashlib.sha256(key.encode())
        digest.update(memoryview(content)[_DIGEST:])
        if digest.hexdigest().encode() != content[:_DIGEST]:
            return None
        with suppress(OSError):  # somebody else's cache may be read-only
            os.utime(path)
        try:
            end = content.index(b"\n")
            halves = np.frombuffer(content, "<f2", offset=end + 1).reshape(*grid.shape, -1)
            provenance = dict(json.loads(content[_DIGEST:end]))
        except (ValueError, TypeError, RecursionError):  # of another program, for the digest is right
            return None
        return Representation(halves.astype(np.float32), grid, provenance)

    def _write(self, key: str, values: NDArray[np.float16], made: Representation) -> None:
        head = json.dumps(dict(made.provenance)).encode() + b"\n"
        digest = hashlib.sha256(key.encode() + head)
        digest.update(values.data)
        size = _DIGEST + len(head) + values.nbytes
        if size > self.most_bytes:
            return
        try:
            with self._locked("room"):
                self._make_room(size)
                with atomic(self._path(key)) as temporary, temporary.open("wb") as file:
                    file.write(digest.hexdigest().encode() + head)
                    file.write(values.data)
        except (OSError, DataError) as error:
            cause = error.__cause__ or error
            reason = cause.strerror if isinstance(cause, OSError) else str(cause)
            warnings.warn(
                f"{self.folder}: representations cannot be kept ({reason}); the work goes on without, but slower: free "
                "some space, or choose another folder",
                RuntimeWarning,
                stacklevel=2,
            )

    def _make_room(self, size: int) -> None:
        """Delete what was longest not used until `size` more bytes may be written."""
        entries = []
        for path in self.folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was quicker
                continue
            if path.suffix != _ENDING:
                continue
            if path.name.startswith(".") and time.time() - status.st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
            else:
                entries.append((status.st_mtime, status.st_size, path))
        held = sum(entry[1] for entry in entries)
        for _, freed, path in sorted(entry for entry in entries if not entry[2].name.startswith(".")):
            if held + size <= self.most_bytes:
                return
            path.unlink(missing_ok=True)
            held -= freed

    def _locked(self, name: str) -> AbstractContextManager[bool]:
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        return locked(self.folder / f"{name}.lock")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_ENDING}"
