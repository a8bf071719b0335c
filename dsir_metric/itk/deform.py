"""Deform with ITK's registration method, in a process of its own: python -m dsir_metric.itk.deform, in its folder.

The folder holds fixed.nrrd, moving.nrrd and mask.nrrd on one grid; the displacement comes out as field.nrrd.
"""

from __future__ import annotations

import sys

import numpy as np
import SimpleITK as sitk

from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.itk.convert import to_itk
from dsir_metric.itk.impact import impact_method, impact_metric
from dsir_metric.itk.package import load_itk
from dsir_metric.itk.transforms import transform_to_sitk
from dsir_metric.represent.representation import Representation

__all__ = ["deform", "main"]

_MOST_SAMPLES = 12_000  # an iteration costs a tenth of a millisecond for each on one core
_ITERATIONS = 20
_STEP_VOX = 0.25  # what the largest displacement grows by in an iteration, in voxels of the field
_SIGMA_VOX = 3.0  # of the Gaussian that smooths every update


def main(device: str) -> None:
    """Read the folder, deform, write the field."""
    fixed, moving = (Representation.from_sitk(sitk.ReadImage(f"{side}.nrrd")) for side in ("fixed", "moving"))
    field = deform(fixed, moving, sitk.ReadImage("mask.nrrd"), device)
    sitk.WriteImage(field.to_transform().GetDisplacementField(), "field.nrrd")


def deform(fixed: Representation, moving: Representation, mask: sitk.Image, device: str = "cpu") -> DisplacementField:
    """Displacement u such that x -> x + u(x) aligns a pair on one grid.

    ITK's gradient descent on a displacement field whose updates are smoothed by a Gaussian. Its voxels are those of the
    grid, or so much larger that the mask holds no more than 12,000 of them.

    Parameters
    ----------
    fixed, moving : Representation
        On one grid.
    mask : sitk.Image
        Where they are compared, on that grid.
    device : str
        "cpu" or "cuda".

    Returns
    -------
    DisplacementField
        On that grid; LPS mm.
    """
    itk = load_itk()
    inside = int(np.count_nonzero(sitk.GetArrayViewFromImage(mask)))
    shrink = int(np.ceil((inside / _MOST_SAMPLES) ** (1 / 3)))
    virtual = Grid.of(sitk.Shrink(fixed.grid.image(), [shrink] * 3))
    field = itk.GaussianSmoothingOnUpdateDisplacementFieldTransform[itk.D, 3].New()
    field.SetDisplacementField(to_itk(virtual.image(sitk.sitkVectorFloat64, 3)))
    field.SetGaussianSmoothingVarianceForTheUpdateField(_SIGMA_VOX**2)
    field.SetGaussianSmoothingVarianceForTheTotalField(0.0)
    metric = impact_metric(fixed, moving, fixed_mask=to_itk(mask), device=device)
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
    return DisplacementField.from_transform(transform_to_sitk(field), fixed.grid)


if __name__ == "__main__":
    main(*sys.argv[1:])
