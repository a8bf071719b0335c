"""Notebook 63: the head is turned; several orientations are tried, in threads and by the exhaustive walk.

The notebook turns by half. Descriptors know up from down, so here the steps are of 0.2 radians.
"""

from functools import partial
from multiprocessing.pool import ThreadPool

import numpy as np
import SimpleITK as sitk

from dsir_metric.sitk import ImageRegistrationMethod  # native: from SimpleITK import ImageRegistrationMethod


def configured():
    registration_method = ImageRegistrationMethod()
    registration_method.SetMetricAsDNSCosine()  # native: registration_method.SetMetricAsMattesMutualInformation(50)
    registration_method.SetMetricSamplingStrategy(registration_method.RANDOM)
    registration_method.SetMetricSamplingPercentage(0.1, 1)
    registration_method.SetInterpolator(sitk.sitkLinear)
    return registration_method


def multires_registration(fixed_image, moving_image, initial_transform):
    registration_method = configured()
    registration_method.SetOptimizerAsGradientDescent(
        learningRate=1.0, numberOfIterations=100, estimateLearningRate=registration_method.Once
    )
    registration_method.SetOptimizerScalesFromPhysicalShift()
    registration_method.SetInitialTransform(initial_transform, inPlace=False)
    registration_method.SetShrinkFactorsPerLevel(shrinkFactors=[4, 2, 1])
    registration_method.SetSmoothingSigmasPerLevel(smoothingSigmas=[2, 1, 0])
    registration_method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    final_transform = registration_method.Execute(fixed_image, moving_image)
    return final_transform, registration_method.GetMetricValue()


def evaluate_metric(current_rotation, tx, f_image, m_image):
    registration_method = configured()
    current_transform = sitk.Euler3DTransform(tx)
    current_transform.SetRotation(*current_rotation)
    registration_method.SetInitialTransform(current_transform)
    return registration_method.MetricEvaluate(f_image, m_image)


all_orientations = [(0.0, 0.0, 0.0), (0.0, 0.0, 0.2), (0.0, 0.0, -0.2), (0.2, 0.0, 0.0), (0.0, -0.2, 0.0)]
initial_transform = sitk.Euler3DTransform(
    sitk.CenteredTransformInitializer(
        fixed_image, moving_image, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
)

# one after another, in threads: each with a method of its own
with ThreadPool(2) as pool:
    values = pool.map(
        partial(evaluate_metric, tx=initial_transform, f_image=fixed_image, m_image=moving_image), all_orientations
    )
best_orientation = all_orientations[int(np.argmin(values))]

# the exhaustive walk: one step of 0.2 radians to either side, about each axis
registration_method = configured()
seen = []
registration_method.SetOptimizerAsExhaustive(numberOfSteps=[1, 1, 1, 0, 0, 0], stepLength=0.2)
registration_method.SetOptimizerScales([1, 1, 1, 1, 1, 1])
registration_method.SetInitialTransform(initial_transform, inPlace=True)
registration_method.AddCommand(
    sitk.sitkIterationEvent,
    lambda: seen.append((registration_method.GetOptimizerPosition(), registration_method.GetMetricValue())),
)
registration_method.Execute(fixed_image, moving_image)
assert len(seen) == 27
assert registration_method.GetMetricValue() == min(value for _, value in seen)
walked_to = initial_transform.GetParameters()[:3]

final_transform, value = multires_registration(fixed_image, moving_image, initial_transform)
