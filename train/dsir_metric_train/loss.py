"""Anatomy-aware contrastive loss, equation 4 of the paper, and a loss of alignment."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["alignment_loss", "contrastive_loss", "descriptors_at", "sample_points"]

_FEWEST = 8  # points of a cell
_FLATTEST = 0.02  # curvature of a mean cosine, per square voxel: a flatter one has no top


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


def alignment_loss(descriptors: Tensor, volume: Tensor, points: Tensor, places: Tensor, cell_vox: int = 10) -> Tensor:
    """How far from the truth a registration would come to rest.

    The contrastive loss asks that the right voxel is the most similar one; a registration rests where the sum over a
    neighbourhood is largest, to a fraction of a voxel, and edges that look shifted in another contrast pull it away.
    So in each cell of the first view, and along each axis of the second, a parabola is laid through the mean cosine at
    shifts of -1, 0 and 1 voxel from the truth: its top should lie at 0.

    Parameters
    ----------
    descriptors : Tensor, shape (points, channels)
        Unit descriptors of the first view.
    volume : Tensor, shape (channels, z, y, x)
        Descriptors of the second view.
    points : Tensor of int64, shape (points, 3)
        Voxel indices z, y, x in the first view, 0 or more.
    places : Tensor of float32, shape (points, 3)
        Where they truly lie in the second view, continuous indices z, y, x.
    cell_vox : int
        Edge of a cell.

    Returns
    -------
    Tensor, scalar, voxels.
        Mean smooth L1 norm (quadratic up to a quarter of a voxel) of the offset along each axis; 0 without a cell
        that holds eight points a voxel or more away from the border of the second view.
    """
    limit = torch.tensor(volume.shape[1:], device=volume.device) - 1
    inside = ((places >= 1) & (places <= limit - 1)).all(dim=1)
    cells, index = torch.unique(points[inside] // cell_vox, dim=0, return_inverse=True)
    axes = torch.eye(3, device=volume.device)
    shifted = places[inside] + torch.cat([torch.zeros_like(axes[:1]), axes, -axes])[:, None]
    others = descriptors_at(volume, shifted.reshape(-1, 3)).reshape(7, -1, volume.shape[0])
    cosines = (others * descriptors[inside]).sum(dim=2)
    count = torch.bincount(index, minlength=len(cells))
    mean = torch.zeros(7, len(cells), device=volume.device).index_add(1, index, cosines) / count
    mean = mean[:, count >= _FEWEST]
    if mean.numel() == 0:
        return mean.sum()
    middle, ahead, behind = mean[:1], mean[1:4], mean[4:]
    curvature = (2 * middle - ahead - behind).clamp(min=_FLATTEST)
    offset = (ahead - behind) / (2 * curvature)
    return F.smooth_l1_loss(offset, torch.zeros_like(offset), beta=0.25)
