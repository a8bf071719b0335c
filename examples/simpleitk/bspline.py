"""B-spline registration in the manner of the SimpleITK notebooks: the mesh gets finer with the levels.

python examples/simpleitk/bspline.py                     # on a phantom
python examples/simpleitk/bspline.py fixed.nii.gz moving.nii.gz
"""

import SimpleITK as sitk
from _pair import error_text, read_pair

from dsir_metric.sitk import ImageRegistrationMethod  # native: from SimpleITK import ImageRegistrationMethod

fixed, moving, truth = read_pair(amplitude_mm=8.0, rigid=False)

transform = sitk.BSplineTransformInitializer(fixed, transformDomainMeshSize=[3, 3, 3], order=3)

method = ImageRegistrationMethod()
method.SetMetricAsDNSCosine()  # native: method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
method.SetInterpolator(sitk.sitkLinear)
method.SetOptimizerAsLBFGS2(solutionAccuracy=1e-9, numberOfIterations=25, deltaConvergenceTolerance=1e-6)
method.SetShrinkFactorsPerLevel([2, 1])
method.SetSmoothingSigmasPerLevel([3.0, 1.0])
method.SetInitialTransformAsBSpline(transform, inPlace=True, scaleFactors=[1, 2])

values = []
method.AddCommand(sitk.sitkIterationEvent, lambda: values.append(method.GetMetricValue()))

result = method.Execute(fixed, moving)

print(f"metric {values[0]:.4f} -> {method.GetMetricValue():.4f} in {len(values)} iterations")
print(f"mesh {result.GetTransformDomainMeshSize()}: {method.GetOptimizerStopConditionDescription()}")
print(error_text(truth, result))
moved = sitk.Resample(moving, fixed, result, sitk.sitkLinear, 0.0, moving.GetPixelID())
