"""Where a registration stands."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.metric.transforms import point_map
from dsir_metric.register.linear import as_affine, composite

__all__ = ["State", "mapped"]

Matrix = NDArray[np.float64]
Points = NDArray[np.float64]


def mapped(matrix: Matrix, points_mm: Points) -> Points:
    """Points (n, 3) under a 4 x 4 matrix."""
    return points_mm @ matrix[:3, :3].T + matrix[:3, 3]


@dataclass(frozen=True, eq=False)
class State:
    """The map x -> after(linear(x + u(x))) from fixed to moving, LPS mm.

    Parameters
    ----------
    linear : ndarray, shape (4, 4)
    displacement : sitk.Transform, optional
        x -> x + u(x): a B-spline or a displacement field.
    after : sitk.Transform, optional
        An initial transform that is no linear one; it is kept as it came.
    inverse : sitk.Transform, optional
        The inverse of `displacement`, where it is known.
    weights : (float, float), optional
        Those of diffusion and bending energy (mm^2) that `displacement` was found with.
    """

    linear: Matrix = field(default_factory=lambda: np.eye(4))
    displacement: sitk.Transform | None = None
    after: sitk.Transform | None = None
    inverse: sitk.Transform | None = None
    weights: tuple[float, float] | None = None

    def map(self, points_mm: Points) -> Points:
        """Points (n, 3) under the part that the stages change, that is, all but `after`."""
        moved = points_mm if self.displacement is None else point_map(self.displacement).map(points_mm)
        return mapped(self.linear, moved)

    def transform(self, centre_mm: Points) -> sitk.CompositeTransform:
        """The whole map as an ITK composite, whose parts apply last to first; the affine turns about `centre_mm`."""
        return composite(self.after, as_affine(self.linear, centre_mm), self.displacement)

    def inverse_transform(self, centre_mm: Points) -> sitk.CompositeTransform | None:
        """Moving to fixed points, where the displacement came with an inverse; else None."""
        if self.after is not None or self.inverse is None:
            return None
        return composite(self.inverse, as_affine(self.linear, centre_mm).GetInverse())
