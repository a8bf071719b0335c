"""Gradient and conjugate-gradient descent with a golden-section line search, as in ITK's v4 optimisers."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from dsir_metric.sitk.optimizers.descent import GradientDescentOptimizer
from dsir_metric.sitk.problem import WORST, Problem
from dsir_metric.sitk.settings import GradientDescentLineSearch

__all__ = ["ConjugateGradientOptimizer", "LineSearchOptimizer"]

_GOLDEN = 2 - 1.618034  # ITK's digits


class LineSearchOptimizer(GradientDescentOptimizer):
    """Steps along the gradient of the length that is best there; the best position is kept."""

    itk_name = "GradientDescentLineSearchOptimizerv4Template"
    returns_best = True

    def __init__(self, choice: GradientDescentLineSearch) -> None:
        super().__init__(choice)
        self._limits = (choice.lineSearchLowerLimit, choice.lineSearchUpperLimit)
        self._epsilon = choice.lineSearchEpsilon
        self._searches = choice.lineSearchMaximumIterations

    def _advance(self, problem: Problem) -> None:
        self._gradient = self._direction(problem)
        low, high = self._limits
        rate = self.learning_rate
        most = self._bounded(problem, rate * high)
        middle = min(rate, most) if most < rate * high else rate
        self.learning_rate = self._search(problem, min(rate * low, middle), middle, most)
        self._gradient = self._gradient * self.learning_rate
        problem.position.step(self._gradient)
        problem.iterated()

    def _direction(self, problem: Problem) -> NDArray[np.float64]:
        """The scaled gradient; estimates the learning rate on the first iteration."""
        self._gradient = problem.scaled(self._gradient)
        if self.iteration == 0:
            self._estimate_rate(problem)
        return self._gradient

    def _search(self, problem: Problem, low: float, middle: float, high: float) -> float:
        """Learning rate between `low` and `high` with the smallest value, by golden section from `middle`."""
        at_middle = WORST
        for _ in range(self._searches + 1):
            upper_is_wider = high - middle > middle - low
            trial = middle + _GOLDEN * ((high - middle) if upper_is_wider else (low - middle))
            if abs(high - low) < self._epsilon * (abs(middle) + abs(trial)):
                break
            at_trial = self._value_at(problem, trial)
            if at_middle == WORST:
                at_middle = self._value_at(problem, middle)
            if at_trial < at_middle:
                low, high = (middle, high) if upper_is_wider else (low, middle)
                middle, at_middle = trial, at_trial
            elif upper_is_wider:
                high = trial
            elif at_trial == WORST:
                high, middle = middle, trial
            else:
                low = trial
        return (low + high) / 2

    def _value_at(self, problem: Problem, rate: float) -> float:
        before = problem.position.parameters
        problem.position.step(self._gradient * rate)
        value = problem.value()
        problem.position.move_to(before)
        return value


class ConjugateGradientOptimizer(LineSearchOptimizer):
    """The same along conjugate directions (Polak and Ribiere, with restarts)."""

    itk_name = "ConjugateGradientLineSearchOptimizerv4Template"

    def _start(self, problem: Problem) -> None:
        super()._start(problem)
        self._last = np.zeros_like(self._gradient)
        self._conjugate = np.zeros_like(self._gradient)

    def _direction(self, problem: Problem) -> NDArray[np.float64]:
        gradient = super()._direction(problem)
        length = self._last @ self._last
        share = (gradient - self._last) @ gradient / length if length > sys.float_info.epsilon else 0.0
        if not 0 <= share <= 5:
            share = 0.0
        self._last = gradient
        self._conjugate = gradient + share * self._conjugate
        return self._conjugate
