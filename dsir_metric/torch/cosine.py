"""Cosine of fixed descriptors and a moving volume at continuous indices, with its derivative in one pass.

Three implementations of one function: plain torch (the reference), the compiled kernel of the run time (CPU) and a
Triton kernel (CUDA). None keeps more than the derivative, three numbers a point, for the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dsir_metric.errors import ConfigError, MissingDependencyError, ShapeError
from dsir_metric.metric import kernel

__all__ = ["IMPLEMENTATIONS", "cosine_at"]

IMPLEMENTATIONS = ("auto", "torch", "compiled", "triton")
_TINY = 1e-20  # product of squared lengths below which a descriptor counts as absent, as in `metric.kernel`
_CHUNK = 1 << 16  # points of plain torch at once: about 30 volumes (points, channels) live at a time
_BLOCK = 1 << 17  # points of the compiled kernel at once: bounds its double-precision buffers

# Cosine (n,), inside (n,) and, if wanted, the derivative (n, 3) of descriptors and a volume at indices.
Result = tuple[Tensor, Tensor, Tensor | None]
Compute = Callable[[Tensor, Tensor, Tensor, bool], Result]


def cosine_at(fixed: Tensor, moving: Tensor, index: Tensor, implementation: str = "auto") -> tuple[Tensor, Tensor]:
    """Cosine between fixed descriptors and moving ones, trilinear at continuous indices.

    The moving volume is defined for indices in [-0.5, n - 0.5) and constant over the outer half voxel, as ITK's linear
    interpolator and `dsir_metric.metric` have it. Where the product of the squared lengths of the two descriptors is
    1e-20 or less, the cosine and its derivative are 0 and the point stays inside.

    Parameters
    ----------
    fixed : Tensor, shape (n, channels)
        Descriptors of any length, contiguous.
    moving : Tensor, shape (z, y, x, channels)
        Descriptors of any length, contiguous: channels last. On the device of `fixed`.
    index : Tensor of float32 or float64, shape (n, 3)
        Continuous indices x, y, z into `moving`.
    implementation : str
        "torch" (any device and floating type), "compiled" (CPU, float32), "triton" (CUDA, float32 or half precision),
        or "auto": the fastest of them that can do it.

    Returns
    -------
    cosine : Tensor, shape (n,)
        float32 (float64 if `moving` is), 0 outside. Differentiable once, with respect to `index` alone: descriptors
        are constants. Half-precision descriptors are multiplied and summed in float32.
    inside : Tensor of bool, shape (n,)
        Which points lie inside the moving volume.

    Raises
    ------
    ShapeError
        If the shapes do not fit or a tensor is not contiguous.
    ConfigError
        If `implementation` is unknown or cannot take this device or type, or a type or device is of no use here.
    MissingDependencyError
        If "triton" is asked for and absent.
    """
    _check(fixed, moving, index)
    compute = _choose(implementation, fixed, moving)
    cosine, inside = _Cosine.apply(fixed.detach(), moving.detach(), index, compute)  # type: ignore[no-untyped-call]
    return cosine, inside


class _Cosine(torch.autograd.Function):
    """Value and derivative in the forward pass; the way back is one product."""

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moving: Tensor, index: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
        cosine, inside, gradient = compute(fixed, moving, index.detach(), ctx.needs_input_grad[2])
        ctx.mark_non_differentiable(inside)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return cosine, inside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[None, None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, None, gradient * outer[:, None].to(gradient.dtype), None


def _check(fixed: Tensor, moving: Tensor, index: Tensor) -> None:
    if moving.ndim != 4 or fixed.shape != (len(index), moving.shape[-1]) or index.shape != (len(index), 3):
        raise ShapeError(
            f"fixed (n, channels), moving (z, y, x, channels) and index (n, 3) are expected; {tuple(fixed.shape)}, "
            f"{tuple(moving.shape)} and {tuple(index.shape)} came"
        )
    if 0 in moving.shape:
        raise ShapeError(f"moving has shape {tuple(moving.shape)}: it has no voxel or no channel")
    if not (fixed.is_contiguous() and moving.is_contiguous()):
        raise ShapeError("fixed and moving must be contiguous, channels last: call .contiguous() on them once")
    if index.dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"index is {index.dtype}; indices need float32 or float64")
    if not (fixed.is_floating_point() and moving.is_floating_point()):
        raise ConfigError(f"fixed is {fixed.dtype} and moving {moving.dtype}; descriptors are floating-point numbers")
    if not fixed.device == moving.device == index.device:
        raise ConfigError(
            f"fixed is on {fixed.device}, moving on {moving.device} and index on {index.device}; put them on one device"
        )


def _choose(implementation: str, fixed: Tensor, moving: Tensor) -> Compute:
    """The function that does it, or an error that says why the one asked for cannot."""
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(f"implementation {implementation!r} is unknown; use one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "auto":
        implementation = _fastest(fixed, moving)
    if implementation == "triton":
        return _triton(fixed, moving)
    if implementation == "compiled":
        if not _compiled_takes(fixed, moving):
            raise ConfigError(
                f"the compiled cosine takes float32 on the CPU; {fixed.dtype} and {moving.dtype} on {moving.device} "
                "came: use implementation='torch'"
            )
        return _compiled
    return _plain


def _fastest(fixed: Tensor, moving: Tensor) -> str:
    if _compiled_takes(fixed, moving):
        return "compiled"
    half_or_single = torch.float64 not in (fixed.dtype, moving.dtype)
    return "triton" if moving.is_cuda and half_or_single and find_spec("triton") else "torch"


def _compiled_takes(fixed: Tensor, moving: Tensor) -> bool:
    return moving.device.type == "cpu" and fixed.dtype == moving.dtype == torch.float32


def _triton(fixed: Tensor, moving: Tensor) -> Compute:
    if find_spec("triton") is None:
        raise MissingDependencyError(
            "the fused cosine needs triton, which is absent: pip install triton, or use implementation='torch'"
        )
    from dsir_metric.torch import fused

    if torch.float64 in (fixed.dtype, moving.dtype) or not (moving.is_cuda or fused.interpreted()):
        raise ConfigError(
            f"the fused cosine takes float32 or half precision on CUDA; {fixed.dtype} and {moving.dtype} on "
            f"{moving.device} came: use implementation='torch'"
        )
    return partial(fused.cosine_and_gradient, tiny=_TINY)


def _compiled(fixed: Tensor, moving: Tensor, index: Tensor, derivative: bool) -> Result:
    """The kernel of the run time, which takes indices for points: the map from one to the other is the identity."""
    count = len(index)
    cosine = torch.empty(count)
    inside = torch.ones(count, dtype=torch.bool)
    gradient = torch.empty(count, 3, dtype=index.dtype) if derivative else None
    descriptors, volume, valid = fixed.numpy(), moving.numpy(), inside.numpy()
    matrix, offset = np.eye(3), np.zeros(3)
    block = min(count, _BLOCK)
    rows, values, slopes = np.arange(block), np.empty(block), np.empty((block, 3))
    for start in range(0, count, _BLOCK):
        part = slice(start, start + _BLOCK)
        points = index[part].double().contiguous().numpy()
        n = len(points)
        kernel.cosine_and_gradient(
            descriptors[part], rows[:n], volume, points, matrix, offset, valid[part], values[:n], slopes[:n]
        )
        cosine[part] = torch.from_numpy(values[:n])
        if gradient is not None:
            gradient[part] = torch.from_numpy(slopes[:n])
    return cosine, inside, gradient


def _plain(fixed: Tensor, moving: Tensor, index: Tensor, derivative: bool) -> Result:
    """Plain torch, a chunk of points at a time."""
    count = len(index)
    dtype = torch.float64 if moving.dtype == torch.float64 else torch.float32
    cosine = torch.empty(count, dtype=dtype, device=index.device)
    inside = torch.empty(count, dtype=torch.bool, device=index.device)
    gradient = torch.empty_like(index) if derivative else None
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        slopes = None if gradient is None else gradient[part]
        cosine[part], inside[part] = _plain_chunk(fixed[part].to(dtype), moving, index[part], slopes)
    return cosine, inside, gradient


def _plain_chunk(fixed: Tensor, moving: Tensor, index: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cosine and validity at some points; the derivative goes into `gradient` (n, 3) if there is one."""
    size = torch.tensor(moving.shape[2::-1], device=index.device)
    inside = ((index >= -0.5) & (index < size - 0.5)).all(dim=1)
    value, slopes = _interpolate(moving, index, size, fixed.dtype)
    ff, fm, mm = (fixed * fixed).sum(1), (fixed * value).sum(1), (value * value).sum(1)
    squared = ff.double() * mm.double()
    counts = inside & (squared > _TINY)
    scale = squared.rsqrt().to(fixed.dtype)
    cosine = torch.where(counts, fm * scale, 0)
    if gradient is not None:
        shrink = cosine / mm
        for axis, slope in enumerate(slopes):
            along = (fixed * slope).sum(1) * scale - shrink * (value * slope).sum(1)
            gradient[:, axis] = torch.where(counts, along, 0)
    return cosine, inside


def _interpolate(moving: Tensor, index: Tensor, size: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Trilinear values (n, channels) and their derivatives along x, y, z; anything where the index lies outside."""
    below = index.floor()
    wx, wy, wz = (index - below).to(dtype)[:, :, None].unbind(1)
    x0, y0, z0 = below.long().clamp(torch.zeros_like(size), size - 1).unbind(1)
    x1, y1, z1 = (below.long() + 1).clamp(torch.zeros_like(size), size - 1).unbind(1)

    def plane(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value and derivatives along x and y in the plane z."""
        near, far = moving[z, y0, x0].to(dtype), moving[z, y1, x0].to(dtype)
        near_x, far_x = moving[z, y0, x1].to(dtype) - near, moving[z, y1, x1].to(dtype) - far
        low = near + wx * near_x
        dy = far + wx * far_x - low
        return low + wy * dy, near_x + wy * (far_x - near_x), dy

    (low, low_x, low_y), (high, high_x, high_y) = plane(z0), plane(z1)
    dz = high - low
    return low + wz * dz, [low_x + wz * (high_x - low_x), low_y + wz * (high_y - low_y), dz]
