"""Notebook 61: the same rigid task in the manner of ITK v4: what is applied first, what is optimised, in place."""

import SimpleITK as sitk

from dsir_metric.sitk import ImageRegistrationMethod  # native: from SimpleITK import ImageRegistrationMethod

initial_transform = sitk.CenteredTransformInitializer(
    sitk.Cast(fixed_image, moving_image.GetPixelID()),
    moving_image,
    sitk.Euler3DTransform(),
    sitk.CenteredTransformInitializerFilter.GEOMETRY,
)

registration_method = ImageRegistrationMethod()
registration_method.SetMetricAsDNSCosine()  # native: registration_method.SetMetricAsMattesMutualInformation(50)
registration_method.SetMetricSamplingStrategy(registration_method.RANDOM)
registration_method.SetMetricSamplingPercentage(0.1, 1)
registration_method.SetInterpolator(sitk.sitkLinear)
registration_method.SetOptimizerAsGradientDescent(learningRate=1.0, numberOfIterations=100)

# version 1.1: single scale, an initial moving transform, the optimised transform not in place
optimized_transform = sitk.Euler3DTransform()
registration_method.SetOptimizerScalesFromPhysicalShift()
registration_method.SetMovingInitialTransform(initial_transform)
registration_method.SetInitialTransform(optimized_transform, inPlace=False)
values = []
registration_method.AddCommand(sitk.sitkIterationEvent, lambda: values.append(registration_method.GetMetricValue()))
registration_method.Execute(fixed_image, moving_image)
assert optimized_transform.GetParameters() == sitk.Euler3DTransform().GetParameters()
assert min(values) < values[0]

# version 2: multi scale, each level smoothed, in place
registration_method.SetShrinkFactorsPerLevel(shrinkFactors=[4, 2, 1])
registration_method.SetSmoothingSigmasPerLevel(smoothingSigmas=[2, 1, 0])
registration_method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
registration_method.SetOptimizerScalesFromJacobian()
registration_method.SetInitialTransform(optimized_transform, inPlace=True)
registration_method.Execute(fixed_image, moving_image)
assert optimized_transform.GetParameters() != sitk.Euler3DTransform().GetParameters()

# what is added last comes first: the optimised transform, then the initial one
final_transform = sitk.CompositeTransform([initial_transform, optimized_transform])
