"""T1 <- FLAIR by ANTs' SyN on representations, for antsApplyTransforms.

python examples/engines/ants.py                      # on a phantom
python examples/engines/ants.py fixed.nii.gz moving.nii.gz
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

# In place of ants.registration(fixed, moving, type_of_transform="SyN", syn_metric="mattes")
result = register(fixed, moving, RegisterConfig(backend="ants"))

for stage in result.stages:
    print(f"{stage.name:10s} mean cosine {stage.cosine_before:.3f} -> {stage.cosine_after:.3f}  {stage.remark}")
if truth:
    before = truth.error_mm(sitk.Transform(3, sitk.sitkIdentity))
    print(f"mean error {before:.2f} mm -> {truth.error_mm(result.transform):.2f} mm")

io.write_transform(result.transform, "transform.h5")
io.write_image(result.moved(moving), "moved.nii.gz")
print("antsApplyTransforms -d 3 -i moving.nii.gz -r fixed.nii.gz -t transform.h5 -o moved.nii.gz")
