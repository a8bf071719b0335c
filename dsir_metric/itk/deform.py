"""Deform with ITK's registration method, in a process of its own: python -m dsir_metric.itk.deform, in its folder.

The folder holds fixed.nrrd, moving.nrrd and mask.nrrd on one grid; the displacement comes out as field.nrrd.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.itk.convert import to_itk
from dsir_metric.itk.impact import impact_method, impact_metric
from dsir_metric.itk.package import load_itk
from dsir_metric.itk.transforms import transform_to_itk, transform_to_sitk
from dsir_metric.metric.transforms import point_map
from dsir_metric.register.pair import Level, may_halve
from dsir_metric.represent.representation import Representation

__all__ = ["deform", "main"]

_MOST_SAMPLES = 50_000  # an iteration costs a tenth of a millisecond for each on one core
_ITERATIONS = 20
_STEP_VOX = 0.25  # what the largest displacement grows by in an iteration
_MARGIN_VOX = 8
_SIGMA_VOX = 3.0  # of the Gaussian that smooths every update, in voxels of the field


def main(device: str) -> None:
    """Read the folder, deform, write the field."""
    fixed, moving = (Representation.from_sitk(sitk.ReadImage(f"{side}.nrrd")) for side in ("fixed", "moving"))
    field = deform(Level(fixed, moving, sitk.ReadImage("mask.nrrd")), device)
    sitk.WriteImage(field.to_transform().GetDisplacementField(), str(Path("field.nrrd")))


def deform(level: Level, device: str = "cpu") -> DisplacementField:
    """Displacement u such that x -> x + u(x) aligns a pair on one grid.

    ITK's gradient descent on a displacement field whose updates are smoothed by a Gaussian: first on voxels of twice
    the size, then on the given ones; each begins with the moving image brought through what was found before.

    Parameters
    ----------
    level : Level
        Both images on one grid, with a mask.
    device : str
        "cpu" or "cuda".

    Returns
    -------
    DisplacementField
        On that grid; LPS mm.
    """
    grid = level.fixed.grid
    found = DisplacementField(np.zeros((*grid.shape, 3)), grid)
    for step in ([level.halved()] if may_halve(grid, grid) else []) + [level]:
        found = _after(_stage(step, found, device), found)
    return found


def _stage(level: Level, found: DisplacementField, device: str) -> sitk.Transform:
    """What ITK finds from the identity on, with the moving image brought through `found`."""
    itk = load_itk()
    grid = level.fixed.grid
    metric = impact_metric(
        level.fixed,
        level.moving,
        fixed_mask=to_itk(level.fixed_mask),
        initial_transform=transform_to_itk(_reaching(found)),
        device=device,
    )
    inside = int(np.count_nonzero(sitk.GetArrayViewFromImage(level.fixed_mask)))
    shrink = int(np.ceil((inside / _MOST_SAMPLES) ** (1 / 3)))
    virtual = Grid.of(sitk.Shrink(grid.image(), [shrink] * 3))
    field = itk.GaussianSmoothingOnUpdateDisplacementFieldTransform[itk.D, 3].New()
    field.SetDisplacementField(to_itk(virtual.image(sitk.sitkVectorFloat64, 3)))
    field.SetGaussianSmoothingVarianceForTheUpdateField(_SIGMA_VOX**2)
    field.SetGaussianSmoothingVarianceForTheTotalField(0.0)
    scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New()
    scales.SetMetric(metric)
    optimizer = itk.GradientDescentOptimizerv4Template[itk.D].New()
    optimizer.SetNumberOfIterations(_ITERATIONS)
    optimizer.SetScalesEstimator(scales)
    optimizer.SetDoEstimateLearningRateOnce(False)
    optimizer.SetDoEstimateLearningRateAtEachIteration(True)
    optimizer.SetMaximumStepSizeInPhysicalUnits(_STEP_VOX * min(virtual.spacing_mm))
    method = impact_method(metric)
    method.SetShrinkFactorsPerLevel([shrink])
    method.SetInitialTransform(field)
    method.InPlaceOn()
    method.SetOptimizer(optimizer)
    method.Update()
    return transform_to_sitk(field)


def _reaching(field: DisplacementField) -> sitk.Transform:
    """The field with its edge values all around: a transform is the identity outside its own grid."""
    return field.padded(_MARGIN_VOX).to_transform()


def _after(first: sitk.Transform, then: DisplacementField) -> DisplacementField:
    """The displacement of both, on the grid of `then`."""
    points = then.grid.points_mm().reshape(-1, 3)
    moved = point_map(_reaching(then)).map(point_map(first).map(points))
    return DisplacementField((moved - points).reshape(then.values.shape), then.grid)


if __name__ == "__main__":
    main(*sys.argv[1:])
