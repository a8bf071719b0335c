"""Quasi-Newton and derivative-free optimisers: SciPy's, behind the settings and events of SimpleITK."""

from __future__ import annotations

import sys
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from dsir_metric.errors import ConfigError
from dsir_metric.sitk.optimizers.base import Optimizer
from dsir_metric.sitk.problem import Problem
from dsir_metric.sitk.settings import LBFGS2, LBFGSB, Amoeba, Powell

__all__ = ["AmoebaOptimizer", "LBFGS2Optimizer", "LBFGSBOptimizer", "PowellOptimizer"]

Vector = NDArray[np.float64]
_RESTARTS = 8


class ScipyOptimizer(Optimizer):
    """Runs `scipy.optimize.minimize` on parameters times a unit, in which they are of one size."""

    uses_scales = True
    uses_derivative = False

    def run(self, problem: Problem) -> None:
        """See `Optimizer.run`."""
        if not self.uses_scales:
            problem.estimator, problem.scales = None, np.ones(problem.position.local_size)
        problem.prepare()
        unit = self._unit(problem)
        self._stopped = False
        self.iteration = 0
        problem.say()
        slope = 1.0
        if self.uses_derivative and problem.small_slopes:
            self.metric_value, derivative = problem.metric.value_and_derivative(problem.position.transform)
            slope = float(np.abs(derivative / unit).max(initial=0.0))
        else:
            self.metric_value = problem.metric.value(problem.position.transform)

        held = [problem]

        def evaluate(x: Vector) -> Any:
            here = held[0]
            here.position.move_to(x / unit)
            if not self.uses_derivative:
                return here.value()
            value, derivative = here.value_and_derivative()
            return value, derivative / unit

        def report(intermediate_result: optimize.OptimizeResult) -> None:
            held[0].position.move_to(intermediate_result.x / unit)
            self.metric_value = float(intermediate_result.fun)
            held[0].iterated()
            self.iteration += 1
            if self._stopped:
                raise StopIteration

        try:
            result = optimize.minimize(
                evaluate,
                problem.position.parameters * unit,
                jac=self.uses_derivative,
                callback=report,
                **self._arguments(slope),
            )
        finally:
            held.clear()  # the problem holds representations, and SciPy may hold `evaluate` in a reference cycle
        problem.position.move_to(result.x / unit)
        self.metric_value = float(result.fun)
        reason = "StopOptimization() called" if self._stopped else str(result.message)
        self.stop_description = f"{self.itk_name}: {reason}"
        problem.say()

    @abstractmethod
    def _arguments(self, slope: float) -> dict[str, Any]:
        """Method, bounds and options of `scipy.optimize.minimize`; tolerances of gradients are shares of `slope`."""

    def _unit(self, problem: Problem) -> Vector:
        """ITK's derivative-free optimisers move parameters times scales."""
        return np.resize(problem.scales, problem.position.parameters.size)


class LBFGSBOptimizer(ScipyOptimizer):
    """L-BFGS with bounds. As in ITK, it knows no scales."""

    itk_name = "LBFGSBOptimizerv4"
    uses_scales = False
    uses_derivative = True

    def __init__(self, choice: LBFGSB) -> None:
        super().__init__()
        lower = -np.inf if choice.lowerBound == sys.float_info.min else choice.lowerBound
        upper = np.inf if choice.upperBound == sys.float_info.max else choice.upperBound
        if not lower <= upper:
            raise ConfigError(f"bounds from {lower:g} to {upper:g} came: the lower one must not exceed the upper one")
        if choice.maximumNumberOfCorrections < 1:
            raise ConfigError(
                f"a number of corrections of at least 1 is expected; {choice.maximumNumberOfCorrections} came"
            )
        self._choice, self._bounds = choice, (lower, upper)

    def _arguments(self, slope: float) -> dict[str, Any]:
        choice = self._choice
        return {
            "method": "L-BFGS-B",
            "bounds": optimize.Bounds(*self._bounds),
            "options": {
                "gtol": choice.gradientConvergenceTolerance * slope,
                "maxiter": choice.numberOfIterations,
                "maxcor": choice.maximumNumberOfCorrections,
                "maxfun": choice.maximumNumberOfFunctionEvaluations,
                "ftol": choice.costFunctionConvergenceFactor * sys.float_info.epsilon,
            },
        }


class LBFGS2Optimizer(ScipyOptimizer):
    """L-BFGS without bounds; scales become a change of variables.

    The step limits and the accuracy of the line search have no counterpart in SciPy, and the change of the value is
    looked at over one iteration, whatever the distance.
    """

    itk_name = "LBFGS2Optimizerv4"
    uses_derivative = True

    def __init__(self, choice: LBFGS2) -> None:
        super().__init__()
        self._choice = choice

    def _unit(self, problem: Problem) -> Vector:
        return np.sqrt(super()._unit(problem))

    def _arguments(self, slope: float) -> dict[str, Any]:
        choice = self._choice
        return {
            "method": "L-BFGS-B",
            "options": {
                "gtol": choice.solutionAccuracy * slope,
                "ftol": choice.deltaConvergenceTolerance if choice.deltaConvergenceDistance else 0.0,
                "maxiter": choice.numberOfIterations or sys.maxsize,
                "maxfun": sys.maxsize,
                "maxcor": choice.hessianApproximateAccuracy,
                "maxls": choice.lineSearchMaximumEvaluations,
            },
        }


class PowellOptimizer(ScipyOptimizer):
    """Powell's method; step length and line iterations are SciPy's own choice."""

    itk_name = "PowellOptimizerv4"

    def __init__(self, choice: Powell) -> None:
        super().__init__()
        self._choice = choice

    def _arguments(self, slope: float) -> dict[str, Any]:
        choice = self._choice
        return {
            "method": "Powell",
            "options": {
                "maxiter": choice.numberOfIterations,
                "xtol": choice.stepTolerance,
                "ftol": choice.valueTolerance,
            },
        }


class AmoebaOptimizer(ScipyOptimizer):
    """The simplex method of Nelder and Mead.

    As in SimpleITK, `numberOfIterations` bounds the evaluations. The first simplex has edges of `simplexDelta`.
    """

    itk_name = "AmoebaOptimizerv4"

    def __init__(self, choice: Amoeba) -> None:
        super().__init__()
        self._choice = choice
        self._simplex = np.zeros((0, 0))

    def run(self, problem: Problem) -> None:
        """See `Optimizer.run`; with restarts, again with ever smaller simplices until the value settles."""
        before = np.inf
        for restart in range(_RESTARTS if self._choice.withRestarts else 1):
            problem.prepare()
            start = problem.position.parameters * self._unit(problem)
            edges = self._choice.simplexDelta / 2**restart * np.eye(start.size)
            self._simplex = np.vstack([start, start + edges])
            super().run(problem)
            if self._stopped or abs(before - self.metric_value) < self._choice.functionConvergenceTolerance:
                return
            before = self.metric_value

    def _arguments(self, slope: float) -> dict[str, Any]:
        choice = self._choice
        return {
            "method": "Nelder-Mead",
            "options": {
                "initial_simplex": self._simplex,
                "maxfev": choice.numberOfIterations,
                "xatol": choice.parametersConvergenceTolerance,
                "fatol": choice.functionConvergenceTolerance,
            },
        }
