"""Value objects of space, in LPS millimetres: grids, displacement fields; transforms, rotations; the size of a body."""

from dsir_metric.geometry.body import body_scale
from dsir_metric.geometry.field import DisplacementField, jacobian_statistics
from dsir_metric.geometry.grid import Grid
from dsir_metric.geometry.named import named
from dsir_metric.geometry.rotation import angle_deg, rotation

__all__ = ["DisplacementField", "Grid", "angle_deg", "body_scale", "jacobian_statistics", "named", "rotation"]
