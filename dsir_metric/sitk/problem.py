"""What an optimiser sees of a registration on one level."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, RegistrationError
from dsir_metric.sitk.position import Position
from dsir_metric.sitk.scales import ScaleEstimator

__all__ = ["WORST", "Metric", "Problem"]

Vector = NDArray[np.float64]
WORST = sys.float_info.max
_VERY_LARGE = 1e10  # worse than any value of a metric, and still a number one can interpolate with
_IDENTITY_SCALES, _IDENTITY_WEIGHTS = 0.01, 1e-4  # how far from 1 counts as 1, as in ITK


class Metric(Protocol):
    """A value that is minimised, as a function of a transform."""

    @property
    def valid_points(self) -> int:
        """Number of points that counted in the last evaluation."""

    def value(self, transform: Any) -> float:
        """The value under `transform`."""

    def value_and_derivative(self, transform: Any) -> tuple[float, Vector]:
        """The value and its derivative with respect to the parameters."""


@dataclass
class Problem:
    """Metric, position, and how their parameters are weighed.

    Parameters
    ----------
    metric : Metric
        Minimised.
    position : Position
        Moved by the optimiser.
    estimator : ScaleEstimator or None
        None when scales are given by hand.
    scales, weights : ndarray
        One for each local parameter, or empty for ones; `prepare` replaces the scales where there is an estimator.
    notify : callable
        Called with an event of the optimiser.
    small_slopes : bool
        Whether the metric is a cosine of descriptors, whose slopes are small everywhere and vanish far away. Then,
        other than in ITK, no step of a descent is longer than the longest allowed, not only the first; and tolerances
        of gradients are shares of the first gradient of a level.
    """

    metric: Metric
    position: Position
    estimator: ScaleEstimator | None
    scales: Vector
    weights: Vector
    notify: Callable[[int], None]
    small_slopes: bool = False

    def prepare(self) -> None:
        """Estimate scales where that was asked for, and check scales and weights.

        Raises
        ------
        ConfigError
            If their number is not that of the (local) parameters, or a scale is not positive.
        """
        size = self.position.local_size
        if self.estimator is not None:
            self.scales = self.estimator.scales()
        for name, values in (("scales", self.scales), ("weights", self.weights)):
            if values.size not in (0, size):
                raise ConfigError(f"{values.size} optimiser {name} for {size} (local) parameters: give one for each")
        self.scales = self.scales if self.scales.size else np.ones(size)
        if not self.scales.min() > sys.float_info.epsilon:
            raise ConfigError(
                f"the smallest optimiser scale is {self.scales.min():.3g}: scales must be positive; if they were "
                "estimated, estimate them in another way or give them by hand"
            )
        if not np.isfinite(self.weights).all():
            raise ConfigError(f"optimiser weights {self.weights.tolist()} came: give finite numbers")

    @property
    def factors(self) -> Vector | None:
        """Weight over scale for each local parameter; None when all of both are one."""
        weights = self.weights if self.weights.size else np.ones_like(self.scales)
        ones = np.abs(self.scales - 1).max() <= _IDENTITY_SCALES and np.abs(weights - 1).max() <= _IDENTITY_WEIGHTS
        return None if ones else weights / self.scales

    def scaled(self, gradient: Vector) -> Vector:
        """A gradient times weights over scales."""
        factors = self.factors
        return gradient if factors is None else (gradient.reshape(-1, factors.size) * factors).ravel()

    def value(self) -> float:
        """Metric value at the position; the largest float where no point counts."""
        try:
            return self.metric.value(self.position.transform)
        except RegistrationError:
            return WORST

    def value_and_derivative(self) -> tuple[float, Vector]:
        """Metric value and derivative at the position; very large and flat where no point counts."""
        try:
            return self.metric.value_and_derivative(self.position.transform)
        except RegistrationError:
            return _VERY_LARGE, np.zeros_like(self.position.parameters)

    def value_and_descent(self) -> tuple[float, Vector]:
        """Metric value at the position, and ITK's "derivative": the negated one.

        For a displacement field it is that of the sum over the points, not of their mean.

        Raises
        ------
        RegistrationError
            If no point counts.
        """
        value, derivative = self.metric.value_and_derivative(self.position.transform)
        return value, -derivative * (self.metric.valid_points if self.position.is_field else 1.0)

    def iterated(self) -> None:
        """Tell those who listen that an iteration is over."""
        self.notify(sitk.sitkIterationEvent)

    def say(self) -> None:
        """Tell those who listen to anything that something happened."""
        self.notify(sitk.sitkAnyEvent)
