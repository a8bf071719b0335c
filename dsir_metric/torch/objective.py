"""What instance optimisation compares: two feature volumes at corresponding points, under one of three metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from dsir_metric.errors import RegistrationError
from dsir_metric.geometry import Grid
from dsir_metric.metric.information import MutualInformation
from dsir_metric.torch.cosine import cosine_at
from dsir_metric.torch.similarity import nmi
from dsir_metric.torch.warp import sample

__all__ = ["COMPARE", "WEIGHT", "Information", "Volumes"]

_NOWHERE = -1e6  # an index outside any image
Compare = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True, eq=False)
class Volumes:
    """Features of both scans at one resolution, on a device.

    Parameters
    ----------
    fixed, moving : Tensor, shape (z, y, x, channels)
        Descriptors, channels last.
    mask : Tensor of bool, shape (z, y, x)
        Where in `fixed` the metric counts.
    fixed_grid, moving_grid : Grid
    moving_mask : Tensor of bool, shape (z, y, x), optional
        Points outside it do not count.
    moving_mask_grid : Grid, optional
        Of the moving mask, which may differ from `moving_grid`.
    scans : tuple of Tensor, shapes (z, y, x, 1), optional
        Intensities in [0, 1] on either grid, for mutual information.
    """

    fixed: Tensor
    moving: Tensor
    mask: Tensor
    fixed_grid: Grid
    moving_grid: Grid
    moving_mask: Tensor | None = None
    moving_mask_grid: Grid | None = None
    scans: tuple[Tensor, Tensor] | None = None

    @property
    def spacing_mm(self) -> float:
        """Largest voxel edge of the fixed grid, mm."""
        return max(self.fixed_grid.spacing_mm)

    def scaled(self, share: float) -> Volumes:
        """Both sides with this share of the voxels along every axis, trilinear."""
        if share == 1.0:
            return self
        fixed_grid, moving_grid = _scaled(self.fixed_grid, share), _scaled(self.moving_grid, share)
        return replace(
            self,
            fixed=_resized(self.fixed, fixed_grid),
            moving=_resized(self.moving, moving_grid),
            mask=_resized_mask(self.mask, fixed_grid),
            fixed_grid=fixed_grid,
            moving_grid=moving_grid,
            scans=self.scans and (_resized(self.scans[0], fixed_grid), _resized(self.scans[1], moving_grid)),
        )

    def halved(self) -> Volumes:
        """Means of 2 x 2 x 2 voxels, the last layer of an odd size counted twice, as `register.pair` makes levels."""
        return replace(
            self,
            fixed=_pooled(self.fixed),
            moving=_pooled(self.moving),
            mask=_halved_mask(self.mask),
            fixed_grid=self.fixed_grid.halved(),
            moving_grid=self.moving_grid.halved(),
            scans=self.scans and (_pooled(self.scans[0]), _pooled(self.scans[1])),
        )

    def kept(self, index: Tensor) -> Tensor | None:
        """Which indices (n, 3), x, y, z, lie in the moving mask; None where there is none."""
        if self.moving_mask is None or self.moving_mask_grid is None:
            return None
        to_mask = self.moving_mask_grid.to_index(self.moving_grid.to_physical(np.vstack([np.zeros(3), np.eye(3)])))
        rows = torch.as_tensor(to_mask, dtype=index.dtype).to(index.device)
        places = (rows[0] + index @ (rows[1:] - rows[0]) + 0.5).floor().long()  # the nearest voxel
        size = torch.tensor(self.moving_mask.shape[::-1], device=index.device)
        inside = ((places >= 0) & (places < size)).all(dim=1)
        x, y, z = torch.minimum(places.clamp(min=0), size - 1).T
        return inside & self.moving_mask[z, y, x]


def _cosine(fixed: Tensor, moving: Tensor, index: Tensor, kept: Tensor | None) -> Tensor:
    """Negated mean cosine over the points inside, as `dsir_metric.metric.CosineMetric`."""
    cosine, inside = cosine_at(fixed, moving, index)
    valid = _valid(inside, kept)
    return -(cosine * valid).sum() / valid.sum()


def _squared(fixed: Tensor, moving: Tensor, index: Tensor, kept: Tensor | None) -> Tensor:
    """Mean squared difference over points and channels."""
    valid = _valid(_inside(moving, index), kept)
    squares = (_at(moving, index) - fixed).square().mean(dim=1)
    return (squares * valid).sum() / valid.sum()


class _Compiled(torch.autograd.Function):
    """Mutual information by the compiled kernel, value and derivative in one pass."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, metric: MutualInformation) -> Tensor:
        value, gradient = metric.at_points(index.detach().double().numpy())
        ctx.save_for_backward(torch.from_numpy(gradient).to(index.dtype))
        return index.new_tensor(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None


class Information:
    """Negated normalised mutual information of the scans, compiled on the CPU, torch elsewhere.

    Parameters
    ----------
    fixed : Tensor, shape (n, 1)
    moving : Tensor, shape (z, y, x, 1)
        Intensities in [0, 1].
    """

    def __init__(self, fixed: Tensor, moving: Tensor) -> None:
        self._fixed, self._moving = fixed, moving
        self._compiled: MutualInformation | None = None
        if fixed.device.type == "cpu":
            z, y, x, _ = moving.shape
            voxels = Grid((x, y, z), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
            self._compiled = MutualInformation(fixed[:, 0].numpy(), moving[..., 0].numpy(), voxels)

    def __call__(self, index: Tensor, kept: Tensor | None) -> Tensor:
        """The metric at indices (n, 3), x, y, z, of which some may be left out."""
        valid = _valid(_inside(self._moving, index), kept)
        if self._compiled is None:
            moved = _as_volume(_at(self._moving, index))
            return nmi(_as_volume(self._fixed), moved, _as_volume(valid[:, None]))
        counted = torch.where(valid[:, None], index, _NOWHERE)
        value: Tensor = _Compiled.apply(counted, self._compiled)  # type: ignore[no-untyped-call]
        return value


COMPARE: dict[str, Compare] = {"dns": _cosine, "mind": _squared}
# Factors under which one smoothness suits all: the best of powers of two on the tuning pairs of docs/benchmarks.md.
WEIGHT = {"dns": 1.0, "mind": 4.0, "nmi": 2.0}


def _valid(inside: Tensor, kept: Tensor | None) -> Tensor:
    valid = inside if kept is None else inside & kept
    if not valid.any():
        raise RegistrationError(
            f"none of {len(valid)} points falls inside the moving image and its mask: "
            "start from a transform under which the images overlap"
        )
    return valid


def _inside(moving: Tensor, index: Tensor) -> Tensor:
    size = torch.tensor(moving.shape[2::-1], dtype=index.dtype, device=index.device)
    return ((index >= -0.5) & (index < size - 0.5)).all(dim=1)


def _at(moving: Tensor, index: Tensor) -> Tensor:
    """Values (n, channels) of a volume with channels last."""
    return sample(moving.movedim(-1, 0)[None], _as_volume(index)).flatten(2)[0].T


def _as_volume(rows: Tensor) -> Tensor:
    """(n, channels) as a volume (1, channels, 1, 1, n)."""
    return rows.T[None, :, None, None]


def _scaled(grid: Grid, share: float) -> Grid:
    size = [max(2, round(n * share)) for n in grid.size]
    edges = grid.extent_mm / size
    return grid.resampled((float(edges[0]), float(edges[1]), float(edges[2])))


def _resized(values: Tensor, grid: Grid) -> Tensor:
    channels_first = values.movedim(-1, 0)[None]
    out = F.interpolate(channels_first, size=grid.shape, mode="trilinear", align_corners=False)
    return out[0].movedim(0, -1).contiguous()


def _resized_mask(mask: Tensor, grid: Grid) -> Tensor:
    return F.interpolate(mask[None, None].float(), size=grid.shape, mode="nearest-exact")[0, 0] > 0.5


def _halved_mask(mask: Tensor) -> Tensor:
    """The voxel nearest to each centre, which lies between two: the upper one, none beyond the end, as in ITK."""
    odd = [n % 2 for n in mask.shape]
    return F.pad(mask, (0, odd[2], 0, odd[1], 0, odd[0]))[1::2, 1::2, 1::2]


def _pooled(values: Tensor) -> Tensor:
    """Means of 2 x 2 x 2 voxels, channels last; axis by axis, so that nothing of full size is copied."""
    for axis in range(3):
        pairs = values.shape[axis] // 2
        even, odd = values.narrow(axis, 0, 2 * pairs), values.narrow(axis, 2 * pairs, values.shape[axis] % 2)
        means = even.reshape(*even.shape[:axis], pairs, 2, *even.shape[axis + 1 :]).mean(axis + 1)
        values = torch.cat([means, odd], dim=axis)
    return values
