"""What a registration will need, told before it starts, and the voxel size that a given memory allows."""

from __future__ import annotations

import warnings
from math import prod

from dsir_metric.errors import ConfigError
from dsir_metric.geometry import Grid
from dsir_metric.register.config import RegisterConfig
from dsir_metric.register.orientation import LARGEST, coarse_bytes
from dsir_metric.represent.forecast import Forecast
from dsir_metric.represent.pair import finer_spacing, parallel, shared_spacing, working_grids
from dsir_metric.represent.plan import PROCESS_BYTES, Plan
from dsir_metric.represent.representer import Representer

__all__ = [
    "finer_bytes",
    "forecast_registration",
    "levels_bytes",
    "memory_left",
    "open_representer",
    "orienting_bytes",
    "turning_bytes",
    "within_memory",
]

# Bytes, measured with the backend sitk.
_COMPILED = 150_000_000  # the compiled metric and what else a registration loads, beside PROCESS_BYTES
_WORKER = 100_000_000  # dask in a worker of a study: set aside, it takes less
_PYRAMID = 8 / 7  # a representation and all its levels against itself
_METRIC = 180  # a voxel of the fixed side: points of the metric and their derivatives
_RESAMPLED = 8  # a voxel of a scan that is resampled along its own axes: two copies
_TURNED = 12  # and along others: splines besides
_JACOBIAN = 5  # a voxel of the fixed scan: a determinant
_JACOBIAN_SLAB, _SLAB_BYTES = 300, 300_000_000  # and what they are computed from, a slab at a time
_WRITTEN = 8  # a voxel of the fixed scan: the moved one, and a copy while it is written
_HALF = 2  # a component of a representation of a study: as it is kept on disk, beside it
_COARSER, _STEPS = 1.02, 120  # the voxel sizes that are tried, up to ten times the one without a limit
_SHARED_STEPS = 14  # and where a study shares them
# Seconds of the stages on two cores; those of the representations are measured.
_STAGES_S, _STAGES_S_PER_VOXEL = 10.0, 12e-6


def open_representer(config: RegisterConfig, fixed: Grid, moving: Grid) -> Representer:
    """What represents the scans of a registration, within the part of the memory that is left for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what it warns of is in the result
        return Representer(
            config.model,
            config.device,
            config.threads,
            memory_bytes=memory_left(config, fixed, moving),
            gpu_memory_bytes=config.gpu_memory_bytes,
        )


def memory_left(config: RegisterConfig, fixed: Grid, moving: Grid, *, shared: bool = False) -> int | None:
    """What the memory of `config` leaves for the representer; it is told as `held` what else there is.

    Parameters
    ----------
    config : RegisterConfig
    fixed, moving : Grid
        Of the scans.
    shared : bool
        Whether a worker of a study has them.
    """
    if config.memory_bytes is None:
        return None
    return max(1, config.memory_bytes - _beside(fixed, moving, shared))


def within_memory(
    config: RegisterConfig, fixed: Grid, moving: Grid, representer: Representer, *, shared: bool = False
) -> tuple[float, str]:
    """The voxel size to work at: that of `config`, or else the finest that fits, and what is to be said about it.

    Parameters
    ----------
    config : RegisterConfig
    fixed, moving : Grid
        Of the scans.
    representer : Representer
        See `open_representer`, or with `memory_left`.
    shared : bool
        Whether these are scans of a study: the voxel size is one of those that it shares, see `working_grids`.

    Returns
    -------
    spacing_mm : float
    remark : str
        Empty where the memory makes no difference.

    Raises
    ------
    ConfigError
        If the voxel size that `config` asks for does not fit into its memory, or none does; the message says what
        would.
    """
    wanted, limit = working_grids(fixed, moving, config.spacing_mm, shared=shared)[0].spacing_mm[0], config.memory_bytes
    if limit is None:
        return wanted, ""
    needed = _needed(fixed, moving, representer, wanted, shared)
    if needed <= limit:
        return wanted, ""
    told = f"voxels of {wanted:.3g} mm need {needed / 1e6:.0f} MB of memory or more, {limit / 1e6:.0f} MB are allowed"
    if shared and config.spacing_mm is None:
        sizes = [shared_spacing(wanted, k) for k in range(1, _SHARED_STEPS)]
    else:
        sizes = [float(f"{wanted * _COARSER**k:.3g}") for k in range(1, _STEPS)]  # as they are told
    least = needed
    for spacing in sizes:
        try:
            least = _needed(fixed, moving, representer, spacing, shared)
        except ConfigError:  # they would leave a scan a single slice
            break
        if least <= limit:
            break
    if least > limit:
        raise ConfigError(f"{told}, and larger ones {least / 1e6:.0f} MB at least: allow more (--memory)")
    if config.spacing_mm is not None:
        raise ConfigError(f"{told}: allow that much (--memory), or take voxels of {spacing:g} mm (--spacing)")
    return spacing, f"{told}: voxels of {spacing:.3g} mm are taken instead"


def turning_bytes(
    fixed: Grid, moving: Grid, working: tuple[Grid, Grid], turned: Grid, make: Representer, *, shared: bool = False
) -> int:
    """The least memory to represent the moving scan again, on `turned`, beside all levels on `working` grids.

    Parameters
    ----------
    fixed, moving : Grid
        Of the scans.
    working : tuple of Grid
        Of both representations at their finest level.
    turned : Grid
    make : Representer
    shared : bool
        Whether a worker of a study does it.
    """
    held, beside = levels_bytes(working, make.card.channels), _beside(fixed, moving, shared)
    return beside + max(
        PROCESS_BYTES + held + 4 * make.card.channels * prod(turned.size) + _TURNED * prod(moving.size),
        make.least_bytes(turned, held + _working(turned, make)),
    )


def orienting_bytes(
    fixed: Grid, moving: Grid, working: tuple[Grid, Grid], make: Representer, *, shared: bool = False
) -> int:
    """The least memory to search all orientations beside all levels on `working` grids.

    Parameters
    ----------
    fixed, moving, working, make, shared
        See `turning_bytes`.
    """
    channels, beside = make.card.channels, _beside(fixed, moving, shared)
    held = levels_bytes(working, channels) + coarse_bytes(channels)
    return beside + max(
        PROCESS_BYTES + held + _TURNED * max(prod(fixed.size), prod(moving.size)),
        make.least_bytes(LARGEST, held + _working(LARGEST, make)),
    )


def finer_bytes(
    fixed: Grid, moving: Grid, working: tuple[Grid, Grid], spacing_mm: float, make: Representer, *, shared: bool = False
) -> int:
    """The least memory to represent both scans in voxels of `spacing_mm` beside all levels on `working` grids.

    Parameters
    ----------
    fixed, moving, working, make, shared
        See `turning_bytes`.
    spacing_mm : float
        See `finer_spacing`.
    """
    channels, beside = make.card.channels, _beside(fixed, moving, shared)
    smaller = [grid.resampled(spacing_mm) for grid in working]
    held = levels_bytes(working, channels)
    first, second, third = (4 * channels * prod(grid.size) for grid in (*smaller, working[0]))
    mixed = second if make.card.mixture else 0
    return beside + max(
        PROCESS_BYTES + held + 2 * first + third + _TURNED * prod(fixed.size),  # read at the working grid
        make.least_bytes(smaller[0], held + _working(smaller[0], make)),
        make.least_bytes(smaller[1], held + third + _working(smaller[1], make)),
        PROCESS_BYTES + held + third + second + mixed + _TURNED * prod(moving.size) + _METRIC * prod(working[0].size),
    )


def levels_bytes(working: tuple[Grid, Grid], channels: int) -> int:
    """Of the representations on these grids and all their levels."""
    return int(_PYRAMID * 4 * channels * sum(prod(grid.size) for grid in working))


def forecast_registration(
    config: RegisterConfig, fixed: Grid, moving: Grid, representer: Representer, *, timed: bool = False
) -> Forecast:
    """What it will need to register two scans with the backend sitk.

    Parameters
    ----------
    config, fixed, moving, representer
        See `within_memory`, whose errors this raises too.
    timed : bool
        Whether to time a small cube, for `Forecast.seconds`.
    """
    spacing, remark = within_memory(config, fixed, moving, representer)
    grids = working_grids(fixed, moving, spacing)
    plans = _plans(grids, representer)
    needed = _needed(fixed, moving, representer, spacing)
    more: tuple[Plan, ...] = ()
    smaller = finer_spacing(grids, config.refine.voxels) if config.refines else None
    if smaller is not None:
        least = finer_bytes(fixed, moving, grids, smaller, representer)
        if config.memory_bytes is None or least <= config.memory_bytes:
            needed = max(needed, least)
            more = _plans((grids[0].resampled(smaller), grids[1].resampled(smaller)), representer)
    network = representer.seconds(*plans, *more) if timed else None
    advice = [f"voxels of {spacing:.3g} mm; larger ones (--spacing) need less memory and time"]
    if config.memory_bytes is None:
        advice.append("less memory: --memory, such as 2GB, chooses tiles, and a voxel size where none is given")
    return Forecast(
        sum(prod(grid.size) for grid in grids),
        sum(plan.tiles for plan in plans),
        needed,
        4 * prod(fixed.size),
        None if network is None else network + _STAGES_S + _STAGES_S_PER_VOXEL * prod(grids[0].size),
        (*([remark] if remark else []), *advice),
    )


def _needed(fixed: Grid, moving: Grid, representer: Representer, spacing_mm: float, shared: bool = False) -> int:
    """Bytes of the process at its peak; one thing after the other is held beside the scans."""
    grids = working_grids(fixed, moving, spacing_mm, shared=shared)
    first, second = _plans(grids, representer)
    mixed = 4 * representer.card.channels * max(prod(grid.size) for grid in grids) if representer.card.mixture else 0
    kept = _HALF * representer.card.channels * prod(grids[1].size) if shared else 0
    scans = zip((fixed, moving), grids, strict=True)
    held, both = (4 * representer.card.channels * sum(prod(grid.size) for grid in some) for some in (grids[:1], grids))
    peak = max(
        both + kept,
        *(both + (_RESAMPLED if parallel(scan, grid) else _TURNED) * prod(scan.size) for scan, grid in scans),
        _working(grids[0], representer) + first.feature_bytes + first.tile_bytes,
        held + _working(grids[1], representer) + second.feature_bytes + second.tile_bytes,
        levels_bytes(grids, representer.card.channels) + _METRIC * prod(grids[0].size),
        levels_bytes(grids, representer.card.channels) + mixed,
        _JACOBIAN * prod(fixed.size) + min(_SLAB_BYTES, _JACOBIAN_SLAB * prod(fixed.size)),
        _WRITTEN * prod(fixed.size),
    )
    return PROCESS_BYTES + _beside(fixed, moving, shared) + peak


def _plans(grids: tuple[Grid, Grid], representer: Representer) -> tuple[Plan, Plan]:
    """Tiles of both sides; the second is represented beside the first."""
    held = 4 * representer.card.channels * prod(grids[0].size)
    first, second = (_working(grid, representer) for grid in grids)
    return representer.plan(grids[0], first), representer.plan(grids[1], held + second)


def _beside(fixed: Grid, moving: Grid, shared: bool) -> int:
    """Bytes of the scans and of what a registration has loaded beside `PROCESS_BYTES`."""
    return _COMPILED + (_WORKER if shared else 0) + 4 * (prod(fixed.size) + prod(moving.size))


def _working(grid: Grid, representer: Representer) -> int:
    """Bytes of a scan on its working grid, as it comes and scaled, and of its representation."""
    return 4 * (2 + representer.card.channels) * prod(grid.size)
