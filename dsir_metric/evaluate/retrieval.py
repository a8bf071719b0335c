"""Whether a descriptor of one scan finds its own place in another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, DataError, ShapeError
from dsir_metric.metric import kernel
from dsir_metric.metric.transforms import point_map
from dsir_metric.represent.representation import Representation

__all__ = ["Retrieval", "retrieval"]

_DRAW = 1 << 16  # voxels mapped in one go
_ROWS = 256  # queries compared with all candidates in one go
_TINY = np.float32(1e-12)  # no descriptor at all: it stays zero and resembles nothing


@dataclass(frozen=True)
class Retrieval:
    """How often the nearest of many candidates is the true match.

    Parameters
    ----------
    rate : float
        Share of the queries whose nearest candidate is the true one; 1 / candidates is what chance gives.
    median_error_mm : float
        Median distance, in the moving scan, between the nearest candidate and the true one, mm.
    candidates, queries : int
        Points that were searched, and points that searched.
    """

    rate: float
    median_error_mm: float
    candidates: int
    queries: int


def retrieval(
    fixed: Representation,
    moving: Representation,
    transform: sitk.Transform,
    mask: NDArray[np.bool_] | None = None,
    *,
    candidates: int = 10_000,
    queries: int = 2_000,
    seed: int = 0,
) -> Retrieval:
    """Search the true match of points of the fixed scan among many points of the moving scan, by cosine alone.

    Voxels of the fixed grid are drawn without replacement; where the transform sends them, moving descriptors are read
    trilinearly. Each of the first `queries` fixed descriptors is compared with all the moving ones; of equals, the one
    drawn first counts as the nearest.

    Parameters
    ----------
    fixed, moving : Representation
        Descriptors with the same number of channels, of any length: only their directions count.
    transform : sitk.Transform
        The truth: maps fixed to moving points, LPS mm.
    mask : ndarray of bool, shape (z, y, x), optional
        Voxels of the fixed grid that may be drawn; all by default.
    candidates : int
        Points drawn; all of them lie inside the moving grid.
    queries : int
        How many of them search; all where this is more than `candidates`.
    seed : int
        Of the draw.

    Returns
    -------
    Retrieval

    Raises
    ------
    ShapeError
        If the channels differ, or the mask does not fit the fixed grid.
    ConfigError
        If there are fewer than 2 candidates or no queries.
    DataError
        If fewer than `candidates` of the voxels that may be drawn are sent into the moving grid.
    """
    _check(fixed, moving, mask, candidates, queries)
    queries = min(queries, candidates)
    allowed = np.arange(np.prod(fixed.grid.shape)) if mask is None else np.flatnonzero(mask)
    voxels, places = _draw(np.random.default_rng(seed).permutation(allowed), fixed, moving, transform, candidates)
    sought = _unit(fixed.values.reshape(-1, fixed.channels)[voxels[:queries]])
    offered = _unit(_descriptors_at(places, moving))
    blocks = [slice(start, start + _ROWS) for start in range(0, queries, _ROWS)]
    nearest = np.concatenate([np.argmax(sought[block] @ offered.T, axis=1) for block in blocks])
    return Retrieval(
        rate=float(np.mean(nearest == np.arange(queries))),
        median_error_mm=float(np.median(np.linalg.norm(places[nearest] - places[:queries], axis=1))),
        candidates=candidates,
        queries=queries,
    )


def _check(
    fixed: Representation, moving: Representation, mask: NDArray[np.bool_] | None, candidates: int, queries: int
) -> None:
    if fixed.channels != moving.channels:
        raise ShapeError(
            f"fixed has {fixed.channels} channels and moving {moving.channels}: represent both with the same model"
        )
    if mask is not None and mask.shape != fixed.grid.shape:
        raise ShapeError(f"a mask of shape {fixed.grid.shape} (z, y, x) is expected; {mask.shape} came")
    if candidates < 2 or queries < 1:
        raise ConfigError(f"{queries} queries among {candidates} candidates are no search; give at least 1 among 2")


def _draw(
    voxels: NDArray[np.int64], fixed: Representation, moving: Representation, transform: sitk.Transform, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The first `count` of `voxels` that the transform sends into the moving grid, and where it sends them, mm."""
    mapping, size = point_map(transform), np.array(moving.grid.size)
    chosen, places, found = [], [], 0
    for start in range(0, len(voxels), _DRAW):
        some = voxels[start : start + _DRAW]
        z, y, x = np.unravel_index(some, fixed.grid.shape)
        points = mapping.map(fixed.grid.to_physical(np.stack([x, y, z], axis=-1)))
        index = moving.grid.to_index(points)
        inside = np.all((index >= -0.5) & (index < size - 0.5), axis=1)
        chosen.append(some[inside])
        places.append(points[inside])
        found += int(np.count_nonzero(inside))
        if found >= count:
            return np.concatenate(chosen)[:count], np.concatenate(places)[:count]
    raise DataError(
        f"only {found} of {len(voxels)} voxels that may be drawn lie inside the moving scan; {count} candidates are "
        "asked for: ask for fewer, or check the mask and the transform"
    )


def _descriptors_at(places_mm: NDArray[np.float64], moving: Representation) -> NDArray[np.float32]:
    grid = moving.grid
    out, inside = np.empty((len(places_mm), moving.channels), np.float32), np.ones(len(places_mm), bool)
    offset = -grid.inverse_matrix @ np.array(grid.origin_mm)
    kernel.interpolate(np.ascontiguousarray(moving.values), places_mm, grid.inverse_matrix, offset, out, inside)
    return out


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(lengths, _TINY)
    return scaled
