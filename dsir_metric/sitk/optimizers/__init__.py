"""Optimisers with ITK's semantics, one for each `SetOptimizerAs...`."""

from collections.abc import Callable
from typing import Any

from dsir_metric.sitk import settings
from dsir_metric.sitk.optimizers.base import Optimizer
from dsir_metric.sitk.optimizers.descent import GradientDescentOptimizer, RegularStepOptimizer
from dsir_metric.sitk.optimizers.evolution import OnePlusOneOptimizer
from dsir_metric.sitk.optimizers.exhaustive import ExhaustiveOptimizer
from dsir_metric.sitk.optimizers.line_search import ConjugateGradientOptimizer, LineSearchOptimizer
from dsir_metric.sitk.optimizers.scipy import AmoebaOptimizer, LBFGS2Optimizer, LBFGSBOptimizer, PowellOptimizer

__all__ = ["OPTIMIZERS", "Optimizer", "optimizer_for"]

OPTIMIZERS: dict[type, Callable[[Any], Optimizer]] = {
    settings.GradientDescent: GradientDescentOptimizer,
    settings.RegularStepGradientDescent: RegularStepOptimizer,
    settings.GradientDescentLineSearch: LineSearchOptimizer,
    settings.ConjugateGradientLineSearch: ConjugateGradientOptimizer,
    settings.LBFGSB: LBFGSBOptimizer,
    settings.LBFGS2: LBFGS2Optimizer,
    settings.Powell: PowellOptimizer,
    settings.Amoeba: AmoebaOptimizer,
    settings.OnePlusOneEvolutionary: OnePlusOneOptimizer,
    settings.Exhaustive: ExhaustiveOptimizer,
}


def optimizer_for(choice: settings.OptimizerChoice) -> Optimizer:
    """The optimiser that a setter's record asks for, in its first state."""
    return OPTIMIZERS[type(choice)](choice)
