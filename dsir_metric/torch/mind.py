"""MIND-SSC: a handmade descriptor of 12 self-similarities, and the loss that goes with it."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dsir_metric.errors import ConfigError, ShapeError
from dsir_metric.torch.loss_parts import box_mean, masked_mean, paired, recomputed

__all__ = ["mind_ssc", "mind_ssc_loss"]

# The six neighbours, z, y, x; the twelve pairs of them that lie sqrt(2) apart (two on one axis lie 2 apart).
_NEIGHBOURS = tuple(tuple(sign * (axis == k) for k in range(3)) for axis in (2, 1, 0) for sign in (-1, 1))
_PAIRS = tuple((a, b) for a, b in combinations(range(6), 2) if a // 2 != b // 2)


def mind_ssc(image: Tensor, radius: int = 1, dilation: int = 2) -> Tensor:
    """Self-similarity context of images, as published.

    Parameters
    ----------
    image : Tensor, shape (batch, 1, z, y, x)
        Intensities; a linear change of them changes nothing.
    radius : int
        Of the box over which squared differences are averaged, voxels.
    dilation : int
        Distance of the six neighbours, voxels.

    Returns
    -------
    Tensor, shape (batch, 12, z, y, x)
        exp(-d / v) in [0, 1], float32 or wider; 1 for the most similar pair. d is the mean squared difference of the
        boxes around two neighbours less the smallest of the twelve, v the mean of the twelve d, held within
        [0.001, 1000] times its mean over the volume. Edge values are repeated outside. The neighbours are taken in the
        order -x, +x, -y, +y, -z, +z, and their pairs with the first one varying slowest.

    Raises
    ------
    ShapeError
        If the shape is another.
    ConfigError
        If `radius` is negative or `dilation` smaller than 1.

    References
    ----------
    Heinrich et al., Towards realtime multimodal fusion for image-guided interventions using self-similarities,
    MICCAI 2013.
    """
    if image.ndim != 5 or image.shape[1] != 1 or image.numel() == 0:
        raise ShapeError(f"MIND describes images of shape (batch, 1, z, y, x); {tuple(image.shape)} came")
    if radius < 0 or dilation < 1:
        raise ConfigError(f"MIND needs a radius of 0 and a dilation of 1 or more; {radius} and {dilation} came")
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    six = _neighbours(image, dilation)
    apart = partial(_box_distance, radius=radius)
    distance = torch.cat([recomputed(apart, six[a], six[b]) for a, b in _PAIRS], dim=1)
    distance = distance - distance.amin(1, keepdim=True)
    variance = distance.mean(1, keepdim=True)
    typical = variance.mean((2, 3, 4), keepdim=True).clamp_min(1e-30)  # a constant volume: all similarities are 1
    return torch.exp(-distance / variance.clamp(0.001 * typical, 1000 * typical))


def mind_ssc_loss(
    fixed_image: Tensor, moved_image: Tensor, mask: Tensor | None = None, radius: int = 1, dilation: int = 2
) -> Tensor:
    """Mean squared difference of the self-similarity contexts of two images.

    Parameters
    ----------
    fixed_image, moved_image : Tensor, shape (batch, 1, z, y, x)
        Intensities on one grid.
    mask : Tensor, shape (batch or 1, 1, z, y, x), optional
        Where the loss counts: bool, or weights in [0, 1].
    radius, dilation : int
        As in `mind_ssc`, voxels.

    Returns
    -------
    Tensor, scalar
        In [0, 1]; 0 is perfect agreement.

    Raises
    ------
    ShapeError
        If the shapes do not match or there is more than one channel.
    DataError
        If the mask leaves nothing of a volume.
    ConfigError
        If `radius` is negative or `dilation` smaller than 1.
    """
    fixed, moved = (mind_ssc(image, radius, dilation) for image in paired(fixed_image, moved_image, channels=1))
    return masked_mean((fixed - moved).square().mean(1, keepdim=True), mask)


def _neighbours(image: Tensor, dilation: int) -> list[Tensor]:
    """What lies `dilation` voxels from each voxel on either side of each axis, edge values repeated outside."""
    z, y, x = image.shape[2:]
    padded = F.pad(image, 6 * [dilation], mode="replicate")
    starts = [[dilation + dilation * step for step in steps] for steps in _NEIGHBOURS]
    return [padded[:, :, k : k + z, j : j + y, i : i + x] for k, j, i in starts]


def _box_distance(a: Tensor, b: Tensor, radius: int) -> Tensor:
    """Mean squared difference of two images over a box, edge values repeated outside."""
    return box_mean(F.pad((a - b).square(), 6 * [radius], mode="replicate"), 2 * radius + 1)
