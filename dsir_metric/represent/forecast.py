"""What a representation will need: memory, disk and time, told before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from dsir_metric.errors import ConfigError
from dsir_metric.geometry import Grid
from dsir_metric.represent.plan import PROCESS_BYTES
from dsir_metric.represent.representer import Representer

__all__ = ["SCALING_BYTES", "Forecast", "forecast_representation"]

SCALING_BYTES = 13  # a voxel, at most, while a scan is read and its intensities are scaled
_COPIES = 3  # of a representation, at most, while it is written as a whole


@dataclass(frozen=True)
class Forecast:
    """What a computation will need.

    Parameters
    ----------
    voxels : int
        That are represented.
    tiles : int
        That they are cut into, for both halves of the network.
    memory_bytes : int
        Of the process at its peak, rather too many.
    disk_bytes : int
        Of the output, before compression, and of what lies beside it meanwhile.
    seconds : float, optional
        About; None where a server has the model.
    advice : tuple of str
        What would change that.
    """

    voxels: int
    tiles: int
    memory_bytes: int
    disk_bytes: int
    seconds: float | None = None
    advice: tuple[str, ...] = ()


def forecast_representation(
    representer: Representer, grid: Grid, *, streamed: bool, timed: bool = False, memory_bytes: int | None = None
) -> Forecast:
    """What it will need to represent a 3-D scan.

    Parameters
    ----------
    representer : Representer
    grid : Grid
        Of the scan.
    streamed : bool
        Whether it is written by `Representer.write`, rather than made in memory and written as a whole.
    timed : bool
        Whether to time a small cube, for `Forecast.seconds`.
    memory_bytes : int, optional
        What the process may have.

    Raises
    ------
    ConfigError
        If that does not suffice.
    """
    voxels, channels = prod(grid.size), representer.card.channels
    whole = 0 if streamed else 4 * channels * voxels
    image = 0 if streamed else 4 * voxels
    plan = representer.plan(grid, held=4 * voxels + image + whole, streamed=streamed)
    features = 0 if plan.scratch else plan.feature_bytes
    memory = PROCESS_BYTES + max(
        SCALING_BYTES * voxels, 4 * voxels + image + whole + features + plan.tile_bytes, _COPIES * whole + 8 * voxels
    )
    if memory_bytes is not None and memory > memory_bytes:
        size = " x ".join(map(str, grid.size))
        raise ConfigError(
            f"{size} voxels need {memory / 1e6:.0f} MB of memory, {memory_bytes / 1e6:.0f} MB are allowed; "
            + ("allow more" if streamed else "write .mha, which needs less, or allow more")
        )
    return Forecast(
        voxels,
        plan.tiles,
        memory,
        4 * channels * voxels + (plan.feature_bytes if plan.scratch else 0),
        representer.seconds(plan) if timed else None,
        _advice(streamed, memory_bytes, plan.work[0] / voxels),
    )


def _advice(streamed: bool, memory_bytes: int | None, work: float) -> tuple[str, ...]:
    found = []
    if not streamed:
        found.append("less memory: write .mha, which is written piece by piece")
    elif memory_bytes is None:
        found.append("less memory: --memory, such as 2GB; smaller tiles take longer")
    if work > 2:
        found.append(
            f"less time: more --memory; the halos of the tiles make {work:.1f} times the work of a single tile"
        )
    return tuple(found)
