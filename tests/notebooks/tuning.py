"""Notebook 62: known points tell whether the metric's choice was a good one; a single scale, then three."""

import matplotlib.pyplot as plt
import numpy as np
import SimpleITK as sitk

from dsir_metric.sitk import ImageRegistrationMethod  # native: from SimpleITK import ImageRegistrationMethod


def registration_errors(transform, fixed_points, moving_points):
    moved = [transform.TransformPoint(point) for point in fixed_points]
    return np.linalg.norm(np.subtract(moved, moving_points), axis=1)


def metric_and_reference_start_plot():
    global metric_values, reference_mean_values, current_iteration_number
    metric_values, reference_mean_values = [], []
    current_iteration_number = -1


def metric_and_reference_end_plot():
    plt.close()


def metric_and_reference_plot_values(registration_method, fixed_points, moving_points):
    global current_iteration_number
    # some optimizers report an iteration twice
    if registration_method.GetOptimizerIteration() == current_iteration_number:
        return
    current_iteration_number = registration_method.GetOptimizerIteration()
    metric_values.append(registration_method.GetMetricValue())
    # the initial transform is a composite of one: optimize its parameters
    current_transform = sitk.Euler3DTransform(initial_transform)
    current_transform.SetParameters(registration_method.GetOptimizerPosition())
    errors = registration_errors(current_transform, fixed_points, moving_points)
    reference_mean_values.append(errors.mean())
    plt.clf()
    plt.subplot(1, 2, 1)
    plt.plot(reference_mean_values, color="black", label="mean")
    plt.ylabel("TRE [mm]", fontsize=12)
    plt.subplot(1, 2, 2)
    plt.plot(metric_values)


initial_transform = sitk.CenteredTransformInitializer(
    fixed_image, moving_image, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
)

registration_method = ImageRegistrationMethod()
registration_method.SetMetricAsDNSCosine()  # native: registration_method.SetMetricAsMattesMutualInformation(50)
registration_method.SetMetricSamplingStrategy(registration_method.RANDOM)
registration_method.SetMetricSamplingPercentage(0.1, 1)
registration_method.SetInterpolator(sitk.sitkNearestNeighbor)
registration_method.SetOptimizerAsGradientDescent(learningRate=1.0, numberOfIterations=60)
registration_method.SetOptimizerScalesFromPhysicalShift()
registration_method.SetInitialTransform(initial_transform, inPlace=False)
registration_method.AddCommand(sitk.sitkStartEvent, metric_and_reference_start_plot)
registration_method.AddCommand(sitk.sitkEndEvent, metric_and_reference_end_plot)
registration_method.AddCommand(
    sitk.sitkIterationEvent,
    lambda: metric_and_reference_plot_values(registration_method, fixed_points, moving_points),
)
final_transform_single_scale = registration_method.Execute(fixed_image, moving_image)
assert len(metric_values) == len(reference_mean_values) > 3
single_scale_error = registration_errors(final_transform_single_scale, fixed_points, moving_points).mean()

registration_method.SetInterpolator(sitk.sitkLinear)
registration_method.SetShrinkFactorsPerLevel(shrinkFactors=[4, 2, 1])
registration_method.SetSmoothingSigmasPerLevel(smoothingSigmas=[2, 1, 0])
registration_method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
final_transform = registration_method.Execute(fixed_image, moving_image)
