"""The (1+1) evolution strategy, as in ITK's v4 optimiser.

References
----------
Styner, Brechbuehler, Szekely, Gerig, "Parametric estimate of intensity inhomogeneities applied to MRI", IEEE TMI 2000,
https://doi.org/10.1109/42.845174.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from dsir_metric.sitk.optimizers.base import Optimizer
from dsir_metric.sitk.problem import Problem
from dsir_metric.sitk.settings import OnePlusOneEvolutionary

__all__ = ["OnePlusOneOptimizer"]


class OnePlusOneOptimizer(Optimizer):
    """One parent, one normally distributed child; the better one lives, and the spread grows or shrinks.

    ITK's random numbers are its own: with a seed, results repeat, but are equal to ITK's in distribution only.
    """

    itk_name = "OnePlusOneEvolutionaryOptimizerv4"

    def __init__(self, choice: OnePlusOneEvolutionary) -> None:
        super().__init__()
        self._choice = choice
        self._grow = 1.05 if choice.growthFactor == -1 else choice.growthFactor
        self._shrink = self._grow**-0.25 if choice.shrinkFactor == -1 else choice.shrinkFactor
        self._random = np.random.default_rng(None if choice.seed == sitk.sitkWallClock else choice.seed)

    def run(self, problem: Problem) -> None:
        """See `Optimizer.run`."""
        problem.prepare()
        self._stopped = False
        problem.say()
        position = problem.position
        parent = position.parameters
        self.metric_value = problem.value()
        spread = np.diag(self._choice.initialRadius / problem.scales)
        limit = self._choice.numberOfIterations
        self.stop_description = f"{self.itk_name}: Maximum number of iterations ({limit}) exceeded. "
        self.iteration = 0
        while self.iteration < limit:
            if self._stopped:
                self.stop_description = f"{self.itk_name}: StopOptimization() called"
                break
            draw = self._random.standard_normal(parent.size)
            delta = spread @ draw
            position.move_to(parent + delta)
            value = problem.value()
            improved = value < self.metric_value
            if improved:
                parent, self.metric_value = parent + delta, value
            position.move_to(parent)
            self.convergence = float(np.linalg.norm(spread))
            if self.convergence <= self._choice.epsilon:
                self.stop_description = (
                    f"{self.itk_name}: Fnorm ({self.convergence:g}) is less than Epsilon ({self._choice.epsilon:g} "
                    f"at iteration #{self.iteration}"
                )
                break
            change = (self._grow if improved else self._shrink) - 1
            spread = spread + change / (draw @ draw) * np.outer(delta, draw)
            problem.iterated()
            self.iteration += 1
        problem.say()
