"""Cosine and its derivative on a GPU: one Triton kernel that reads each corner once and stores no descriptor.

With f the fixed and m the trilinear moving descriptor, cos = f.m / (|f| |m|) and
d cos = f.dm / (|f| |m|) - cos (m.dm) / |m|^2: nine inner products a point, summed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["cosine_and_gradient", "interpreted"]

_POINTS = 64  # of one program
_WIDEST = 32  # channels read at once


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which takes tensors of the CPU (TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)


def cosine_and_gradient(
    fixed: Tensor, moving: Tensor, index: Tensor, derivative: bool, tiny: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cosine of descriptors and a volume at continuous indices, and its derivative; see `cosine.cosine_at`.

    Parameters
    ----------
    fixed : Tensor of float32 or half precision, shape (n, channels)
        Contiguous.
    moving : Tensor of float32 or half precision, shape (z, y, x, channels)
        Contiguous.
    index : Tensor of float32 or float64, shape (n, 3)
        Continuous indices x, y, z into `moving`.
    derivative : bool
        Whether the derivative is wanted.
    tiny : float
        Product of squared lengths up to which cosine and derivative are 0.

    Returns
    -------
    cosine : Tensor of float32, shape (n,)
    inside : Tensor of bool, shape (n,)
    gradient : Tensor of the type of `index`, shape (n, 3), or None
    """
    count, channels = fixed.shape
    index = index.contiguous()
    cosine = torch.empty(count, device=index.device)
    inside = torch.empty(count, dtype=torch.bool, device=index.device)
    gradient = torch.empty_like(index) if derivative else None
    if count:
        # Triton starts a kernel on the current device, whatever its tensors say.
        with torch.cuda.device(index.device) if index.is_cuda else nullcontext():
            _kernel[(triton.cdiv(count, _POINTS),)](
                fixed, moving, index, cosine, inside, index if gradient is None else gradient, count,
                *moving.shape[:3], TINY=tiny, CHANNELS=channels, WIDTH=_width(channels), POINTS=_POINTS,
                DERIVATIVE=derivative, enable_fp_fusion=True,
            )  # fmt: skip
    return cosine, inside, gradient


def _width(channels: int) -> int:
    """Channels read at once: the greatest power of two that divides them, but not so small that lanes stay idle."""
    divisor = channels & -channels
    return min(divisor if divisor >= 8 else triton.next_power_of_2(channels), _WIDEST)


def _jit(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


@_jit
def _cell(t: tl.tensor, size: tl.tensor) -> tl.tuple:
    """The two voxels around `t` on one axis, clamped to the volume, and the weight of the second."""
    below = tl.floor(t)
    first = below.to(tl.int32)
    return tl.maximum(first, 0), tl.minimum(first + 1, size - 1), (t - below).to(tl.float32)


@_jit
def _corner(
    moving: tl.tensor, row: tl.tensor, channel: tl.tensor, mask: tl.tensor, CHANNELS: tl.constexpr
) -> tl.tensor:
    """Some channels (points, width) of the voxels in the rows `row` (points,) of the volume."""
    place = row.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    return tl.load(moving + place, mask=mask, other=0.0).to(tl.float32)


@_jit
def _kernel(
    fixed: tl.tensor,
    moving: tl.tensor,
    index: tl.tensor,
    cosine: tl.tensor,
    inside: tl.tensor,
    gradient: tl.tensor,
    count: tl.tensor,
    nz: tl.tensor,
    ny: tl.tensor,
    nx: tl.tensor,
    TINY: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    POINTS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
) -> None:
    point = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    known = point < count
    x = tl.load(index + 3 * point, mask=known, other=-1.0)
    y = tl.load(index + 3 * point + 1, mask=known, other=-1.0)
    z = tl.load(index + 3 * point + 2, mask=known, other=-1.0)
    within = (x >= -0.5) & (x < nx - 0.5) & (y >= -0.5) & (y < ny - 0.5) & (z >= -0.5) & (z < nz - 0.5)
    x0, x1, wx = _cell(tl.where(within, x, 0.0), nx)
    y0, y1, wy = _cell(tl.where(within, y, 0.0), ny)
    z0, z1, wz = _cell(tl.where(within, z, 0.0), nz)
    row00, row01 = (z0 * ny + y0) * nx, (z0 * ny + y1) * nx
    row10, row11 = (z1 * ny + y0) * nx, (z1 * ny + y1) * nx
    wx, wy, wz = wx[:, None], wy[:, None], wz[:, None]
    ff = tl.zeros([POINTS], tl.float32)
    fm, mm, fx, fy, fz, mx, my, mz = ff, ff, ff, ff, ff, ff, ff, ff
    for start in tl.static_range(0, CHANNELS, WIDTH):
        channel = start + tl.arange(0, WIDTH)
        mask = within[:, None] & (channel < CHANNELS)[None, :]
        f = tl.load(fixed + point[:, None] * CHANNELS + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        c000 = _corner(moving, row00 + x0, channel, mask, CHANNELS)
        dx00 = _corner(moving, row00 + x1, channel, mask, CHANNELS) - c000
        c010 = _corner(moving, row01 + x0, channel, mask, CHANNELS)
        dx01 = _corner(moving, row01 + x1, channel, mask, CHANNELS) - c010
        c100 = _corner(moving, row10 + x0, channel, mask, CHANNELS)
        dx10 = _corner(moving, row10 + x1, channel, mask, CHANNELS) - c100
        c110 = _corner(moving, row11 + x0, channel, mask, CHANNELS)
        dx11 = _corner(moving, row11 + x1, channel, mask, CHANNELS) - c110
        low0, low1 = c000 + wx * dx00, c100 + wx * dx10
        dy0, dy1 = c010 + wx * dx01 - low0, c110 + wx * dx11 - low1
        low = low0 + wy * dy0
        dz = low1 + wy * dy1 - low
        m = low + wz * dz
        ff += tl.sum(f * f, axis=1)
        fm += tl.sum(f * m, axis=1)
        mm += tl.sum(m * m, axis=1)
        if DERIVATIVE:
            dx0, dx1 = dx00 + wy * (dx01 - dx00), dx10 + wy * (dx11 - dx10)
            dx, dy = dx0 + wz * (dx1 - dx0), dy0 + wz * (dy1 - dy0)
            fx += tl.sum(f * dx, axis=1)
            fy += tl.sum(f * dy, axis=1)
            fz += tl.sum(f * dz, axis=1)
            mx += tl.sum(m * dx, axis=1)
            my += tl.sum(m * dy, axis=1)
            mz += tl.sum(m * dz, axis=1)
    squared = ff.to(tl.float64) * mm.to(tl.float64)
    counts = squared > TINY
    scale = tl.where(counts, 1.0 / tl.sqrt(tl.where(counts, squared, 1.0)), 0.0).to(tl.float32)
    cos = fm * scale
    tl.store(cosine + point, cos, mask=known)
    tl.store(inside + point, within, mask=known)
    if DERIVATIVE:
        shrink = cos / tl.where(counts, mm, 1.0)
        tl.store(gradient + 3 * point, fx * scale - shrink * mx, mask=known)
        tl.store(gradient + 3 * point + 1, fy * scale - shrink * my, mask=known)
        tl.store(gradient + 3 * point + 2, fz * scale - shrink * mz, mask=known)
