"""Notebook 66: a displacement field, smoothed at each step, on three levels."""

import SimpleITK as sitk

from dsir_metric.sitk import ImageRegistrationMethod  # native: from SimpleITK import ImageRegistrationMethod

registration_method = ImageRegistrationMethod()
transform_to_displacement_field_filter = sitk.TransformToDisplacementFieldFilter()
transform_to_displacement_field_filter.SetReferenceImage(fixed_image)
initial_transform = sitk.DisplacementFieldTransform(transform_to_displacement_field_filter.Execute(sitk.Transform()))
initial_transform.SetSmoothingGaussianOnUpdate(varianceForUpdateField=2.0, varianceForTotalField=0.5)
registration_method.SetInitialTransform(initial_transform)
registration_method.SetMetricAsDNSCosine()  # native: registration_method.SetMetricAsANTSNeighborhoodCorrelation(2)
registration_method.SetShrinkFactorsPerLevel(shrinkFactors=[4, 2, 1])
registration_method.SetSmoothingSigmasPerLevel(smoothingSigmas=[8, 4, 0])
registration_method.SetInterpolator(sitk.sitkLinear)
registration_method.SetOptimizerAsGradientDescent(
    learningRate=1.0, numberOfIterations=20, convergenceMinimumValue=1e-6, convergenceWindowSize=10
)
registration_method.SetOptimizerScalesFromPhysicalShift()
values = []
registration_method.AddCommand(sitk.sitkIterationEvent, lambda: values.append(registration_method.GetMetricValue()))
final_transform = registration_method.Execute(fixed_image, moving_image)
assert sitk.DisplacementFieldTransform(final_transform).GetDisplacementField().GetSize() == fixed_image.GetSize()
assert len(values) > 20
