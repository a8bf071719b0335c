"""What every optimiser has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dsir_metric.sitk.problem import Problem

__all__ = ["Optimizer"]


class Optimizer(ABC):
    """State of an optimiser; it lives through all levels, as ITK's do.

    Attributes
    ----------
    iteration : int
        Counts from 0 on each level.
    metric_value : float
        The value that the last iteration reports.
    learning_rate, convergence : float
        0 for optimisers that have none.
    stop_description : str
        Why the last level ended, in ITK's words.
    """

    itk_name: str

    def __init__(self) -> None:
        self.iteration = 0
        self.metric_value = 0.0
        self.learning_rate = 0.0
        self.convergence = 0.0
        self.stop_description = f"{self.itk_name}: "
        self._stopped = False

    @abstractmethod
    def run(self, problem: Problem) -> None:
        """Optimise one level; leaves the problem's position at the result."""

    def stop(self) -> None:
        """End the level after the present iteration."""
        self._stopped = True

    def finish(self, problem: Problem) -> None:  # noqa: B027
        """What is left to do after the last level; for most, nothing."""
