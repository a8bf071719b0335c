"""When a sequence of metric values has stopped going down.

References
----------
Tustison and Avants, "Explicit B-spline regularization in diffeomorphic image registration", Front. Neuroinform. 2013,
https://doi.org/10.3389/fninf.2013.00039 (the window of values and its fitted profile, as in ITK's v4 optimisers).
"""

from __future__ import annotations

import sys
from collections import deque

import numpy as np

__all__ = ["WindowConvergence"]

_SHORT_OF_END = 1e-4  # ITK's fit keeps the last value that far from the end of the span


class WindowConvergence:
    """Slope of a line laid through the last values, relative to the sum of all values seen.

    The line is a linear B-spline with two control points, fitted as ITK fits scattered data: each value proposes
    both control points, and the proposals are averaged with their squared weights.

    Parameters
    ----------
    size : int
        Number of values the line is laid through; below 2, as in ITK, there is no slope.
    """

    def __init__(self, size: int) -> None:
        self._values: deque[float] = deque(maxlen=size)
        self._total = 0.0
        ends = np.linspace(0.0, 1.0, size)
        ends[-1:] -= _SHORT_OF_END
        self._weights = np.stack([1.0 - ends, ends])

    def add(self, value: float) -> float:
        """Take one more value; the slope (positive while decreasing), or the largest float while there are too few."""
        self._values.append(value)
        self._total += abs(value)
        if len(self._values) < (self._values.maxlen or 0) or self._total == 0:
            return sys.float_info.max
        if len(self._values) < 2:
            return 0.0
        energies = np.array(self._values) / self._total
        squares = self._weights**2
        proposals = self._weights * energies / squares.sum(axis=0)
        start, end = (squares * proposals).sum(axis=1) / squares.sum(axis=1)
        return float(start - end)
