"""What the setters of `ImageRegistrationMethod` record.

The native object does not give back most of its settings, so each setter leaves a frozen record here. The fields of
an optimiser's record have the names, the order and the defaults of the native setter's arguments.
"""
# ruff: noqa: N815 - SimpleITK's names

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import SimpleITK as sitk

__all__ = [
    "LBFGS2",
    "LBFGSB",
    "Amoeba",
    "ConjugateGradientLineSearch",
    "DNSCosine",
    "Exhaustive",
    "GradientDescent",
    "GradientDescentLineSearch",
    "OnePlusOneEvolutionary",
    "OptimizerChoice",
    "Powell",
    "RegularStepGradientDescent",
    "ScalesChoice",
    "Settings",
]

NEVER, ONCE, EACH_ITERATION = (
    sitk.ImageRegistrationMethod.Never,
    sitk.ImageRegistrationMethod.Once,
    sitk.ImageRegistrationMethod.EachIteration,
)


@dataclass(frozen=True)
class DNSCosine:
    """Arguments of `SetMetricAsDNSCosine`."""

    model: Any = "default"
    device: str = "auto"
    spacing_mm: float | None = None
    fixed_intensity: str = "auto"
    moving_intensity: str = "auto"
    foreground: bool = True


@dataclass(frozen=True)
class GradientDescent:
    """Arguments of `SetOptimizerAsGradientDescent`."""

    learningRate: float
    numberOfIterations: int
    convergenceMinimumValue: float = 1e-6
    convergenceWindowSize: int = 10
    estimateLearningRate: int = ONCE
    maximumStepSizeInPhysicalUnits: float = 0.0


@dataclass(frozen=True)
class RegularStepGradientDescent:
    """Arguments of `SetOptimizerAsRegularStepGradientDescent`."""

    learningRate: float
    minStep: float
    numberOfIterations: int
    relaxationFactor: float = 0.5
    gradientMagnitudeTolerance: float = 1e-4
    estimateLearningRate: int = NEVER
    maximumStepSizeInPhysicalUnits: float = 0.0


@dataclass(frozen=True)
class GradientDescentLineSearch:
    """Arguments of `SetOptimizerAsGradientDescentLineSearch`."""

    learningRate: float
    numberOfIterations: int
    convergenceMinimumValue: float = 1e-6
    convergenceWindowSize: int = 10
    lineSearchLowerLimit: float = 0.0
    lineSearchUpperLimit: float = 5.0
    lineSearchEpsilon: float = 0.01
    lineSearchMaximumIterations: int = 20
    estimateLearningRate: int = ONCE
    maximumStepSizeInPhysicalUnits: float = 0.0


@dataclass(frozen=True)
class ConjugateGradientLineSearch(GradientDescentLineSearch):
    """Arguments of `SetOptimizerAsConjugateGradientLineSearch`."""


@dataclass(frozen=True)
class LBFGSB:
    """Arguments of `SetOptimizerAsLBFGSB`; a bound left at its default is no bound."""

    gradientConvergenceTolerance: float = 1e-5
    numberOfIterations: int = 500
    maximumNumberOfCorrections: int = 5
    maximumNumberOfFunctionEvaluations: int = 2000
    costFunctionConvergenceFactor: float = 1e7
    lowerBound: float = sys.float_info.min
    upperBound: float = sys.float_info.max
    trace: bool = False


@dataclass(frozen=True)
class LBFGS2:
    """Arguments of `SetOptimizerAsLBFGS2`; 0 iterations means no limit."""

    solutionAccuracy: float = 1e-5
    numberOfIterations: int = 0
    hessianApproximateAccuracy: int = 6
    deltaConvergenceDistance: int = 0
    deltaConvergenceTolerance: float = 1e-5
    lineSearchMaximumEvaluations: int = 40
    lineSearchMinimumStep: float = 1e-20
    lineSearchMaximumStep: float = 1e20
    lineSearchAccuracy: float = 1e-4


@dataclass(frozen=True)
class Powell:
    """Arguments of `SetOptimizerAsPowell`."""

    numberOfIterations: int = 100
    maximumLineIterations: int = 100
    stepLength: float = 1.0
    stepTolerance: float = 1e-6
    valueTolerance: float = 1e-6


@dataclass(frozen=True)
class Amoeba:
    """Arguments of `SetOptimizerAsAmoeba`."""

    simplexDelta: float
    numberOfIterations: int
    parametersConvergenceTolerance: float = 1e-8
    functionConvergenceTolerance: float = 1e-4
    withRestarts: bool = False


@dataclass(frozen=True)
class OnePlusOneEvolutionary:
    """Arguments of `SetOptimizerAsOnePlusOneEvolutionary`."""

    numberOfIterations: int = 100
    epsilon: float = 1.5e-4
    initialRadius: float = 1.01
    growthFactor: float = -1.0
    shrinkFactor: float = -1.0
    seed: int = sitk.sitkWallClock


@dataclass(frozen=True)
class Exhaustive:
    """Arguments of `SetOptimizerAsExhaustive`."""

    numberOfSteps: Sequence[int]
    stepLength: float = 1.0


OptimizerChoice = (
    GradientDescent
    | RegularStepGradientDescent
    | GradientDescentLineSearch
    | LBFGSB
    | LBFGS2
    | Powell
    | Amoeba
    | OnePlusOneEvolutionary
    | Exhaustive
)


@dataclass(frozen=True)
class ScalesChoice:
    """How parameters of different units are made comparable; empty manual scales are all ones."""

    kind: Literal["manual", "physical shift", "index shift", "jacobian"] = "manual"
    values: tuple[float, ...] = ()
    central_region_radius: int = 5
    small_variation: float = 0.01


@dataclass(frozen=True)
class Settings:
    """Everything `Execute` needs to know; one per method object, replaced whole by each setter.

    As in SimpleITK, images and transforms are those of the moment they were set: `initial` is a copy of `given`, which
    a registration in place changes as long as nobody else has.
    """

    metric: DNSCosine | None = None
    optimizer: OptimizerChoice | None = None
    scales: ScalesChoice = field(default_factory=ScalesChoice)
    weights: tuple[float, ...] = ()
    shrink_factors: tuple[int, ...] = (1,)
    sigmas: tuple[float, ...] = (0.0,)
    sigmas_in_mm: bool = True
    sampling_strategy: int = sitk.ImageRegistrationMethod.NONE
    sampling_percentages: tuple[float, ...] = (1.0,)
    sampling_seed: int = sitk.sitkWallClock
    fixed_mask: sitk.Image | None = None
    moving_mask: sitk.Image | None = None
    virtual_domain: sitk.Image | None = None
    initial: sitk.Transform | None = None
    given: sitk.Transform | None = None
    in_place: bool = False
    bspline_factors: tuple[int, ...] = ()
    fixed_initial: sitk.Transform | None = None
    moving_initial: sitk.Transform | None = None
