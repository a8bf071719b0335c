"""Representations in itk.ImageRegistrationMethodv4, through the compiled metric of itk-impact: an affine transform.

pip install "dsir-metric[cpu,itk-impact]"                # in an environment of its own
python examples/itk/impact.py                            # on a phantom
python examples/itk/impact.py fixed.nii.gz moving.nii.gz
"""

import sys

import itk
import SimpleITK as sitk

from dsir_metric import io
from dsir_metric.errors import MissingDependencyError
from dsir_metric.itk import impact_method, impact_metric, to_itk, transform_to_sitk
from dsir_metric.phantom import make_pair
from dsir_metric.represent import Representer, represent_pair
from dsir_metric.represent.foreground import foreground

if len(sys.argv) == 3:
    truth, (fixed, moving) = None, map(io.read_image, sys.argv[1:])
else:
    truth = make_pair(40, 4.5, ("t1", "flair"))
    fixed, moving = truth.fixed, truth.moving

first, second = represent_pair(fixed, moving, Representer())
try:
    metric = impact_metric(first, second, fixed_mask=to_itk(foreground(fixed, first.grid)))
except MissingDependencyError as error:
    sys.exit(f"skipped: {error}")

transform = itk.AffineTransform[itk.D, 3].New()
transform.SetCenter(first.grid.centre_mm.tolist())

scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New()
scales.SetMetric(metric)
optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New()
optimizer.SetScalesEstimator(scales)
optimizer.SetLearningRate(2.0)
optimizer.SetNumberOfIterations(60)
optimizer.SetMinimumStepLength(0.01)
optimizer.SetGradientMagnitudeTolerance(1e-7)  # the value is a cosine: its slopes are small

method = impact_method(metric)  # any v4 optimiser and transform; begin with the identity, one level
method.SetMetricSamplingStrategy(2)  # random
method.SetMetricSamplingPercentage(0.1)
method.SetOptimizer(optimizer)
method.SetInitialTransform(transform)
method.InPlaceOn()
method.Update()

print(f"1 - cosine {optimizer.GetValue():.4f}; {optimizer.GetStopConditionDescription()}")
itk.transformwrite([transform], "affine.tfm")
if truth:
    before, after = truth.error_mm(sitk.Transform(3, sitk.sitkIdentity)), truth.error_mm(transform_to_sitk(transform))
    print(f"mean error {before:.2f} mm -> {after:.2f} mm")
