"""Anatomy-aware contrastive loss, equation 4 of the paper."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["contrastive_loss", "descriptors_at", "sample_points"]


def sample_points(
    foreground: Tensor, warp: Tensor, count: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Up to `count` foreground voxels of the first view and where they lie in the second.

    Parameters
    ----------
    foreground : Tensor of bool, shape (z, y, x)
    warp : Tensor, shape (3, 4)
        Affine map of voxel indices (z, y, x) from the first view to the second.
    count : int
    generator : torch.Generator, optional

    Returns
    -------
    first : Tensor of int64, shape (points, 3)
        Voxel indices z, y, x, drawn without replacement among those that lie inside the second view too.
    second : Tensor of float32, shape (points, 3)
        Continuous indices z, y, x.
    """
    inside = torch.nonzero(foreground)
    mapped = inside.to(warp) @ warp[:, :3].T + warp[:, 3]
    limit = torch.tensor(foreground.shape, dtype=warp.dtype) - 1
    kept = torch.nonzero(((mapped >= -1e-6) & (mapped <= limit + 1e-6)).all(dim=1)).squeeze(1)
    chosen = kept[torch.randperm(len(kept), generator=generator)[:count]]
    return inside[chosen], mapped[chosen].float()


def descriptors_at(volume: Tensor, points: Tensor) -> Tensor:
    """Unit descriptors (points, channels) of `volume` (channels, z, y, x) at indices (points, 3) in z, y, x order.

    Whole-numbered indices read voxels; others interpolate trilinearly.
    """
    if not points.is_floating_point():
        return volume[:, points[:, 0], points[:, 1], points[:, 2]].T
    size = torch.tensor(volume.shape[1:], device=volume.device)
    grid = (2 * points / (size - 1) - 1).flip(-1)[None, None, None]
    values = F.grid_sample(volume[None], grid, align_corners=True, padding_mode="border")[0, :, 0, 0].T
    return F.normalize(values, dim=1)


def contrastive_loss(first: Tensor, second: Tensor, temperature: float, *, symmetric: bool = False) -> Tensor:
    """Mean of equation 4: the descriptor at the same place must be nearer than those at all other sampled places.

    Parameters
    ----------
    first, second : Tensor, shape (points, channels)
        Unit descriptors of two views at the same points.
    temperature : float
        tau, 0.07 in the paper.
    symmetric : bool
        Whether the second view also searches in the first (the paper goes one way).

    Returns
    -------
    Tensor, scalar, nats.
    """
    logits = first @ second.T / temperature
    target = torch.arange(len(first), device=first.device)
    loss = F.cross_entropy(logits, target)
    if symmetric:
        loss = 0.5 * (loss + F.cross_entropy(logits.T, target))
    return loss
