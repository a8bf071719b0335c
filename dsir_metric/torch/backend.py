"""The backend torch of `register`: instance optimisation on the representations of a pair, on the CPU or a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsir_metric.errors import MissingDependencyError, RegistrationError
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.register.config import RegisterConfig
from dsir_metric.register.pair import Level, aligned
from dsir_metric.register.problem import Deformation, Problem, Report
from dsir_metric.represent import Representation
from dsir_metric.represent.device import Device
from dsir_metric.torch.convex import ConvexConfig, coupled_convex
from dsir_metric.torch.instance import optimise
from dsir_metric.torch.mind import mind_ssc
from dsir_metric.torch.objective import Volumes
from dsir_metric.torch.parametrisation import to_mm
from dsir_metric.torch.threads import torch_threads
from dsir_metric.torch.warp import sample

__all__ = ["check", "choose_device", "deform"]

Array = NDArray[np.float64]
_CONVEX_MM = 1.5  # the discrete search takes the finest level whose voxels are no smaller
_CONVEX_DEFAULT_MM = 2.0  # of the voxels that the defaults of ConvexConfig are for


def deform(problem: Problem, linear: Array, report: Report) -> Deformation:
    """See `Deform`.

    Raises
    ------
    MissingDependencyError
        If CUDA was asked for and torch finds none.
    RegistrationError
        If the GPU has not enough memory, or no point falls inside the moving image.
    """
    config, device = problem.config, choose_device(problem.config.device)
    _limit(device, config.gpu_memory_bytes)
    with torch_threads(config.threads):
        try:
            volumes, linear = _volumes(problem, linear, device)
            start = _convex(volumes, linear, config.instance.metric) if config.instance.init == "convex" else None
            return optimise(volumes, linear, config.instance, config.deformable, start=start, on_iteration=report)
        except torch.OutOfMemoryError as error:
            raise RegistrationError(_short_of_memory(problem, device)) from error


def check(config: RegisterConfig) -> None:
    """See that the device is there; see `choose_device`."""
    choose_device(config.device)


def choose_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means here.

    Raises
    ------
    MissingDependencyError
        If it is a GPU and torch does not find it.
    RegistrationError
        If it is a GPU in a process that was forked from one that used it.
    ConfigError
        If there is no such name.
    """
    wanted, lost = Device.of(name), torch.cuda._is_in_bad_fork()
    count = 0 if lost or not torch.cuda.is_available() else torch.cuda.device_count()
    if wanted.kind == "cuda" and lost:
        raise RegistrationError(
            "torch cannot use the GPU in a process that was forked from one that used it; start workers with "
            "multiprocessing.get_context('spawn'), or choose device cpu"
        )
    if wanted.kind == "cuda" and wanted.index >= count:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        found = f"finds {count} of them" if count else "finds no GPU"
        raise MissingDependencyError(
            f"device {name} was asked for and torch {found} (torch {torch.__version__}, {build}); install a torch "
            "with CUDA and its driver, or choose another device, such as cpu"
        )
    return torch.device("cuda", wanted.index) if count and wanted.kind != "cpu" else torch.device("cpu")


def _limit(device: torch.device, gpu_memory_bytes: int | None) -> None:
    """Keep torch within so many bytes of a GPU."""
    if device.type == "cuda" and gpu_memory_bytes is not None:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_memory_bytes / whole), device)


def _volumes(problem: Problem, linear: Array, device: torch.device) -> tuple[Volumes, Array]:
    """Features of the finest level on the device, and the linear map that is still to be applied.

    Where a transform that is not linear comes after, both are applied to the moving features, once.
    """
    level = problem.levels[-1]
    if problem.config.instance.metric == "mind":
        level = _with_mind(level)
    level = _smoothed(level, problem.config.instance.gaussian_sigma)
    if level.after is not None:
        level, linear = aligned(level, linear), np.eye(4)
    half = device.type == "cuda" and problem.config.instance.metric == "dns"
    kind = torch.float16 if half else torch.float32
    fixed, moving_values = (torch.from_numpy(r.values).to(device, kind) for r in (level.fixed, level.moving))
    mask_image = level.moving_mask
    volumes = Volumes(
        fixed,
        moving_values,
        _mask(level.fixed_mask, device),
        level.fixed.grid,
        level.moving.grid,
        None if mask_image is None else _mask(mask_image, device),
        None if mask_image is None else Grid.of(mask_image),
        level.scans and (_image(level.scans[0], device), _image(level.scans[1], device)),
    )
    return volumes, linear


def _smoothed(level: Level, sigma: float) -> Level:
    """The level with representations under a Gaussian of `sigma` voxels, once for all resolutions made of it."""
    if sigma == 0:
        return level
    sigma_mm = sigma * level.spacing_mm
    return replace(level, fixed=level.fixed.smoothed(sigma_mm), moving=level.moving.smoothed(sigma_mm))


def _with_mind(level: Level) -> Level:
    """The level with MIND-SSC of the scans in place of the representations."""
    sides = []
    for scan in level.scans or ():
        features = mind_ssc(torch.from_numpy(scan.values)[None, None, ..., 0])
        sides.append(replace(scan, values=features[0].movedim(0, -1).contiguous().numpy()))
    return replace(level, fixed=sides[0], moving=sides[1])


def _convex(volumes: Volumes, linear: Array, metric: str) -> DisplacementField:
    """Where the discrete search thinks the fixed voxels go, u of x -> linear(x + u(x))."""
    while volumes.spacing_mm < _CONVEX_MM:
        volumes = volumes.halved()
    grid, moving = volumes.fixed_grid, volumes.moving_grid
    places = grid.points_mm() @ linear[:3, :3].T + linear[:3, 3]
    index = torch.as_tensor(moving.to_index(places), dtype=torch.float32).to(volumes.fixed.device).movedim(-1, 0)[None]
    there = sample(_channels_first(volumes.moving), index)
    size = torch.tensor(moving.size, device=index.device).view(1, 3, 1, 1, 1)
    inside = ((index >= -0.5) & (index < size - 0.5)).all(dim=1, keepdim=True)
    kept = volumes.kept(index.flatten(2)[0].T)
    if kept is not None:
        inside &= kept.view(inside.shape)
    config = _convex_config(grid.spacing_mm[0], metric)
    found = coupled_convex(_channels_first(volumes.fixed), there, volumes.mask[None, None], config, inside)
    return to_mm(found, grid)


def _convex_config(spacing_mm: float, metric: str) -> ConvexConfig:
    """The default search, which covers 64 mm and more, in voxels of this size."""
    default, share = ConvexConfig(), _CONVEX_DEFAULT_MM / spacing_mm
    step = tuple(max(1, round(share * n)) for n in default.step_vox)
    return replace(
        default,
        spacing_vox=tuple(n * s // was for n, s, was in zip(default.spacing_vox, step, default.step_vox, strict=True)),
        step_vox=step,
        half_width_vox=tuple(max(s, round(share * n)) for s, n in zip(step, default.half_width_vox, strict=True)),
        metric="ssd" if metric == "mind" else "cosine",
    )


def _channels_first(values: Tensor) -> Tensor:
    return values.float().movedim(-1, 0)[None]


def _image(scan: Representation, device: torch.device) -> Tensor:
    return torch.from_numpy(scan.values).to(device)


def _mask(image: sitk.Image, device: torch.device) -> Tensor:
    return torch.from_numpy(sitk.GetArrayFromImage(image) != 0).to(device)


def _short_of_memory(problem: Problem, device: torch.device) -> str:
    level = problem.levels[-1]
    gigabytes = (level.fixed.values.size + level.moving.values.size) * 2 / 1e9
    free = torch.cuda.mem_get_info(device)[0] / 1e9
    return (
        f"the GPU is out of memory: the descriptors alone take {gigabytes:.1f} GB, {free:.1f} GB are free; "
        "choose larger voxels (--spacing) or --device cpu"
    )
