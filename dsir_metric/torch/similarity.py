"""How well two volumes agree, as losses: cosine of descriptors, mutual information, local correlation.

Volumes are (batch, channels, z, y, x) tensors on one grid, `moved` already warped onto `fixed`. Lower is better. A loss
is the mean over the batch of the loss of each pair, in float32 or, for float64 input, float64. A mask says where
a loss counts, voxel by voxel; windows and descriptors still see what lies next to it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dsir_metric.errors import ConfigError
from dsir_metric.torch.loss_parts import box_mean, mask_weights, masked_mean, paired, recomputed

__all__ = ["dns_cosine", "local_ncc", "nmi"]

_ABSENT = 1e-20  # product of squared lengths below which a descriptor counts as absent, as in the compiled metric
_CHUNK = 1 << 16  # voxels put into bins at a time: 8 MB of weights for 32 bins
_FLAT = 1e-5  # product of local variances, relative to the global ones, that counts as flat


def dns_cosine(fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
    """Negated mean cosine between the descriptors of two volumes (equation 5 of the paper).

    Parameters
    ----------
    fixed, moved : Tensor, shape (batch, channels, z, y, x)
        Descriptors of any length: only their directions count. Where one of the two vanishes the cosine is 0.
    mask : Tensor, shape (batch or 1, 1, z, y, x), optional
        Where the loss counts: bool, or weights in [0, 1].

    Returns
    -------
    Tensor, scalar
        In [-1, 1]; -1 is perfect agreement.

    Raises
    ------
    ShapeError
        If the shapes do not match.
    DataError
        If the mask leaves nothing of a volume.
    """
    fixed, moved = paired(fixed, moved)
    product = fixed.square().sum(1, keepdim=True) * moved.square().sum(1, keepdim=True)
    present = product > _ABSENT
    cosine = (fixed * moved).sum(1, keepdim=True) * torch.where(present, product, 1).rsqrt()
    return -masked_mean(torch.where(present, cosine, 0), mask)


def nmi(
    fixed: Tensor,
    moved: Tensor,
    mask: Tensor | None = None,
    bins: int = 32,
    sigma_bins: float = 0.6,
    range_: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Negated normalised mutual information (H(F) + H(M)) / H(F, M), from a joint histogram with Gaussian windows.

    Parameters
    ----------
    fixed, moved : Tensor, shape (batch, 1, z, y, x)
        Intensities.
    mask : Tensor, shape (batch or 1, 1, z, y, x), optional
        Where the loss counts: bool, or weights in [0, 1].
    bins : int
        Of each image; the first and the last one are centred on the ends of the range.
    sigma_bins : float
        Standard deviation of the windows, in bins. The cubic B-spline, the other usual window, has 0.58. The windows
        of one intensity are scaled to sum to 1 over the bins.
    range_ : tuple of float
        Intensities from the first to the last bin; what lies outside falls into these two,
        and changes nothing there once it is a bin away.

    Returns
    -------
    Tensor, scalar
        In [-2, -1]: -1 where neither image tells anything about the other, or both are constant.

    Raises
    ------
    ShapeError
        If the shapes do not match or there is more than one channel.
    DataError
        If the mask leaves nothing of a volume.
    ConfigError
        If there are fewer than 2 bins, or windows or range have no width.

    References
    ----------
    Studholme et al., An overlap invariant entropy measure of 3D medical image alignment, Pattern Recognition 32, 1999.
    Wells et al., Multi-modal volume registration by maximization of mutual information, Medical Image Analysis 1, 1996.
    """
    if bins < 2 or not sigma_bins > 0 or not range_[1] > range_[0]:
        raise ConfigError(
            f"NMI needs 2 bins or more, windows and a range with a width; {bins} bins, sigma {sigma_bins} and range "
            f"{range_} came"
        )
    fixed, moved = paired(fixed, moved, channels=1)
    weights = None if mask is None else mask_weights(mask, fixed).expand_as(fixed).flatten(1)
    scale = (bins - 1) / (range_[1] - range_[0])
    fixed, moved = ((volume.flatten(1) - range_[0]) * scale for volume in (fixed, moved))
    with torch.autocast(fixed.device.type, enabled=False):  # half precision cannot count this far
        joint = _joint_histogram(fixed, moved, weights, bins, sigma_bins)
    joint = joint / joint.sum((1, 2), keepdim=True)
    both = _entropy(joint.flatten(1))
    information = _entropy(joint.sum(2)) + _entropy(joint.sum(1)) - both
    return -(1 + information / both.clamp_min(1e-6)).mean()  # the bound: two constant images


def local_ncc(fixed: Tensor, moved: Tensor, mask: Tensor | None = None, window_vox: int = 9) -> Tensor:
    """Negated mean squared correlation of two images within a box around each voxel.

    Parameters
    ----------
    fixed, moved : Tensor, shape (batch, 1, z, y, x)
        Intensities; a linear change of either changes nothing.
    mask : Tensor, shape (batch or 1, 1, z, y, x), optional
        Where the loss counts: bool, or weights in [0, 1].
    window_vox : int
        Edge of the box, voxels, odd. At the border the part of the box inside the volume counts.

    Returns
    -------
    Tensor, scalar
        In [-1, 0]; towards 0 where an image is flat.

    Raises
    ------
    ShapeError
        If the shapes do not match or there is more than one channel.
    DataError
        If the mask leaves nothing of a volume.
    ConfigError
        If the window is not an odd number of 3 or more.

    References
    ----------
    Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Medical Image Analysis 12, 2008.
    """
    if window_vox < 3 or window_vox % 2 == 0:
        raise ConfigError(f"the window of local NCC is an odd number of voxels, 3 or more; {window_vox} came")
    f, m = (_standardised(volume) for volume in paired(fixed, moved, channels=1))
    margin = 6 * [window_vox // 2]
    inside = box_mean(F.pad(torch.ones_like(f[:1]), margin), window_vox)  # share of each box that is in the volume

    def mean(values: Tensor) -> Tensor:
        return box_mean(F.pad(values, margin), window_vox) / inside

    mean_f, mean_m = mean(f), mean(m)
    covariance = mean(f * m) - mean_f * mean_m
    variance_f = (mean(f.square()) - mean_f.square()).relu()
    variance_m = (mean(m.square()) - mean_m.square()).relu()
    return -masked_mean(covariance.square() / (variance_f * variance_m + _FLAT), mask)


def _joint_histogram(fixed: Tensor, moved: Tensor, weights: Tensor | None, bins: int, sigma_bins: float) -> Tensor:
    """Counts (batch, bins, bins) of values (batch, voxels) given in bins. Memory does not grow with the voxels.

    Each chunk is a matrix product of the windows of either image; the backward pass computes the windows again.
    """
    count = partial(_soft_counts, bins=bins, sigma_bins=sigma_bins)
    length = max(1, _CHUNK // len(fixed))
    joint = fixed.new_zeros(len(fixed), bins, bins)
    for start in range(0, fixed.shape[1], length):
        part = slice(start, start + length)
        share = () if weights is None else (weights[:, part],)
        joint = joint + recomputed(count, fixed[:, part], moved[:, part], *share)
    return joint


def _soft_counts(
    fixed: Tensor, moved: Tensor, weights: Tensor | None = None, *, bins: int, sigma_bins: float
) -> Tensor:
    rows, columns = _windows(fixed, bins, sigma_bins), _windows(moved, bins, sigma_bins)
    if weights is not None:
        rows = rows * weights[..., None]
    return rows.transpose(1, 2) @ columns


def _windows(values: Tensor, bins: int, sigma_bins: float) -> Tensor:
    """Share (batch, voxels, bins) of each value in each bin: Gaussians scaled to sum to 1."""
    centres = torch.arange(bins, dtype=values.dtype, device=values.device)
    inside = values.clamp(-1, bins)  # far squares would lose their digits
    return torch.softmax((inside[..., None] - centres).square() / (-2 * sigma_bins**2), dim=-1)


def _entropy(probability: Tensor) -> Tensor:
    """Entropy (batch,) of distributions (batch, outcomes), nats."""
    return -(probability * probability.clamp_min(torch.finfo(probability.dtype).tiny).log()).sum(1)


def _standardised(volume: Tensor) -> Tensor:
    """Each volume with mean 0 and variance 1, or 0 where it is constant."""
    space = (1, 2, 3, 4)
    centred = volume - volume.mean(space, keepdim=True)
    return centred * (centred.square().mean(space, keepdim=True) + 1e-20).rsqrt()
