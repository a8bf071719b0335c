"""What the losses share: checks, means under a mask, means over a box, and memory for time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from dsir_metric.errors import DataError, ShapeError

__all__ = ["box_mean", "mask_weights", "masked_mean", "paired", "recomputed"]


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the batch of the mean of each volume, weighted by its mask.

    Parameters
    ----------
    values : Tensor, shape (batch, 1, z, y, x)
    mask : Tensor, shape (batch or 1, 1, z, y, x), optional
        Bool, or weights in [0, 1].

    Raises
    ------
    ShapeError
        If the mask has another shape.
    DataError
        If it leaves nothing of a volume.
    """
    if mask is None:
        return values.mean()
    weights = mask_weights(mask, values)
    space = (1, 2, 3, 4)
    return ((values * weights).sum(space) / weights.sum(space)).mean()


def paired(fixed: Tensor, moved: Tensor, channels: int | None = None) -> tuple[Tensor, Tensor]:
    """Both volumes in one floating type, float32 or wider.

    Raises
    ------
    ShapeError
        If they are no volumes of one shape (batch, channels, z, y, x), or have not as many `channels` as told.
    """
    if fixed.ndim != 5 or fixed.shape != moved.shape or fixed.numel() == 0:
        raise ShapeError(
            f"fixed and moved must have one shape (batch, channels, z, y, x); {tuple(fixed.shape)} and "
            f"{tuple(moved.shape)} came: warp moving onto the grid of fixed"
        )
    if channels is not None and fixed.shape[1] != channels:
        raise ShapeError(
            f"this loss compares images of {channels} channel; {fixed.shape[1]} came: use dns_cosine for descriptors"
        )
    kind = torch.promote_types(torch.promote_types(fixed.dtype, moved.dtype), torch.float32)
    return fixed.to(kind), moved.to(kind)


def box_mean(volume: Tensor, width: int) -> Tensor:
    """Mean over each cube of `width` voxels that fits into a volume (batch, channels, z, y, x)."""
    for kernel in ((width, 1, 1), (1, width, 1), (1, 1, width)):
        volume = F.avg_pool3d(volume, kernel, 1)
    return volume


def mask_weights(mask: Tensor, volume: Tensor) -> Tensor:
    """`mask` in the type of `volume`, once it is known to fit and to leave something."""
    batch, _, *space = volume.shape
    if mask.shape not in {(1, 1, *space), (batch, 1, *space)}:
        raise ShapeError(
            f"a mask of shape {(batch, 1, *space)} or {(1, 1, *space)} is expected; {tuple(mask.shape)} came"
        )
    weights = mask.to(volume.dtype)
    if not bool((weights.sum((1, 2, 3, 4)) > 0).all()):
        raise DataError("the mask leaves no voxel to compare: set those that count to 1")
    return weights


def recomputed(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """compute(*inputs), of which only the inputs are kept: the backward pass, possible once, computes it again.

    `torch.utils.checkpoint` would do, but its first call imports torch's compiler: 6 seconds.
    """
    result: Tensor = _Recomputed.apply(compute, *inputs)  # type: ignore[no-untyped-call]
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.compute = compute
        ctx.save_for_backward(*inputs)
        return compute(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [
            t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.enable_grad():
            result = ctx.compute(*inputs)
        found = iter(torch.autograd.grad(result, [t for t in inputs if t.requires_grad], gradient))
        return None, *(next(found) if t.requires_grad else None for t in inputs)
