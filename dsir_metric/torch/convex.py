"""Discrete search for large displacements: what every shift would cost each cell, and coupled convex steps to a field.

Gradient descent sees as far as a descriptor is wide. Here every shift within reach is tried for every cell of a coarse
grid, and a field that is cheap and smooth at once is found by alternating between the two. It is a start for a
continuous optimisation, not a substitute: what it leaves is of the order of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dsir_metric.bounds import Length, Range
from dsir_metric.config import Settings
from dsir_metric.errors import ConfigError, DataError, ShapeError
from dsir_metric.torch.warp import compose, identity, resize, warp

__all__ = ["ConvexConfig", "coupled_convex"]

Shape = Sequence[int]

_BLOCK = 1 << 22  # costs looked at in one go, which fit the cache of a processor
_CHANNELS = 8  # channels pooled in one go: bounds memory
_EMPTY = 1e-3  # weight, in the averaging of a field, of a cell without data: it is filled from its neighbours
_FLAT = 1e-2  # least cost of two places at random, relative to the terms it is the difference of
_INVERSIONS = 10  # fixed-point iterations for an inverse that only carries a mask


Edge = Annotated[int, Range(1, 1024)]  # voxels


@dataclass(frozen=True)
class ConvexConfig(Settings):
    """Settings of the discrete search. Lengths are in voxels of the feature volumes; levels go from coarse to fine.

    Parameters
    ----------
    spacing_vox : tuple of int
        Edge of the cells that move, at each level; a multiple of the step.
    step_vox : tuple of int
        Distance of neighbouring shifts. Features are averaged over cubes of this edge, and the cost of a shift is the
        mean over the cubes of a cell.
    half_width_vox : tuple of int
        Largest shift along each axis, in addition to what the level before has found. On an axis where that is more
        than half the image it is half the image: a shift beyond would leave too little to compare.
    coupling : tuple of float
        Weight of the squared distance, in cells, between the shift of a cell and the smooth field, one for each
        iteration, increasing. The cost it stands against is 1 where two places are compared at random, so the weights
        serve any feature and both costs.
    smoothing : int
        How many times the field is averaged over 3 x 3 x 3 cells, at each iteration.
    consistency : int
        Rounds that make the field and the one found from moving to fixed inverses of each other. 0 leaves the second
        one out, which halves the time.
    metric : {"cosine", "ssd"}
        Cost of a pair of features: 1 less their cosine, or their squared distance.

    Raises
    ------
    ConfigError
        If a value is out of range, or the levels do not fit each other.

    Notes
    -----
    The defaults suit features of 2 mm voxels. They were chosen on tuning pairs only (patients with tumours or multiple
    sclerosis, FLAIR, T1 and contrast-enhanced T1), under a deformation of 3 to 4 voxels on average, or a smooth one of
    19 to 28 voxels at most. On the three such trials of the last comparison, with errors of 4, 15 and 16 voxels, a mean
    share of 0.117 was left; without consistency 0.127, with a third of the coupling as well 0.138.
    """

    spacing_vox: Annotated[tuple[Edge, ...], Length(1, 8)] = (8, 4)
    step_vox: Annotated[tuple[Edge, ...], Length(1, 8)] = (4, 2)
    half_width_vox: Annotated[tuple[Edge, ...], Length(1, 8)] = (32, 6)
    coupling: Annotated[tuple[Annotated[float, Range(0, 1e6, above=True)], ...], Length(1, 100)] = (
        0.001,
        0.003,
        0.01,
        0.03,
        0.1,
        0.3,
    )
    smoothing: Annotated[int, Range(0, 100)] = 1
    consistency: Annotated[int, Range(0, 100)] = 2
    metric: Literal["cosine", "ssd"] = "cosine"

    def check_together(self) -> None:
        """See that there is one value of each for every level, and that steps fit cells."""
        levels = list(zip(self.spacing_vox, self.step_vox, self.half_width_vox, strict=False))
        if not len(self.spacing_vox) == len(self.step_vox) == len(self.half_width_vox):
            raise ConfigError(
                f"convex: spacing_vox is {self.spacing_vox}, step_vox {self.step_vox}, half_width_vox "
                f"{self.half_width_vox}; give one value of each for every level"
            )
        for spacing, step, half in levels:
            if spacing % step or half < step:
                raise ConfigError(
                    f"convex: a level has cells of {spacing}, steps of {step} and a half width of {half} voxels; "
                    "a cell must be a multiple of a step, and the half width at least one step"
                )
        if list(self.coupling) != sorted(self.coupling):
            raise ConfigError(f"convex: coupling must not decrease, got {self.coupling}")


class _Side(NamedTuple):
    """One image at the resolution of a level: features (z, y, x, channels) and their weights (z, y, x, 1)."""

    features: Tensor
    weight: Tensor


def coupled_convex(
    fixed: Tensor,
    moving: Tensor,
    mask: Tensor | None = None,
    config: ConvexConfig | None = None,
    inside: Tensor | None = None,
) -> Tensor:
    """Find the smooth displacement that brings two feature volumes together, however far they are apart.

    At each level the cost of every shift of every cell is computed once. Then, with a growing weight on the distance
    between them, each cell takes the best shift near the smooth field, and the field becomes the average of the shifts.
    A cell without data, or one that every shift suits alike, follows its neighbours. The same search from moving to
    fixed, with the mask carried over, tempers what is true in one direction only. The next level starts from
    the features warped by what has been found.

    Parameters
    ----------
    fixed, moving : Tensor, shape (1, channels, z, y, x)
        Features on one grid, linearly aligned if that is wanted. On a GPU everything stays there.
    mask : Tensor, shape (1, 1, z, y, x), optional
        Where the comparison counts in `fixed`, bool or weights; everywhere by default.
    config : ConvexConfig, optional
    inside : Tensor, shape (1, 1, z, y, x), optional
        Where `moving` has values; everywhere by default. A shift that leads out of it, or out of the grid, is neither
        rewarded nor punished: it costs what the other shifts of its cell cost on average.

    Returns
    -------
    Tensor of float32, shape (1, 3, z, y, x)
        Displacement u, components x, y, z, voxels: `warp(moving, u)` looks like `fixed`.

    Raises
    ------
    ShapeError
        If the volumes or the masks do not fit each other.
    DataError
        If a feature is not finite, or no voxel counts.
    ConfigError
        If the image is too small for a single step of the search along every axis.

    References
    ----------
    Steinbrücker, Pock, Cremers, Large displacement optical flow computation without warping, ICCV 2009.
    Heinrich, Papież, Schnabel, Handels, Non-parametric discrete registration with convex optimisation, WBIR 2014.
    Siebert, Hansen, Heinrich, Fast 3D registration with accurate optimisation and little learning for Learn2Reg 2021,
    MICCAI 2021 workshops.
    """
    config = config or ConvexConfig()
    _check_features(fixed, moving)
    fixed_weight, moving_weight = _weight(mask, fixed, "mask"), _weight(inside, moving, "inside")
    if not torch.any((fixed_weight > 0) & (moving_weight > 0)):
        raise DataError("mask and inside have no voxel in common; align the images first, or give other masks")
    found = torch.zeros(1, 3, *fixed.shape[2:], device=fixed.device)
    with torch.no_grad():
        for spacing, step, half_width in zip(config.spacing_vox, config.step_vox, config.half_width_vox, strict=True):
            half = [min(half_width, n // 2) // step for n in fixed.shape[2:]]
            if not any(half):
                raise ConfigError(
                    f"convex: steps of {step} voxels are too long for an image of {tuple(fixed.shape[2:])} (z, y, x); "
                    "lower step_vox"
                )
            a = _pooled(fixed, fixed_weight, None, spacing, step)
            b = _pooled(moving, moving_weight, found, spacing, step)
            cells = _searched(a, b, half, spacing // step, config)
            found = compose(_upsampled(cells, spacing, fixed.shape[2:]), found)
    return found


def _check_features(fixed: Tensor, moving: Tensor) -> None:
    if fixed.ndim != 5 or fixed.shape[0] != 1 or fixed.shape != moving.shape:
        raise ShapeError(
            "fixed and moving features of one shape (1, channels, z, y, x) are expected; "
            f"{tuple(fixed.shape)} and {tuple(moving.shape)} came: resample the moving ones onto the fixed grid"
        )
    for name, features in (("fixed", fixed), ("moving", moving)):
        if not torch.isfinite(features).all():
            raise DataError(f"{name} features hold NaN or infinite values; represent the image again")


def _weight(mask: Tensor | None, features: Tensor, name: str) -> Tensor:
    """Weights (1, 1, z, y, x), float32, on the device of the features."""
    shape = (1, 1, *features.shape[2:])
    if mask is None:
        return torch.ones(shape, device=features.device)
    if mask.shape != shape:
        raise ShapeError(f"{name}: a shape {shape} is expected; {tuple(mask.shape)} came")
    weight = mask.to(features.device, torch.float32)
    if not weight.sum() > 0:
        raise DataError(f"{name} leaves no voxel; set the voxels that count")
    return weight


def _pooled(features: Tensor, weight: Tensor, displacement: Tensor | None, spacing: int, step: int) -> _Side:
    """Weighted means over cubes of edge `step`, of the features pulled along a displacement.

    The grid is filled up to whole cells of edge `spacing` with cubes of weight 0.
    """
    shape = features.shape[2:]
    fill = [pad for n in reversed(shape) for pad in (0, -n % spacing)]

    def means(volume: Tensor) -> Tensor:
        return F.avg_pool3d(F.pad(volume, fill), step)

    if displacement is not None:
        weight = warp(weight, displacement) * _reached(displacement)
    share = means(weight)
    pooled = []
    for part in torch.split(features, _CHANNELS, dim=1):
        part = part.float() if displacement is None else warp(part.float(), displacement)
        pooled.append(means(part * weight))
    out = torch.cat(pooled, dim=1) / share.clamp_min(1e-6)
    return _Side(out[0].movedim(0, -1).contiguous(), share[0].movedim(0, -1).contiguous())


def _reached(displacement: Tensor) -> Tensor:
    """1 where a displacement stays on its grid, (1, 1, z, y, x)."""
    shape = displacement.shape[2:]
    index = identity((shape[0], shape[1], shape[2]), displacement) + displacement
    last = index.new_tensor(shape[::-1]).view(1, 3, 1, 1, 1) - 0.5
    return ((index >= -0.5) & (index <= last)).all(dim=1, keepdim=True).to(displacement)


def _upsampled(cells: Tensor, spacing: int, shape: Shape) -> Tensor:
    """A displacement in cells, (1, 3, z', y', x'), for every voxel of a grid of this shape, in voxels."""
    z, y, x = (n * spacing for n in cells.shape[2:])
    return resize(cells, (z, y, x))[..., : shape[0], : shape[1], : shape[2]].contiguous()


def _searched(fixed: _Side, moving: _Side, half: Shape, ratio: int, config: ConvexConfig) -> Tensor:
    """Displacement of one level, (1, 3, z, y, x), in cells of `ratio` cubes."""
    forward = _solve(fixed, moving, half, ratio, config)
    if not config.consistency:
        return forward
    carried = moving._replace(weight=moving.weight * _carried(fixed.weight, forward))
    backward = _solve(carried, fixed, half, ratio, config)
    return _consistent(forward, backward, config.consistency)


def _carried(weight: Tensor, forward: Tensor) -> Tensor:
    """Weights (z, y, x, 1) of fixed as seen from moving, by the inverse of a displacement in cells."""
    z, y, x, _ = weight.shape
    forward = resize(forward, (z, y, x))
    inverse = -forward
    for _ in range(_INVERSIONS):
        inverse = -warp(forward, inverse)
    return warp(weight.movedim(-1, 0)[None], inverse)[0].movedim(0, -1)


def _consistent(forward: Tensor, backward: Tensor, rounds: int) -> Tensor:
    """The forward one of two displacements after each has been averaged with the inverse that the other stands for."""
    for _ in range(rounds):
        forward, backward = 0.5 * (forward - warp(backward, forward)), 0.5 * (backward - warp(forward, backward))
    return forward


def _solve(here: _Side, there: _Side, half: Shape, ratio: int, config: ConvexConfig) -> Tensor:
    """Smooth displacement (1, 3, z, y, x), in cells, from `here` to `there`."""
    cost = _costs(here, there, half, ratio, config.metric)
    shifts = _shifts(half, ratio, cost)
    weight = F.avg_pool3d(here.weight.movedim(-1, 0)[None], ratio)
    field = torch.zeros(1, 3, *weight.shape[2:], device=cost.device)
    for coupling in config.coupling:
        best = _nearest_cheap(cost, shifts, field.flatten(2)[0].T, coupling)
        field = _averaged(best.T.reshape(field.shape), weight.clamp_min(_EMPTY), config.smoothing)
    return field


def _costs(here: _Side, there: _Side, half: Shape, ratio: int, metric: str) -> Tensor:
    """Cost of each shift for each cell, (cells, shifts), 0 on average over the shifts of a cell.

    The unit is the mean cost of two cubes, one of each image, taken at random.
    """
    query, key = _lifted(here, there, metric)
    cost = _correlated(query, key, half, ratio)
    counted = _correlated(here.weight, there.weight, half, ratio)
    mean = cost.sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp_min(1e-6)
    cost.addcmul_(counted, mean, value=-1)
    means = query.mean((0, 1, 2)), key.mean((0, 1, 2))
    weights = here.weight.mean() * there.weight.mean()
    floor = _FLAT * (means[0].abs() @ means[1].abs()) + 1e-12  # images without contrast: rounding is no cost
    return cost.div_(torch.maximum(means[0] @ means[1], floor) / weights)


def _lifted(here: _Side, there: _Side, metric: str) -> tuple[Tensor, Tensor]:
    """Vectors (z, y, x, n) whose inner product is the cost of a pair of cubes times both weights."""
    a, b = here.features, there.features
    if metric == "cosine":
        a, b = F.normalize(a, dim=-1, eps=1e-6), F.normalize(b, dim=-1, eps=1e-6)
        query, key = [-a, torch.ones_like(here.weight)], [b, torch.ones_like(there.weight)]
    else:
        squares = [(f * f).sum(-1, keepdim=True) for f in (a, b)]
        query, key = [-2 * a, squares[0], torch.ones_like(squares[0])], [b, torch.ones_like(squares[1]), squares[1]]
    return torch.cat(query, -1) * here.weight, torch.cat(key, -1) * there.weight


def _correlated(query: Tensor, key: Tensor, half: Shape, ratio: int) -> Tensor:
    """Inner products of cubes with those of the other image up to `half` (z, y, x) cubes away, averaged over cells.

    Parameters
    ----------
    query, key : Tensor, shape (z, y, x, n)
        Outside of it, `key` is 0.
    half : sequence of int
    ratio : int
        Edge of a cell, in cubes.

    Returns
    -------
    Tensor, shape (cells, shifts)
        Shifts in the order of `_shifts`.
    """
    z, y, x, n = query.shape
    far_z, far_y, far_x = half
    count, width = 2 * far_x + 1, x + 2 * far_x
    cells = (z // ratio, y // ratio, x // ratio)
    key = F.pad(key, (0, 0, far_x, far_x, far_y, far_y, far_z, far_z))
    rows = query.reshape(z * y, x, n)
    out = query.new_empty(cells[0] * cells[1] * cells[2], 2 * far_z + 1, 2 * far_y + 1, count)
    for k in range(2 * far_z + 1):
        for j in range(2 * far_y + 1):
            others = key[k : k + z, j : j + y].reshape(z * y, width, n)
            products = torch.bmm(rows, others.transpose(1, 2)).contiguous()
            # the place i of a row goes with the places i to i + 2 far_x of the padded one: a band of the products
            band = products.as_strided((z * y, x, count), (x * width, width + 1, 1))
            blocks = band.reshape(cells[0], ratio, cells[1], ratio, cells[2], ratio, count)
            out[:, k, j] = blocks.mean((1, 3, 5)).reshape(-1, count)
    return out.flatten(1)


def _shifts(half: Shape, ratio: int, like: Tensor) -> Tensor:
    """All shifts, (shifts, 3), x, y, z, in cells; z slowest."""
    axes = [torch.arange(-n, n + 1, device=like.device, dtype=like.dtype) / ratio for n in half]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def _nearest_cheap(cost: Tensor, shifts: Tensor, field: Tensor, coupling: float) -> Tensor:
    """For each cell the shift d with the least cost(d) + coupling |d - v|^2, where v is the field; (cells, 3)."""
    squares = (shifts * shifts).sum(1, keepdim=True)
    lifted = torch.cat([-2 * shifts, squares], dim=1).T.contiguous()  # |v|^2 is the same for every d
    places = torch.cat([field, torch.ones_like(field[:, :1])], dim=1)
    block = max(1, _BLOCK // len(shifts))
    best = [
        torch.addmm(c, v, lifted, alpha=coupling).argmin(dim=1)
        for c, v in zip(torch.split(cost, block), torch.split(places, block), strict=True)
    ]
    return shifts[torch.cat(best)]


def _averaged(field: Tensor, weight: Tensor, times: int) -> Tensor:
    """Weighted mean over 3 x 3 x 3 cells, again and again."""
    for _ in range(times):
        total, share = (_boxed(v) for v in (field * weight, weight))
        field = total / share
    return field


def _boxed(volume: Tensor) -> Tensor:
    return F.avg_pool3d(F.pad(volume, (1,) * 6, mode="replicate"), 3, stride=1)
