"""Instance optimisation: the field of one pair, coarse to fine, by gradient descent through the metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dsir_metric.errors import DataError
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.register.config import DeformableConfig, InstanceConfig
from dsir_metric.register.deformable import descended, unfold
from dsir_metric.register.freeform import FreeForm
from dsir_metric.register.pair import may_halve
from dsir_metric.register.problem import Deformation
from dsir_metric.torch.objective import COMPARE, WEIGHT, Information, Volumes
from dsir_metric.torch.parametrisation import BSplineField, DenseField, Field, to_mm
from dsir_metric.torch.regularity import jacobian_determinant
from dsir_metric.torch.warp import exponential, sample

__all__ = ["optimise"]

Array = NDArray[np.float64]
Report = Callable[[float, float], None]
_WIDEST = 24  # voxels around the box of a diffeomorphism, at most


def optimise(
    finest: Volumes,
    linear: Array,
    instance: InstanceConfig | None = None,
    deformable: DeformableConfig | None = None,
    *,
    start: DisplacementField | None = None,
    on_iteration: Report = lambda *_: None,
) -> Deformation:
    """Displacement u such that x -> linear(x + u(x)) aligns two feature volumes.

    Parameters
    ----------
    finest : Volumes
        At full resolution, on the CPU or a GPU; coarser levels are made of it.
    linear : ndarray, shape (4, 4)
        Fixed to moving, LPS mm, kept as it is.
    instance : InstanceConfig, optional
    deformable : DeformableConfig, optional
        Of the B-spline lattice.
    start : DisplacementField, optional
        u to begin with, along the axes of the fixed grid; zero by default.
    on_iteration : callable
        Receives the finished fraction and the loss: metric plus smoothness.

    Returns
    -------
    Deformation
        A `sitk.BSplineTransform` or `sitk.DisplacementFieldTransform`; with `velocity` also its inverse.

    Raises
    ------
    RegistrationError
        If no point of the mask falls inside the moving volume and its mask.
    """
    instance, deformable = instance or InstanceConfig(), deformable or DeformableConfig()
    if instance.parametrisation == "dense":
        return _dense(finest, linear, instance, start, on_iteration)
    return _bspline(finest, linear, instance, deformable, start, on_iteration)


def _bspline(
    finest: Volumes,
    linear: Array,
    instance: InstanceConfig,
    config: DeformableConfig,
    start: DisplacementField | None,
    on_iteration: Report,
) -> Deformation:
    """The lattices of `config`, each by L-BFGS-B on a level of its own, as `register.deformable` does it."""
    device, domain = finest.fixed.device, finest.fixed_grid.padded(1)
    freeform = FreeForm(domain, config.lattice_mm[0])
    coefficients = np.zeros(freeform.shape) if start is None else freeform.approximate(start)
    weights, remarks, count = config.weights, [], len(config.lattice_mm)
    adaptive, flow = config.adaptive and instance.metric == "dns", domain
    information = config.information if instance.metric == "dns" and finest.scans else 0.0
    for k, (volumes, lattice_mm) in enumerate(zip(_pyramid(finest, count), config.lattice_mm, strict=True)):
        finer = FreeForm(domain, lattice_mm)
        if adaptive and 0 < k == count - 1:
            weights = freeform.adapted(coefficients, *config.weights)
        coefficients, freeform = freeform.refine(coefficients, finer), finer
        flow = _flow_grid(domain, volumes.fixed_grid, lattice_mm)
        points = _Points(volumes, linear, flow if instance.velocity else None)
        field = BSplineField(freeform, points.grid, weights, device)
        report = _level_report(on_iteration, k, count, config.iterations[k])
        loss = _Loss(points, field, instance, report, information)
        coefficients = _lbfgs(loss, coefficients, config.iterations[k], device)
        if not instance.velocity:
            coefficients, rounds = _unfolded(freeform, coefficients, finest.fixed_grid, config, device)
            remarks += [f"lattice of {lattice_mm:g} mm: smoothed where it folded, in {rounds} rounds"] if rounds else []
    if instance.velocity:
        field = BSplineField(freeform, flow, (0.0, 0.0), device)
        return _diffeomorphism(field.values(_tensor(coefficients, device)), flow)
    return Deformation(freeform.to_transform(coefficients), "; ".join(remarks), weights=weights)


def _dense(
    finest: Volumes,
    linear: Array,
    instance: InstanceConfig,
    start: DisplacementField | None,
    on_iteration: Report,
) -> Deformation:
    """One vector a voxel, by Adam, as table 4 of the paper; a velocity has every second voxel."""
    config, device = instance.dense, finest.fixed.device
    coefficients: Tensor | None = None
    for k, scale in enumerate(config.scales):
        volumes = finest.scaled(scale)
        flow = volumes.fixed_grid.padded(1)
        flow = flow.resampled((2 * flow.spacing_mm[0], 2 * flow.spacing_mm[1], 2 * flow.spacing_mm[2]))
        points = _Points(volumes, linear, flow if instance.velocity else None, whole=True)
        field = DenseField(points.grid, config.diffusion[k], device)
        coefficients = _first(field, start, device) if coefficients is None else field.refined(coefficients)
        report = _level_report(on_iteration, k, len(config.scales), config.iterations[k])
        loss = _Loss(points, field, instance, report)
        coefficients = _adam(loss, coefficients, config.learning_rate[k], config.iterations[k])
    values = field.values(coefficients)  # type: ignore[arg-type]
    if instance.velocity:
        return _diffeomorphism(values, field.grid)
    return Deformation(to_mm(values, field.grid).padded(1).to_transform())  # as wide as the scan's box


@dataclass(frozen=True)
class _Loss:
    """Metric plus smoothness of coefficients."""

    points: _Points
    field: Field
    instance: InstanceConfig
    report: Callable[[int, float], None]
    information: float = 0.0

    def __call__(self, coefficients: Tensor) -> Tensor:
        values = self.field.values(coefficients)
        if self.instance.velocity:
            values = exponential(values)
        index, metric = self.points.index(values), self.instance.metric
        kept = self.points.kept(index)
        loss = (self.instance.weight or WEIGHT[metric]) * self.points.compare(index, kept, metric)
        if self.information > 0:
            loss = loss + self.information * self.points.compare(index, kept, "nmi")
        return loss + self.field.penalty(coefficients)


class _Points:
    """The masked voxels of the fixed volume, and where a displacement field takes them in the moving one.

    The field lives on `grid`: voxels of the fixed volume, which are then read, or another grid, where it is sampled.

    Parameters
    ----------
    volumes : Volumes
    linear : ndarray, shape (4, 4)
    grid : Grid, optional
        Where the field lives; the voxels around the mask by default, all of them if `whole`.
    whole : bool
    """

    def __init__(self, volumes: Volumes, linear: Array, grid: Grid | None, *, whole: bool = False) -> None:
        self._volumes, fixed = volumes, volumes.fixed_grid
        mask = volumes.mask.cpu().numpy()
        box = ndimage.find_objects(np.ones_like(mask, np.uint8) if whole else mask.astype(np.uint8))[0]
        cropped = fixed.cropped(box)
        self.grid = grid or cropped
        rows = torch.as_tensor(np.flatnonzero(mask)).to(volumes.fixed.device)
        self._fixed = volumes.fixed.reshape(-1, volumes.fixed.shape[-1])[rows].contiguous()
        scans = volumes.scans
        self._information = None if scans is None else Information(scans[0].reshape(-1, 1)[rows], scans[1])
        places = fixed.to_physical(np.argwhere(mask)[:, ::-1].astype(float))
        device = volumes.fixed.device
        self._rows = torch.as_tensor(np.flatnonzero(mask[box])).to(device) if grid is None else None
        self._places = _tensor(self.grid.to_index(places), device).T[None, :, None, None]
        moving = volumes.moving_grid
        self._start = _tensor(moving.to_index(places @ linear[:3, :3].T + linear[:3, 3]), device)
        self._turn = _tensor((moving.inverse_matrix @ linear[:3, :3] @ self.grid.matrix).T, device)

    def index(self, values: Tensor) -> Tensor:
        """Where a displacement field (1, 3, z, y, x), in voxels of `grid`, takes the points: moving index (n, 3)."""
        if self._rows is None:
            moved = sample(values, self._places).flatten(2)[0].T
        else:
            moved = values.flatten(2)[0][:, self._rows].T
        return self._start + moved @ self._turn

    def kept(self, index: Tensor) -> Tensor | None:
        """Which of the points lie in the moving mask, if there is one."""
        return self._volumes.kept(index.detach())

    def compare(self, index: Tensor, kept: Tensor | None, metric: str) -> Tensor:
        """The metric at a moving index (n, 3), of which only those `kept` count."""
        if metric != "nmi":
            return COMPARE[metric](self._fixed, self._volumes.moving, index, kept)
        if self._information is None:
            raise DataError("mutual information needs the scans themselves: give them as `Volumes.scans`")
        return self._information(index, kept)


def _lbfgs(loss: _Loss, start: Array, iterations: int, device: torch.device) -> Array:
    """The solver of the compiled path; the coefficients travel, the volumes stay."""

    def value_and_gradient(coefficients: Array) -> tuple[float, Array]:
        there = _tensor(coefficients, device).requires_grad_()
        value = loss(there)
        (gradient,) = torch.autograd.grad(value, there)
        return float(value.detach()), gradient.cpu().numpy().astype(np.float64)

    return descended(value_and_gradient, start, iterations, loss.report)


def _adam(loss: _Loss, start: Tensor, rate: float, iterations: int) -> Tensor:
    coefficients = start.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([coefficients], lr=rate)
    for step in range(iterations):
        optimiser.zero_grad()
        value = loss(coefficients)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        loss.report(step + 1, float(value.detach()))
    return coefficients.detach()


def _pyramid(finest: Volumes, count: int) -> list[Volumes]:
    """One level a lattice, coarse to fine; the coarsest serves more than one where an image is small."""
    levels = [finest]
    while len(levels) < count and may_halve(levels[0].fixed_grid, levels[0].moving_grid):
        levels.insert(0, levels[0].halved())
    return levels[:1] * (count - len(levels)) + levels


def _flow_grid(domain: Grid, grid: Grid, lattice_mm: float) -> Grid:
    """Where a velocity is integrated: half the lattice is fine enough."""
    return domain.resampled(max(lattice_mm / 2, *grid.spacing_mm))


def _level_report(on_iteration: Report, level: int, levels: int, iterations: int) -> Callable[[int, float], None]:
    def report(step: int, value: float) -> None:
        on_iteration((level + min(step / iterations, 1.0)) / levels, value)

    return report


def _unfolded(
    freeform: FreeForm, coefficients: Array, grid: Grid, config: DeformableConfig, device: torch.device
) -> tuple[Array, int]:
    """`unfold`, but for the usual case that nothing folds, which is seen faster on the device."""
    values = BSplineField(freeform, grid, (0.0, 0.0), device).values(_tensor(coefficients, device))
    if float(jacobian_determinant(values).min()) > config.smallest_jacobian + 1e-3:
        return coefficients, 0
    return unfold(freeform, coefficients, grid, config.smallest_jacobian)


def _diffeomorphism(velocity: Tensor, grid: Grid) -> Deformation:
    """The flow of a velocity and its inverse, on a grid so wide that no voxel leaves it on the way."""
    margin = min(int(np.ceil(float(velocity.abs().max()))) + 1, _WIDEST)
    velocity, grid = F.pad(velocity, (margin,) * 6, mode="replicate"), grid.padded(margin)
    forward, backward = (to_mm(exponential(v), grid).to_transform() for v in (velocity, -velocity))
    return Deformation(forward, inverse=backward)


def _first(field: DenseField, start: DisplacementField | None, device: torch.device) -> Tensor:
    """Coefficients to begin with."""
    if start is None:
        return torch.zeros(field.shape, device=device)
    along = start.values @ start.grid.inverse_matrix.T
    return field.coefficients(_tensor(along, device).movedim(-1, 0)[None])


def _tensor(array: Array, device: torch.device) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32).to(device)
