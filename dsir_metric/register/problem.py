"""What is to be registered, and what comes of deforming it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.geometry import angle_deg
from dsir_metric.register.config import RegisterConfig
from dsir_metric.register.pair import Level, pyramid

__all__ = ["Array", "Deform", "Deformation", "Problem", "Report", "askew_deg"]

Array = NDArray[np.float64]
_LINEAR_MM = 3.0  # the linear stages need no voxels smaller than this


@dataclass(frozen=True)
class Problem:
    """What is to be registered.

    Parameters
    ----------
    levels : list of Level
        Coarse to fine.
    moving_body : sitk.Image
        Foreground of the moving image.
    pivot_mm : ndarray, shape (3,)
        Centroid of the foreground of the fixed image, where rotations turn.
    config : RegisterConfig
    """

    levels: list[Level]
    moving_body: sitk.Image
    pivot_mm: Array
    config: RegisterConfig

    def mixed(self) -> Problem:
        """For a close comparison: channels mixed, where both sides know how (`Representation.mixed`).

        This one is left without its levels, so that no more than one side is in memory twice.
        """
        level = self.levels[-1]
        if level.fixed.mixture is None or level.moving.mixture is None:
            return self
        self.levels.clear()
        level = replace(level, fixed=level.fixed.mixed())
        level = replace(level, moving=level.moving.mixed())
        return replace(self, levels=pyramid(level))

    @property
    def linear_level(self) -> Level:
        """The finest level the linear stages look at."""
        return next((level for level in reversed(self.levels) if level.spacing_mm >= _LINEAR_MM), self.levels[0])


def askew_deg(problem: Problem, rotation: Array) -> float:
    """Angle between the axes of the moving representation and those of the fixed one under `rotation` (3, 3)."""
    level = problem.levels[-1]
    fixed, moving = (np.reshape(side.grid.direction, (3, 3)) for side in (level.fixed, level.moving))
    return angle_deg(moving.T @ rotation @ fixed)


@dataclass(frozen=True)
class Deformation:
    """A displacement x -> x + u(x), LPS mm.

    Parameters
    ----------
    transform : sitk.Transform
    remark : str
        What the user should know of how it was found.
    inverse : sitk.Transform, optional
        The inverse, from those that have one.
    weights : (float, float), optional
        Those of diffusion and bending energy (mm^2) at the last lattice, from those that have one.
    """

    transform: sitk.Transform
    remark: str = ""
    inverse: sitk.Transform | None = None
    weights: tuple[float, float] | None = None


class Report(Protocol):
    """Receives how far a stage has come, in [0, 1], and the metric."""

    def __call__(self, fraction: float, metric: float) -> None:
        """Report."""
        ...


class Deform(Protocol):
    """What a backend offers."""

    def __call__(self, problem: Problem, linear: Array, report: Report) -> Deformation:
        """Find u such that x -> linear(x + u(x)) aligns the pair; `linear`, (4, 4), is kept as it is."""
        ...
