"""T1 <- FLAIR by instance optimisation in torch: a diffeomorphism and its inverse, on a GPU where there is one.

python examples/torch/instance_optimisation.py                      # on a phantom
python examples/torch/instance_optimisation.py fixed.nii.gz moving.nii.gz
"""

import sys

import SimpleITK as sitk

from dsir_metric.phantom import make_pair
from dsir_metric.register import InstanceConfig, RegisterConfig, register

if len(sys.argv) == 3:
    truth, (fixed, moving) = None, (sitk.ReadImage(path, sitk.sitkFloat32) for path in sys.argv[1:])
else:
    truth = make_pair(40, 4.5, ("t1", "flair"))
    fixed, moving = truth.fixed, truth.moving

result = register(fixed, moving, RegisterConfig(backend="torch", instance=InstanceConfig(velocity=True)))

for stage in result.stages:
    print(f"{stage.name:10s} mean cosine {stage.cosine_before:.3f} -> {stage.cosine_after:.3f}  {stage.remark}")
if truth:
    before = truth.error_mm(sitk.Transform(3, sitk.sitkIdentity))
    print(f"mean error {before:.2f} mm -> {truth.error_mm(result.transform):.2f} mm")

point = fixed.TransformContinuousIndexToPhysicalPoint([n / 2 for n in fixed.GetSize()])
there = result.transform.TransformPoint(point)
back = result.inverse.TransformPoint(there)
print("there and back:", *(f"{p:.2f}" for p in point), "->", *(f"{p:.2f}" for p in back))
print("folded voxels:", result.details["jacobian"]["folded_percent"], "%")
