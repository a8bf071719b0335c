"""Which points of the virtual domain the metric looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError
from dsir_metric.geometry import Grid

__all__ = ["Sampling"]

Strategy = Literal["none", "regular", "random"]


@dataclass(frozen=True)
class Sampling:
    """Choice of sample points, with the meaning these words have in ITK.

    Parameters
    ----------
    strategy : {"none", "regular", "random"}
        "none": the centre of every voxel. "regular": one voxel out of ceil(1 / percentage), in raster order.
        "random": int(percentage * voxels) voxels drawn with replacement. The points of the last two are moved off the
        voxel centres by a normal deviate of a third of a voxel on each axis, against grid artefacts; those of a 2-D
        grid stay in its plane.
    percentage : float
        Share of voxels, above 0 and up to 1, as in SimpleITK; "none" does not use it.
    seed : int
        Seed of the draw and of the deviates; the same seed gives the same points.

    Raises
    ------
    ConfigError
        If the strategy is unknown, the percentage out of range or the seed negative.

    Notes
    -----
    The points follow ITK's rule, not its random numbers. ITK takes the deviates along the axes of physical space; here
    they go along those of the grid, so that a re-oriented header leaves the result as it is.
    """

    strategy: Strategy = "none"
    percentage: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ConfigError(f"sampling strategy {self.strategy!r} is unknown: use one of {get_args(Strategy)}")
        if not 0 < self.percentage <= 1:
            raise ConfigError(f"sampling percentage must lie above 0 and up to 1; {self.percentage} came")
        if self.seed < 0:
            raise ConfigError(f"a sampling seed of 0 or more is expected; {self.seed} came")

    def indices(self, grid: Grid) -> NDArray[np.float64]:
        """Continuous indices (n, 3), x, y, z, of the sample points on `grid`, in raster order of their voxels."""
        voxels = math.prod(grid.size)
        random = np.random.default_rng(self.seed)
        if self.strategy == "random":
            chosen = np.sort(random.integers(0, voxels, max(1, int(voxels * self.percentage))))
        else:
            stride = math.ceil(1 / self.percentage) if self.strategy == "regular" else 1
            chosen = np.arange(0, voxels, stride)
        z, y, x = np.unravel_index(chosen, grid.shape)
        indices = np.stack([x, y, z], axis=-1).astype(float)
        if self.strategy != "none":
            indices += random.standard_normal(indices.shape) / 3 * (np.arange(3) < grid.dimension)
        return indices
