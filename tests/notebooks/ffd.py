"""Notebook 65: free-form deformation with a mask; one mesh with L-BFGS-B, then a mesh that gets finer with L-BFGS2."""

import numpy as np
import SimpleITK as sitk

from dsir_metric.sitk import ImageRegistrationMethod  # native: from SimpleITK import ImageRegistrationMethod


def configured(mask):
    registration_method = ImageRegistrationMethod()
    registration_method.SetMetricAsDNSCosine()  # native: registration_method.SetMetricAsMattesMutualInformation(50)
    registration_method.SetMetricSamplingStrategy(registration_method.RANDOM)
    registration_method.SetMetricSamplingPercentage(0.2, 1)
    registration_method.SetMetricFixedMask(mask)
    registration_method.SetShrinkFactorsPerLevel(shrinkFactors=[4, 2, 1])
    registration_method.SetSmoothingSigmasPerLevel(smoothingSigmas=[2, 1, 0])
    registration_method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    registration_method.SetInterpolator(sitk.sitkLinear)
    registration_method.AddCommand(
        sitk.sitkMultiResolutionIterationEvent, lambda: meshes.append(registration_method.GetCurrentLevel())
    )
    return registration_method


meshes = []
grid_physical_spacing = [50.0, 50.0, 50.0]
image_physical_size = [size * spacing for size, spacing in zip(fixed_image.GetSize(), fixed_image.GetSpacing())]
mesh_size = [
    int(image_size / grid_spacing + 0.5) for image_size, grid_spacing in zip(image_physical_size, grid_physical_spacing)
]

initial_transform = sitk.BSplineTransformInitializer(image1=fixed_image, transformDomainMeshSize=mesh_size, order=3)
registration_method = configured(fixed_mask)
registration_method.SetInitialTransform(initial_transform)
registration_method.SetOptimizerAsLBFGSB(gradientConvergenceTolerance=1e-5, numberOfIterations=iterations)
registration_method.AddCommand(
    sitk.sitkIterationEvent, lambda: np.isfinite(registration_method.GetOptimizerPosition()).all() or 1 / 0
)
one_mesh = registration_method.Execute(fixed_image, moving_image)
assert meshes == [0, 1, 2]
assert one_mesh.GetParameters() == initial_transform.GetParameters()

# a coarse mesh that is refined with the levels; mesh sizes are those of the finest level divided by its factor
mesh_size = [int(sz / 4 + 0.5) for sz in mesh_size]
initial_transform = sitk.BSplineTransformInitializer(image1=fixed_image, transformDomainMeshSize=mesh_size, order=3)
registration_method = configured(fixed_mask)
registration_method.SetInitialTransformAsBSpline(initial_transform, inPlace=True, scaleFactors=[1, 2, 4])
registration_method.SetOptimizerAsLBFGS2(
    solutionAccuracy=1e-2, numberOfIterations=iterations, deltaConvergenceTolerance=0.01
)
final_transform = registration_method.Execute(fixed_image, moving_image)
assert sitk.BSplineTransform(final_transform).GetTransformDomainMeshSize() == tuple(4 * n for n in mesh_size)
