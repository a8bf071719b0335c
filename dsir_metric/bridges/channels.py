"""Two representations as few channels that any engine can compare by their sum of squares."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, DataError, ShapeError
from dsir_metric.represent.representation import Representation

__all__ = ["ChannelPair", "channel_pair"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelPair:
    """What an engine is given.

    Parameters
    ----------
    fixed, moving : Representation
        With the same number of channels.
    mask : sitk.Image
        Where they are compared, on the grid of `fixed`.
    shares : tuple of float
        Of each channel, its part of what changes from voxel to voxel; they sum to 1.
    kept : float
        The part that the channels keep of the variance of the cosine between points of the two images; 1 is all.
    detail : float
        The part they keep of the squared differences between neighbouring voxels.
    """

    fixed: Representation
    moving: Representation
    mask: sitk.Image
    shares: tuple[float, ...]
    kept: float
    detail: float

    @property
    def text(self) -> str:
        """How many channels there are and what they keep, in words."""
        return (
            f"{self.fixed.channels} channels, which keep {100 * self.kept:.1f} % of the variance of the cosine and "
            f"{100 * self.detail:.1f} % of its detail"
        )

    def images(self) -> list[tuple[sitk.Image, sitk.Image]]:
        """Scalar images of each channel, fixed and moving."""
        sides = self.fixed.to_sitk(), self.moving.to_sitk()
        fixed, moving = ([sitk.VectorIndexSelectionCast(s, k) for k in range(self.fixed.channels)] for s in sides)
        return list(zip(fixed, moving, strict=True))


def channel_pair(
    fixed: Representation,
    moving: Representation,
    mask: sitk.Image,
    moving_body: sitk.Image,
    channels: int,
) -> ChannelPair:
    """Both representations under one orthogonal projection to `channels` channels.

    What tells where a point lies is how the descriptors change around it. So the projection keeps the directions in
    which they change most from voxel to voxel, over both images: the largest of the structure tensor of the channels.
    (The directions of largest variance are mostly those that tell one organ from another; with four of them a third
    more error is left.) The squared distance of unit vectors is 2 - 2 cosine; all channels are a rotation.

    Parameters
    ----------
    fixed, moving : Representation
        Unit vectors.
    mask, moving_body : sitk.Image
        Which descriptors count, on the grids of `fixed` and `moving`.
    channels : int
        From 1 to the number they have.

    Returns
    -------
    ChannelPair

    Raises
    ------
    ConfigError
        If `channels` is out of range.
    ShapeError
        If the representations have different numbers of channels.
    DataError
        If a mask is empty.
    """
    if fixed.channels != moving.channels:
        raise ShapeError(f"fixed has {fixed.channels} channels and moving {moving.channels}; use one model for both")
    if not 1 <= channels <= fixed.channels:
        raise ConfigError(f"channels is {channels}; the representations have 1 to {fixed.channels}")
    moments = [_moments(fixed, mask, "fixed"), _moments(moving, moving_body, "moving")]
    changes, vectors = np.linalg.eigh(_changes(fixed, mask) + _changes(moving, moving_body))
    changes, vectors = changes[::-1], vectors[:, ::-1]  # largest first, and of one sign whatever the library
    vectors = vectors * np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0))
    basis = vectors[:, :channels]
    shares = tuple(float(v) for v in changes[:channels] / changes[:channels].sum())
    kept, detail = _kept(moments, vectors[:, channels:]), float(changes[:channels].sum() / changes.sum())
    return ChannelPair(_projected(fixed, basis), _projected(moving, basis), mask, shares, kept, detail)


def _moments(image: Representation, mask: sitk.Image, name: str) -> tuple[Matrix, Matrix]:
    """Mean (c,) and second moment (c, c) of the descriptors in the mask."""
    rows = image.values[sitk.GetArrayViewFromImage(mask) != 0]
    if len(rows) == 0:
        raise DataError(f"{name}: no voxel is left to be compared; give a mask that holds some of the anatomy")
    return rows.mean(axis=0, dtype=float), np.asarray(rows.T @ rows, float) / len(rows)


def _changes(image: Representation, mask: sitk.Image) -> Matrix:
    """Second moment (c, c) of the differences of neighbouring voxels in the mask, summed over the axes.

    A mask without neighbours counts as one that changes alike in all directions.
    """
    inside = sitk.GetArrayViewFromImage(mask) != 0
    total = np.finfo(float).tiny * np.eye(image.channels)
    for axis in range(3):
        low, high = ([slice(None)] * 3 for _ in range(2))
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        both = inside[tuple(low)] & inside[tuple(high)]
        steps = image.values[tuple(high)][both] - image.values[tuple(low)][both]
        total += np.asarray(steps.T @ steps, float) / max(len(steps), 1)
    return total


def _kept(moments: list[tuple[Matrix, Matrix]], lost: Matrix) -> float:
    """1 - var(what is lost of the dot product) / var(dot product), for independent points of the two images."""
    (fixed_mean, fixed), (moving_mean, moving) = moments

    def variance(basis: Matrix) -> float:
        square = np.trace(basis.T @ fixed @ basis @ basis.T @ moving @ basis)
        return float(square - ((fixed_mean @ basis) @ (moving_mean @ basis)) ** 2)

    whole = variance(np.eye(len(fixed_mean)))
    return 1.0 - variance(lost) / whole if whole > 0 else 1.0


def _projected(image: Representation, basis: Matrix) -> Representation:
    values = np.ascontiguousarray(image.values @ basis.astype(np.float32))
    return replace(image, values=values, mixture=None)
