"""Displacement fields on a voxel grid: warp by them, compose them, integrate a velocity.

A displacement u has shape (batch, 3, z, y, x), components x, y, z, in voxels of its own grid: the voxel at index i is
taken from index i + u(i). Outside a volume its nearest edge value counts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["compose", "exponential", "identity", "resize", "sample", "warp"]


def identity(shape: tuple[int, int, int], like: Tensor) -> Tensor:
    """Index of every voxel, (1, 3, z, y, x), components x, y, z, of the type and on the device of `like`."""
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z])[None]


def sample(volume: Tensor, index: Tensor, mode: str = "bilinear") -> Tensor:
    """Values of a volume at continuous indices, trilinear.

    Parameters
    ----------
    volume : Tensor, shape (batch, channels, z, y, x)
    index : Tensor, shape (batch, 3, z', y', x')
        Continuous indices x, y, z into `volume`; a batch of 1 serves all.
    mode : str
        "bilinear" (trilinear, in volumes) or "nearest".

    Returns
    -------
    Tensor, shape (batch, channels, z', y', x')
    """
    size = torch.tensor(volume.shape[:1:-1], dtype=index.dtype, device=index.device).view(1, 3, 1, 1, 1)
    grid = (2 * index + 1) / size - 1  # align_corners=False: -1 and 1 are the outer faces of the edge voxels
    grid = grid.movedim(1, -1).expand(len(volume), -1, -1, -1, -1)
    return F.grid_sample(volume, grid.to(volume.dtype), mode=mode, padding_mode="border", align_corners=False)


def warp(volume: Tensor, displacement: Tensor, mode: str = "bilinear") -> Tensor:
    """`volume` (batch, channels, z, y, x) pulled along `displacement` (batch, 3, z, y, x), in voxels."""
    return sample(volume, identity(_shape(displacement), displacement) + displacement, mode)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """Displacement of x -> second(first(x)), that is first + second o (id + first); both (batch, 3, z, y, x)."""
    return first + warp(second, first)


def exponential(velocity: Tensor, squarings: int = 7) -> Tensor:
    """Displacement of the flow of a stationary velocity for unit time, by scaling and squaring.

    Parameters
    ----------
    velocity : Tensor, shape (batch, 3, z, y, x)
        Voxels.
    squarings : int
        The first step is velocity / 2^squarings.

    References
    ----------
    Arsigny et al., A log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006.
    """
    displacement: Tensor = velocity / 2**squarings
    for _ in range(squarings):
        displacement = compose(displacement, displacement)
    return displacement


def resize(displacement: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The same displacement on a grid of another shape over the same box, in voxels of that grid."""
    old = _shape(displacement)
    out: Tensor = F.interpolate(displacement, size=shape, mode="trilinear", align_corners=False)
    ratio = [new / was for new, was in zip(shape[::-1], old[::-1], strict=True)]
    scale = torch.tensor(ratio, dtype=out.dtype, device=out.device)
    return out * scale.view(1, 3, 1, 1, 1)


def _shape(field: Tensor) -> tuple[int, int, int]:
    z, y, x = field.shape[-3:]
    return z, y, x
