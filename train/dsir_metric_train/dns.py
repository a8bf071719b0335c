"""Deep neighbourhood self-similarity (DNS), equation 1 of the paper, in its lean form."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["PAIRS", "neighbours", "relations"]

# The six neighbours are (-x, +x, -y, +y, -z, +z); pairs on one axis lie 2 apart, the other twelve sqrt(2) apart.
PAIRS: tuple[tuple[int, int], ...] = tuple((a, b) for a, b in combinations(range(6), 2) if a // 2 != b // 2)


def neighbours(h: Tensor, dilation: int) -> list[Tensor]:
    """The six neighbours of every voxel, `dilation` voxels away, edge values repeated outside.

    Parameters
    ----------
    h : Tensor, shape (batch, channels, z, y, x)
    dilation : int
        1 for the direct neighbourhood N, 2 for the dilated one N_d.

    Returns
    -------
    list of six Tensors shaped as `h`, in the order (-x, +x, -y, +y, -z, +z).
    """
    d = dilation
    padded = F.pad(h, (d,) * 6, mode="replicate")
    z, y, x = h.shape[-3:]
    out = []
    for axis in (2, 1, 0):
        for step in (-d, d):
            start = [d, d, d]
            start[axis] += step
            i, j, k = start
            out.append(padded[..., i : i + z, j : j + y, k : k + x])
    return out


def relations(h: Tensor, dilation: int, epsilon: float) -> list[Tensor]:
    """Twelve self-similarities a voxel and channel: exp(-d / sigma^2), d the squared difference of two neighbours.

    sigma^2 is the mean of the twelve distances at the voxel (plus `epsilon`). It is had without storing them: with m
    and r the half sum and half difference of the two neighbours on an axis,
    sum d = 4 [(mx-my)^2 + (mx-mz)^2 + (my-mz)^2 + 2 (rx^2 + ry^2 + rz^2)].

    Parameters
    ----------
    h : Tensor, shape (batch, channels, z, y, x)
    dilation : int
        Distance of the neighbours in voxels.
    epsilon : float
        Added to sigma^2; in squared units of `h`. Keeps flat regions at similarity 1.

    Returns
    -------
    list of twelve Tensors shaped as `h`, in the order of `PAIRS`, values in (0, 1].

    References
    ----------
    Mok et al., CVPR 2024, equation 1; Heinrich et al., MICCAI 2013, for the twelve pairs.
    """
    six = neighbours(h, dilation)
    mx, my, mz = ((six[i] + six[i + 1]) * 0.5 for i in (0, 2, 4))
    rx, ry, rz = ((six[i + 1] - six[i]) * 0.5 for i in (0, 2, 4))
    spread = (mx - my) ** 2 + (mx - mz) ** 2 + (my - mz) ** 2 + 2 * (rx**2 + ry**2 + rz**2)
    scale = torch.rsqrt(spread * (4.0 / 12.0) + epsilon)
    six = [n * scale for n in six]
    return [torch.exp(-((six[a] - six[b]) ** 2)) for a, b in PAIRS]
