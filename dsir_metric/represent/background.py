"""The value of a scan where there is nothing: air, or what was put there instead."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError
from dsir_metric.represent.intensity import resolve_intensity

__all__ = ["background", "check_fill"]

_NEAR = 0.02  # of the range of the scan: as far as noise spreads the background
_FLAT_SHARE = 0.05  # of the faces with the very same value: no tissue has it
_AIR_HU = -900.0  # lungs are brighter
_LEAST_SHARE = 0.2  # of the faces that a background takes; tissue alone is spread over more of the range


def background(image: sitk.Image) -> float:
    """The most frequent value on the faces of a scan, or its lowest value where no value is frequent there.

    In CT it is that of air, for the faces may all lie within the body.

    Anatomy varies from place to place and a background hardly does: it is the densest value among the voxels of the
    faces, whether it is dark (CT, MR), bright (an inverted scan) or between (signed scans that are 0 outside).

    Parameters
    ----------
    image : sitk.Image
        Scalar, 2-D or 3-D, without NaN.

    Returns
    -------
    float
        A whole number if the pixels are.
    """
    values = sitk.GetArrayViewFromImage(image)
    faces = np.sort(np.concatenate([values.take((0, -1), axis=k).ravel() for k in range(values.ndim)]))
    lowest, highest = float(values.min()), float(values.max())
    flat, share = _most_frequent(faces)
    if share >= _FLAT_SHARE:
        return flat
    if lowest < _AIR_HU and resolve_intensity(values).kind == "ct":
        air = faces[faces < _AIR_HU]  # soft tissue is as uniform as air
        found = _densest(air) if len(air) else lowest
    else:
        densest = _densest(faces)
        reach = _NEAR * (highest - lowest)
        near = np.count_nonzero(np.abs(faces.astype(float) - densest) <= reach)
        found = densest if near >= _LEAST_SHARE * len(faces) else lowest
    return float(round(found)) if np.issubdtype(values.dtype, np.integer) else found


def _most_frequent(values: NDArray[np.generic]) -> tuple[float, float]:
    """The most frequent of sorted values, and its share of them."""
    different, counts = np.unique(values, return_counts=True)
    best = int(counts.argmax())
    return float(different[best]), float(counts[best] / len(values))


def check_fill(fill: float, image: sitk.Image) -> float:
    """The value `fill`, if the pixels of `image` can hold it.

    Raises
    ------
    ConfigError
        If it is not finite, out of the range of the pixel type, or no whole number where the pixels are.
    """
    kind = sitk.GetArrayViewFromImage(image).dtype
    whole = np.issubdtype(kind, np.integer)
    limits = np.iinfo(kind) if whole else np.finfo(kind)
    if not float(limits.min) <= fill <= float(limits.max) or (whole and fill != round(fill)):
        raise ConfigError(
            f"fill must be a {'whole ' if whole else ''}number from {limits.min:g} to {limits.max:g}, as the pixels of "
            f"the moving scan are {kind}; got {fill:g}"
        )
    return float(fill)


def _densest(values: NDArray[np.generic]) -> float:
    """Half-sample mode of sorted values: the densest half, the densest half of that, and so on.

    References
    ----------
    Bickel and Fruehwirth, On a fast, robust estimator of the mode, Computational Statistics and Data Analysis 2006.
    """
    some = values.astype(float)
    while len(some) > 2:
        half = (len(some) + 1) // 2
        widths = some[half - 1 :] - some[: len(some) - half + 1]
        start = int(widths.argmin())
        some = some[start : start + half]
    return float(some.mean())
