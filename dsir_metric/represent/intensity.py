"""Raw intensities to the range the network was trained on."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsir_metric.bounds import quoted
from dsir_metric.errors import ConfigError, DataError

__all__ = ["CT_WINDOW_HU", "IntensityRule", "resolve_intensity"]

CT_WINDOW_HU = (-200.0, 1024.0)
_MOST = 1e30  # of an intensity, far within single precision
_NUMBER = r"(-?\d+(?:\.\d*)?)"
_WINDOW = re.compile(rf"(ct|window):{_NUMBER},{_NUMBER}")


@dataclass(frozen=True)
class IntensityRule:
    """A linear map that takes `low` to 0 and `high` to 1 and clips what lies outside.

    Parameters
    ----------
    kind : str
        "ct" (a window in HU), "mr" (robust percentiles of this image) or "window" (given by the user).
    low, high : float
        Raw intensities that become 0 and 1.
    detected : bool
        Whether the kind was guessed from the image rather than chosen.

    Raises
    ------
    ConfigError
        If `low` is not below `high`, or they or their difference do not fit single precision.
    """

    kind: str
    low: float
    high: float
    detected: bool = False

    def __post_init__(self) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            bounds = np.array([self.low, self.high, self.high - self.low]).astype(np.float32)
        if not (np.isfinite(bounds).all() and bounds[2] > 0):
            raise ConfigError(
                f"window is {self.low} to {self.high}; two numbers in single precision are expected, lower first"
            )

    def apply(self, values: NDArray[np.float32], *, in_place: bool = False) -> NDArray[np.float32]:
        """`values` of any shape, raw, to float32 in [0, 1]; `in_place`, they change themselves."""
        scaled = values.astype(np.float32, copy=not in_place)
        with np.errstate(over="ignore"):  # what overflows is clipped
            scaled -= np.float32(self.low)
            scaled /= np.float32(self.high - self.low)
        return np.clip(scaled, 0.0, 1.0, out=scaled)


def resolve_intensity(values: NDArray[np.float32], intensity: str = "auto") -> IntensityRule:
    """The rule for one image.

    Parameters
    ----------
    values : ndarray
        All raw intensities of the image.
    intensity : str
        "auto", "mr" (any arbitrary scale: MR, ultrasound, PET), "ct" (window [-200, 1024] HU, as the paper uses for the
        abdomen), or "ct:low,high" / "window:low,high".

    Raises
    ------
    ConfigError
        If `intensity` is none of these.
    DataError
        If the image has no contrast.

    Notes
    -----
    "mr" maps the 0.5 percentile of the image to 0 and the 99.5 percentile of what is brighter than the mean to 1, so
    that a margin of background does not change it much. "auto" takes an image for CT when air is there: more than 1 %
    of it below -500.
    """
    given = _WINDOW.fullmatch(intensity)
    if given:
        low, high = float(given[2]), float(given[3])
        if not (low >= -_MOST and high <= _MOST and np.float32(high - low) > 0):
            raise ConfigError(f"intensity window {quoted(intensity)} must have low below high, both within +-{_MOST:g}")
        return IntensityRule("ct" if given[1] == "ct" else "window", low, high)
    if intensity not in ("auto", "mr", "ct"):
        raise ConfigError(f"intensity {quoted(intensity)} is unknown; use auto, mr, ct, ct:low,high or window:low,high")
    kind = intensity if intensity != "auto" else ("ct" if np.mean(values < -500) > 0.01 else "mr")
    if kind == "ct":
        return IntensityRule("ct", *CT_WINDOW_HU, detected=intensity == "auto")
    low = float(np.percentile(values, 0.5))
    bright = values[values > values.mean()]
    high = float(np.percentile(bright, 99.5, overwrite_input=True)) if bright.size else low
    if not high > low:
        raise DataError("the image has no contrast (constant intensity); check that it is the right file")
    return IntensityRule("mr", low, high, detected=intensity == "auto")
