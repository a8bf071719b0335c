"""Notebook 60: rigid, three levels, plain gradient descent, a plot of the metric.

The settings are the notebook's, but for a larger sample of a smaller image.
"""

import matplotlib.pyplot as plt
import SimpleITK as sitk

from dsir_metric.sitk import ImageRegistrationMethod  # native: from SimpleITK import ImageRegistrationMethod


def start_plot():
    global metric_values, multires_iterations
    metric_values = []
    multires_iterations = []


def end_plot():
    global metric_values, multires_iterations
    plotted.append((len(metric_values), list(multires_iterations)))
    del metric_values
    del multires_iterations
    plt.close()


def plot_values(registration_method):
    metric_values.append(registration_method.GetMetricValue())
    plt.clf()
    plt.plot(metric_values, "r")
    plt.plot(multires_iterations, [metric_values[index] for index in multires_iterations], "b*")
    plt.xlabel("Iteration Number", fontsize=12)
    plt.ylabel("Metric Value", fontsize=12)


def update_multires_iterations():
    multires_iterations.append(len(metric_values))


plotted = []
initial_transform = sitk.CenteredTransformInitializer(
    fixed_image, moving_image, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
)

registration_method = ImageRegistrationMethod()
registration_method.SetMetricAsDNSCosine()  # native: registration_method.SetMetricAsMattesMutualInformation(50)
registration_method.SetMetricSamplingStrategy(registration_method.RANDOM)
registration_method.SetMetricSamplingPercentage(0.1, 1)
registration_method.SetInterpolator(sitk.sitkLinear)
registration_method.SetOptimizerAsGradientDescent(
    learningRate=1.0, numberOfIterations=100, convergenceMinimumValue=1e-6, convergenceWindowSize=10
)
registration_method.SetOptimizerScalesFromPhysicalShift()
registration_method.SetShrinkFactorsPerLevel(shrinkFactors=[4, 2, 1])
registration_method.SetSmoothingSigmasPerLevel(smoothingSigmas=[2, 1, 0])
registration_method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
registration_method.SetInitialTransform(initial_transform, inPlace=False)
registration_method.AddCommand(sitk.sitkStartEvent, start_plot)
registration_method.AddCommand(sitk.sitkEndEvent, end_plot)
registration_method.AddCommand(sitk.sitkMultiResolutionIterationEvent, update_multires_iterations)
registration_method.AddCommand(sitk.sitkIterationEvent, lambda: plot_values(registration_method))

final_transform = registration_method.Execute(
    sitk.Cast(fixed_image, sitk.sitkFloat32), sitk.Cast(moving_image, sitk.sitkFloat32)
)

(iterations, levels) = plotted[0]
assert levels[0] == 0
assert len(levels) == 3
assert levels == sorted(levels)
assert iterations >= levels[-1]
assert "Optimizerv4" in registration_method.GetOptimizerStopConditionDescription()
moving_resampled = sitk.Resample(
    moving_image, fixed_image, final_transform, sitk.sitkLinear, 0.0, moving_image.GetPixelID()
)
