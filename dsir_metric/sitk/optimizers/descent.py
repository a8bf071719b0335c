"""Gradient descent and regular-step gradient descent, with the semantics of ITK's v4 optimisers."""

from __future__ import annotations

import sys
from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError
from dsir_metric.sitk.convergence import WindowConvergence
from dsir_metric.sitk.optimizers.base import Optimizer
from dsir_metric.sitk.problem import WORST, Problem
from dsir_metric.sitk.settings import (
    EACH_ITERATION,
    NEVER,
    ONCE,
    GradientDescent,
    GradientDescentLineSearch,
    RegularStepGradientDescent,
)

__all__ = ["Descent", "GradientDescentOptimizer", "RegularStepOptimizer"]

Vector = NDArray[np.float64]


class Descent(Optimizer):
    """The loop of all descents: evaluate, check convergence, advance.

    The learning rate and the default of the longest step stay from one level to the next, as in ITK. Only where the
    slopes are small is that default one voxel of each level.
    """

    returns_best = False

    def __init__(self, choice: GradientDescent | GradientDescentLineSearch | RegularStepGradientDescent) -> None:
        super().__init__()
        self.learning_rate = choice.learningRate
        self.convergence = WORST
        self._iterations = choice.numberOfIterations
        self._estimate = choice.estimateLearningRate
        self._longest_step = choice.maximumStepSizeInPhysicalUnits
        self._one_voxel = self._longest_step <= sys.float_info.epsilon
        self._gradient = np.zeros(0)
        self._previous = np.zeros(0)
        self._best: tuple[float, Vector] = (WORST, np.zeros(0))
        self._running: Problem | None = None

    def run(self, problem: Problem) -> None:
        """See `Optimizer.run`."""
        self._start(problem)
        problem.say()
        while not self._stopped:
            if self.iteration >= self._iterations:
                self._finish(problem, f"Maximum number of iterations ({self._iterations}) exceeded.")
                break
            self._previous = self._gradient
            self.metric_value, self._gradient = problem.value_and_descent()
            if self._converged():
                self._finish(problem, f"Convergence checker passed at iteration {self.iteration}.")
                break
            self._advance(problem)
            if self.metric_value < self._best[0]:
                self._best = (self.metric_value, problem.position.parameters)
            self.iteration += 1

    def stop(self) -> None:
        """See `Optimizer.stop`."""
        if self._running is not None and not self._stopped:
            self._finish(self._running, "")

    def _start(self, problem: Problem) -> None:
        problem.prepare()
        unknown = self._longest_step <= sys.float_info.epsilon
        if problem.estimator is not None and (unknown or (self._one_voxel and problem.small_slopes)):
            self._longest_step = problem.estimator.maximum_step()
        self.stop_description = f"{self.itk_name}: "
        self.iteration = 0
        self._stopped = False
        self._running = problem
        size = problem.position.parameters.size
        self._gradient = self._previous = np.zeros(size)
        self._best = (WORST, problem.position.parameters if self.returns_best else np.zeros(0))

    def _converged(self) -> bool:
        return False

    @abstractmethod
    def _advance(self, problem: Problem) -> None:
        """One step from the present position, against the present gradient."""

    def _finish(self, problem: Problem, reason: str) -> None:
        if self.returns_best:
            problem.position.move_to(self._best[1])
            self.metric_value = self._best[0]
        self.stop_description += reason
        self._stopped = True
        problem.say()

    def _estimate_rate(self, problem: Problem) -> bool:
        """Set the learning rate so that the step is as long as the longest allowed, if it is time for that."""
        due = self._estimate == EACH_ITERATION or (self._estimate == ONCE and self.iteration == 0)
        if problem.estimator is None or not due:
            return False
        scale = problem.estimator.step_scale(self._gradient)
        self.learning_rate = 1.0 if scale <= sys.float_info.epsilon else self._longest_step / scale
        return True

    def _bounded(self, problem: Problem, rate: float) -> float:
        """A learning rate, or less where the step it makes would be longer than the longest allowed.

        ITK looks at the first step alone. Where that is taken on flat ground, the rate is too large for any slope.
        """
        if not problem.small_slopes or problem.estimator is None or self._estimate == NEVER:
            return rate
        scale = problem.estimator.step_limit(self._gradient)
        return rate if rate * scale <= self._longest_step else self._longest_step / scale


class GradientDescentOptimizer(Descent):
    """Steps of learning rate times gradient, until the metric values stop going down."""

    itk_name = "GradientDescentOptimizerv4Template"

    def __init__(self, choice: GradientDescent | GradientDescentLineSearch) -> None:
        super().__init__(choice)
        self._window = choice.convergenceWindowSize
        self._smallest_slope = choice.convergenceMinimumValue
        self._monitor = WindowConvergence(self._window)

    def _start(self, problem: Problem) -> None:
        super()._start(problem)
        self._monitor = WindowConvergence(self._window)
        self.convergence = WORST

    def _converged(self) -> bool:
        self.convergence = self._monitor.add(self.metric_value)
        return self.convergence <= self._smallest_slope

    def _advance(self, problem: Problem) -> None:
        self._gradient = problem.scaled(self._gradient)
        if not self._estimate_rate(problem):
            self.learning_rate = self._bounded(problem, self.learning_rate)
        self._gradient = self._gradient * self.learning_rate
        problem.position.step(self._gradient)
        problem.iterated()


class RegularStepOptimizer(Descent):
    """Steps of a length that is cut whenever the direction turns back."""

    itk_name = "RegularStepGradientDescentOptimizerv4"

    def __init__(self, choice: RegularStepGradientDescent) -> None:
        super().__init__(choice)
        if not 0 <= choice.relaxationFactor < 1:
            raise ConfigError(f"a relaxation factor from 0 to below 1 is expected; {choice.relaxationFactor} came")
        if choice.gradientMagnitudeTolerance < 0:
            raise ConfigError(
                f"a gradient magnitude tolerance of 0 or more is expected; {choice.gradientMagnitudeTolerance} came"
            )
        self._factor = choice.relaxationFactor
        self._shortest = choice.minStep
        self._tolerance = self._smallest_gradient = choice.gradientMagnitudeTolerance
        self._relaxation = 1.0

    def _start(self, problem: Problem) -> None:
        super()._start(problem)
        if problem.position.is_field:
            raise ConfigError("regular-step gradient descent cannot move a displacement field: use gradient descent")
        self._relaxation = 1.0

    def _advance(self, problem: Problem) -> None:
        self._gradient, self._previous = problem.scaled(self._gradient), problem.scaled(self._previous)
        magnitude = float(np.linalg.norm(self._gradient))
        if problem.small_slopes and self.iteration == 0:
            self._smallest_gradient = self._tolerance * magnitude
        if magnitude < self._smallest_gradient:
            self._finish(
                problem,
                f"Gradient magnitude tolerance met after {self.iteration} iterations. Gradient magnitude "
                f"({magnitude:g}) is less than gradient magnitude tolerance ({self._smallest_gradient:g}).",
            )
            return
        if self._gradient @ self._previous < 0:
            self._relaxation *= self._factor
        length = self._relaxation * self.learning_rate
        if length < self._shortest:
            self._finish(
                problem,
                f"Step too small after {self.iteration} iterations. Current step ({length:g}) is less than minimum "
                f"step ({self._shortest:g}).",
            )
            return
        if self._estimate_rate(problem):
            self.learning_rate *= magnitude
        self._gradient = self._gradient * self._relaxation * self.learning_rate
        problem.position.step(self._gradient, 1.0 / magnitude)
        problem.iterated()
