"""Notebook 64: the moving image is made finer beforehand; regular samples, one scale, two interpolators."""

import SimpleITK as sitk

from dsir_metric.sitk import ImageRegistrationMethod  # native: from SimpleITK import ImageRegistrationMethod


def register_images(fixed_image, moving_image, initial_transform, interpolator):
    registration_method = ImageRegistrationMethod()
    registration_method.SetMetricAsDNSCosine()  # native: registration_method.SetMetricAsMattesMutualInformation(50)
    registration_method.SetMetricSamplingStrategy(registration_method.REGULAR)
    registration_method.SetMetricSamplingPercentage(0.1, 1)
    registration_method.SetInterpolator(interpolator)
    registration_method.SetOptimizerAsGradientDescent(learningRate=1.0, numberOfIterations=1000)
    registration_method.SetOptimizerScalesFromPhysicalShift()
    registration_method.SetInitialTransform(initial_transform, inPlace=False)
    final_transform = registration_method.Execute(fixed_image, moving_image)
    return final_transform, registration_method.GetOptimizerStopConditionDescription()


initial_transform = sitk.CenteredTransformInitializer(
    fixed_image, moving_image, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
)
resampled_moving_image = sitk.Expand(moving_image, [2, 2, 2], sitk.sitkBSpline3)

_, optimizer_termination = register_images(fixed_image, moving_image, initial_transform, sitk.sitkLinear)
assert "onverge" in optimizer_termination
final_transform, _ = register_images(fixed_image, resampled_moving_image, initial_transform, sitk.sitkNearestNeighbor)
