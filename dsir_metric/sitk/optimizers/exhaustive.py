"""A walk over a grid of parameters, as in ITK's v4 optimiser."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError
from dsir_metric.sitk.optimizers.base import Optimizer
from dsir_metric.sitk.problem import WORST, Problem
from dsir_metric.sitk.settings import Exhaustive

__all__ = ["ExhaustiveOptimizer"]


class ExhaustiveOptimizer(Optimizer):
    """Visits every point of a grid around the start, the first parameter fastest, and ends at the best of them.

    Further levels walk around the same start (ITK does too, but for the first point of each, which it misplaces).
    Steps are step length times scale. Scales are those given by hand; they are not estimated.
    """

    itk_name = "ExhaustiveOptimizerv4"

    def __init__(self, choice: Exhaustive) -> None:
        super().__init__()
        self._steps = np.asarray(choice.numberOfSteps, int)
        self._length = choice.stepLength
        self._start: NDArray[np.float64] | None = None
        self._best = (WORST, np.zeros(0))

    def run(self, problem: Problem) -> None:
        """See `Optimizer.run`."""
        if self._start is None:
            self._start = problem.position.parameters
        start = self._start
        problem.position.move_to(start)
        if self._steps.size != start.size:
            raise ConfigError(f"{self._steps.size} numbers of steps for {start.size} parameters: give one for each")
        problem.estimator = None
        problem.prepare()
        problem.say()
        self._stopped = False
        problem.say()
        best, best_position = problem.value(), start
        indices = itertools.product(*(range(2 * n + 1) for n in self._steps[::-1]))
        for self.iteration, index in enumerate(indices):
            position = start + (np.array(index[::-1]) - self._steps) * self._length * problem.scales
            problem.position.move_to(position)
            self.metric_value = problem.value()
            if self.metric_value < best:
                best, best_position = self.metric_value, position
            self.stop_description = (
                f"{self.itk_name}: Running. @ index {list(index[::-1])} value is {self.metric_value:g}"
            )
            problem.iterated()
            if self._stopped:
                break
        else:
            self.stop_description = f"{self.itk_name}: Completed sampling of parametric space of size {start.size}"
        self.iteration += 1
        self._best = (best, best_position)

    def finish(self, problem: Problem) -> None:
        """Go to the best position of the last level."""
        self.metric_value, position = self._best
        problem.position.move_to(position)
