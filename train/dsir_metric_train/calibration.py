"""How the channels of a trained descriptor are mixed where scans are nearly aligned."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dsir_metric.errors import DataError
from dsir_metric_train.loader import Pair
from dsir_metric_train.model import MasrNet

__all__ = ["calibration", "mixture_for"]

_FLOOR = 1e-3  # of the largest variance: a direction with less of it is not blown up further


@torch.inference_mode()
def calibration(network: MasrNet, pairs: Iterable[Pair]) -> Tensor:
    """The mixture of channels whose cosine suits a close comparison, from views of the training.

    The contrastive loss asks which voxel is the most similar of all, whichever channels tell. So channels end up
    correlated, and most of what they vary by tells tissues apart that never meet; what is nearly aligned is told apart
    by what changes from one voxel to the next. With C the covariance of descriptors and G that of their differences
    between neighbouring voxels, the mixture first makes all directions vary alike (C^-1/2), then lets each count as
    much as it changes (the square root of G, mixed alike). Inner products become a^T C^-1 G C^-1 b, which is the same
    however the channels were mixed before.

    Parameters
    ----------
    network : MasrNet
    pairs : iterable of Pair
        As `dsir_metric_train.loader.ViewPairs.draw` makes them; both views count.

    Returns
    -------
    Tensor of float64, shape (channels, channels)
        To be multiplied with descriptors from the left. The largest singular value is 1.

    Raises
    ------
    DataError
        If the descriptors of the views are no numbers, or all the same.
    """
    size = network.config.channels
    count, total, square, change = 0, torch.zeros(size).double(), *torch.zeros(2, size, size).double()
    for views, *points in pairs:
        for volume, places in zip(network(views), points, strict=True):
            here, next_to = _neighbours(volume, places.round().long())
            count, total = count + len(here), total + here.sum(dim=0)
            square, change = square + here.T @ here, change + next_to.T @ next_to
    if not 0 < change.trace() < torch.inf:
        raise DataError("calibration: the descriptors of the views are all the same, or no numbers; train longer")
    mean = total / count
    return mixture_for(square / count - torch.outer(mean, mean), change)


def mixture_for(spread: Tensor, change: Tensor) -> Tensor:
    """The mixture of `calibration` for a covariance C and a G, each up to a factor, that are not all zero.

    Parameters
    ----------
    spread, change : Tensor of float64, shape (channels, channels)

    Returns
    -------
    Tensor of float64, shape (channels, channels)
        The largest singular value is 1.
    """
    whitening = _power(spread, -0.5)
    mixture = _power(whitening @ change @ whitening, 0.5) @ whitening
    unit: Tensor = mixture / torch.linalg.matrix_norm(mixture, 2)
    return unit


def _neighbours(volume: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Descriptors (n, channels) of a volume (channels, z, y, x) at points, and their differences (3n, channels)."""
    limit = torch.tensor(volume.shape[1:]) - 2
    points = points[(points <= limit).all(dim=1)]
    axes = torch.eye(3, dtype=torch.int64)
    here, *ahead = (
        volume[:, z, y, x].T.double() for z, y, x in (p.unbind(1) for p in (points, *(points + axes[:, None])))
    )
    return here, torch.cat([there - here for there in ahead])


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Power of a symmetric matrix without negative eigenvalues, none smaller than a share of the largest."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=_FLOOR * values[-1].item())
    power: Tensor = (vectors * values**exponent) @ vectors.T
    return power
