"""T1 <- FLAIR by elastix' B-splines on representations, as an ITK transform.

python examples/engines/elastix.py                      # on a phantom
python examples/engines/elastix.py fixed.nii.gz moving.nii.gz
"""

import sys

import SimpleITK as sitk

from dsir_metric import io
from dsir_metric.phantom import make_pair
from dsir_metric.register import RegisterConfig, register

if len(sys.argv) == 3:
    truth, (fixed, moving) = None, map(io.read_image, sys.argv[1:])
else:
    truth = make_pair(40, 4.5, ("t1", "flair"))
    fixed, moving = truth.fixed, truth.moving

# In place of itk.elastix_registration_method(fixed, moving) with AdvancedMattesMutualInformation
result = register(fixed, moving, RegisterConfig(backend="elastix"))

for stage in result.stages:
    print(f"{stage.name:10s} mean cosine {stage.cosine_before:.3f} -> {stage.cosine_after:.3f}  {stage.remark}")
if truth:
    before = truth.error_mm(sitk.Transform(3, sitk.sitkIdentity))
    print(f"mean error {before:.2f} mm -> {truth.error_mm(result.transform):.2f} mm")

io.write_transform(result.transform, "transform.h5")
io.write_image(result.moved(moving), "moved.nii.gz")
