"""Axes that are slightly off right angles, turned into a rotation."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsir_metric.errors import ConfigError, GeometryError

__all__ = ["Placement", "Reorient", "check_reorient", "upright"]

Reorient = Literal["nearest"]
_ROUNDING = 1e-6  # a cosine of two axes below this is rounding; an sform is in single precision
_MOST_DEGREES = 1.0  # more is no rounding of a header, such as the tilt of a CT gantry: it is in the voxels


class Placement(NamedTuple):
    """Where voxels lie: origin (3,) and direction (3, 3), LPS."""

    origin_mm: NDArray[np.float64]
    direction: NDArray[np.float64]


def check_reorient(reorient: str | None) -> None:
    """Raise ConfigError if `reorient` is not None and names nothing that is known."""
    if reorient not in (None, "nearest"):
        raise ConfigError(f"reorient must be 'nearest' or None, got {reorient!r}")


def upright(
    size: ArrayLike, spacing_mm: ArrayLike, origin_mm: ArrayLike, axes: ArrayLike, name: str, reorient: Reorient | None
) -> Placement:
    """The place of an image with its axes at right angles.

    Parameters
    ----------
    size, spacing_mm, origin_mm : array_like (3,)
        x, y, z; LPS mm.
    axes : array_like (3, 3)
        Columns are the directions of the index axes, of any length.
    name : str
        Begins messages.
    reorient : {"nearest"}, optional
        Take the nearest rotation, in the least-squares sense, about the middle of the box, where the axes are up to
        1 degree off right angles. Without it such axes are refused.

    Returns
    -------
    Placement

    Warns
    -----
    RuntimeWarning
        If the axes were turned, with the largest displacement of a corner of the box in mm.

    Raises
    ------
    GeometryError
        If the axes are off right angles by more than rounding, and `reorient` does not mend it.

    Notes
    -----
    The nearest rotation is the orthogonal factor of the polar decomposition of the unit axes.

    References
    ----------
    Higham, N. J. (1986). Computing the polar decomposition, with applications. SIAM J. Sci. Stat. Comput. 7(4),
    1160-1174. https://doi.org/10.1137/0907079
    """
    spacing, origin, columns = (np.asarray(v, np.float64) for v in (spacing_mm, origin_mm, axes))
    lengths = np.linalg.norm(columns, axis=0)
    if not np.all(np.isfinite(columns)) or not np.all(lengths > 0):
        raise GeometryError(f"{name}: the direction matrix {columns.ravel().tolist()} has no axes; mend the header")
    unit = columns / lengths
    cosines = np.abs(unit.T @ unit - np.eye(3))
    if cosines.max() < _ROUNDING:
        return Placement(origin, unit)
    left, _, right = np.linalg.svd(unit)
    direction = left @ right
    last = np.asarray(size) - 1
    corners = np.array(np.meshgrid(*zip(-last / 2, last / 2, strict=True))).reshape(3, -1).T * spacing
    moved_mm = float(np.linalg.norm(corners @ (direction - unit).T, axis=1).max())
    degrees = float(np.rad2deg(np.arcsin(min(cosines.max(), 1.0))))
    told = f"{name}: its axes are up to {degrees:.2g} degrees off right angles"
    if degrees > _MOST_DEGREES:
        raise GeometryError(
            f"{told}, the direction matrix is not orthonormal; resample it onto a grid with right angles first"
        )
    if reorient is None:
        raise GeometryError(
            f"{told}, the direction matrix is not orthonormal; take the nearest rotation (--reorient nearest, in "
            f"Python reorient='nearest'), which moves no corner by more than {moved_mm:.2g} mm, or mend the header"
        )
    warnings.warn(
        f"{told}; the nearest rotation is taken, which moves no corner by more than {moved_mm:.2g} mm",
        RuntimeWarning,
        stacklevel=3,
    )
    middle = origin + unit @ (last / 2 * spacing)
    return Placement(middle - direction @ (last / 2 * spacing), direction)
