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
    kept : float
        The part that the channels keep of the variance of the cosine between points of the two images; 1 is all.
    """

    fixed: Representation
    moving: Representation
    mask: sitk.Image
    kept: float


def channel_pair(
    fixed: Representation,
    moving: Representation,
    mask: sitk.Image,
    moving_body: sitk.Image,
    channels: int,
) -> ChannelPair:
    """Both representations under one orthogonal projection to `channels` channels.

    The projection keeps the directions of largest second moment of the descriptors of both images together, so that
    it keeps dot products as well as a projection can; the squared distance of unit vectors is 2 - 2 cosine. With all
    channels it is a rotation and changes nothing.

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

    References
    ----------
    Eckart and Young, The approximation of one matrix by another of lower rank, Psychometrika 1936,
    doi:10.1007/BF02288367.
    """
    if fixed.channels != moving.channels:
        raise ShapeError(f"fixed has {fixed.channels} channels and moving {moving.channels}; use one model for both")
    if not 1 <= channels <= fixed.channels:
        raise ConfigError(f"channels is {channels}; the representations have 1 to {fixed.channels}")
    moments = [_moments(fixed, mask, "fixed"), _moments(moving, moving_body, "moving")]
    _, vectors = np.linalg.eigh(moments[0][1] + moments[1][1])
    vectors = vectors[:, ::-1]  # of the largest moment first, and of one sign whatever the library
    vectors = vectors * np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0))
    basis = vectors[:, :channels]
    kept = _kept(moments, vectors[:, channels:])
    return ChannelPair(_projected(fixed, basis), _projected(moving, basis), mask, kept)


def _moments(image: Representation, mask: sitk.Image, name: str) -> tuple[Matrix, Matrix]:
    """Mean (c,) and second moment (c, c) of the descriptors in the mask."""
    rows = image.values[sitk.GetArrayViewFromImage(mask) != 0]
    if len(rows) == 0:
        raise DataError(f"{name}: no voxel is left to be compared; give a mask that holds some of the anatomy")
    return rows.mean(axis=0, dtype=float), np.asarray(rows.T @ rows, float) / len(rows)


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
    return replace(image, values=values)
