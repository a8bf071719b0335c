"""Value objects of space: grids and displacement fields, in LPS millimetres."""

from dsir_metric.geometry.field import DisplacementField, jacobian_statistics
from dsir_metric.geometry.grid import Grid

__all__ = ["DisplacementField", "Grid", "jacobian_statistics"]
