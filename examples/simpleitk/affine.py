"""Affine registration in the manner of the SimpleITK notebooks: it refines a rigid start, which it leaves as it is.

python examples/simpleitk/affine.py                      # on a phantom
python examples/simpleitk/affine.py fixed.nii.gz moving.nii.gz
"""

import SimpleITK as sitk
from _pair import error_text, read_pair

from dsir_metric.sitk import ImageRegistrationMethod  # native: from SimpleITK import ImageRegistrationMethod

fixed, moving, truth = read_pair()

start = sitk.CenteredTransformInitializer(
    fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
)
optimized = sitk.AffineTransform(3)

method = ImageRegistrationMethod()
method.SetMetricAsDNSCosine()  # native: method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
method.SetMetricSamplingStrategy(method.REGULAR)
method.SetMetricSamplingPercentagePerLevel([0.5, 0.2], seed=1)
method.SetInterpolator(sitk.sitkLinear)
method.SetOptimizerAsConjugateGradientLineSearch(
    learningRate=1.0, numberOfIterations=12, convergenceMinimumValue=1e-6, convergenceWindowSize=10
)
method.SetOptimizerScalesFromPhysicalShift()
method.SetShrinkFactorsPerLevel([2, 1])
method.SetSmoothingSigmasPerLevel([4.0, 0.0])
method.SetMovingInitialTransform(start)
method.SetInitialTransform(optimized, inPlace=True)

values = []
method.AddCommand(sitk.sitkIterationEvent, lambda: values.append(method.GetMetricValue()))

method.Execute(fixed, moving)
result = sitk.CompositeTransform([start, optimized])

print(f"metric {values[0]:.4f} -> {method.GetMetricValue():.4f} in {len(values)} iterations")
print(method.GetOptimizerStopConditionDescription())
print(error_text(truth, result))
moved = sitk.Resample(moving, fixed, result, sitk.sitkLinear, 0.0, moving.GetPixelID())
