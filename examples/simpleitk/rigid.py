"""Rigid registration in the manner of the SimpleITK notebooks: multi-resolution, with a callback.

python examples/simpleitk/rigid.py                       # on a phantom
python examples/simpleitk/rigid.py fixed.nii.gz moving.nii.gz
"""

import SimpleITK as sitk
from _pair import error_text, read_pair

from dsir_metric.sitk import ImageRegistrationMethod  # native: from SimpleITK import ImageRegistrationMethod

fixed, moving, truth = read_pair()

initial = sitk.CenteredTransformInitializer(
    fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
)

method = ImageRegistrationMethod()
method.SetMetricAsDNSCosine()  # native: method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
method.SetMetricSamplingStrategy(method.RANDOM)
method.SetMetricSamplingPercentage(0.3, seed=1)
method.SetInterpolator(sitk.sitkLinear)
method.SetOptimizerAsRegularStepGradientDescent(
    learningRate=4.0, minStep=1e-2, numberOfIterations=100, relaxationFactor=0.8, gradientMagnitudeTolerance=1e-9
)
method.SetOptimizerScalesFromPhysicalShift()
method.SetShrinkFactorsPerLevel([2, 1])
method.SetSmoothingSigmasPerLevel([4.0, 0.0])
method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
method.SetInitialTransform(initial, inPlace=False)

values = []
method.AddCommand(sitk.sitkStartEvent, values.clear)
method.AddCommand(sitk.sitkIterationEvent, lambda: values.append(method.GetMetricValue()))
method.AddCommand(sitk.sitkMultiResolutionIterationEvent, lambda: print(f"level {method.GetCurrentLevel()}"))

result = method.Execute(fixed, moving)

print(f"metric {values[0]:.4f} -> {method.GetMetricValue():.4f} in {len(values)} iterations")
print(method.GetOptimizerStopConditionDescription())
print(error_text(truth, result))
moved = sitk.Resample(moving, fixed, result, sitk.sitkLinear, 0.0, moving.GetPixelID())
