"""T1 <- FLAIR by greedy on representations; the warp is one that `greedy -r` reads.

python examples/engines/greedy.py                      # on a phantom
python examples/engines/greedy.py fixed.nii.gz moving.nii.gz
"""

import sys

import SimpleITK as sitk

from dsir_metric import io
from dsir_metric.geometry import DisplacementField
from dsir_metric.phantom import make_pair
from dsir_metric.register import RegisterConfig, register

if len(sys.argv) == 3:
    truth, (fixed, moving) = None, map(io.read_image, sys.argv[1:])
else:
    truth = make_pair(40, 4.5, ("t1", "flair"))
    fixed, moving = truth.fixed, truth.moving

# In place of greedy -d 3 -m NMI -i fixed.nii.gz moving.nii.gz -o warp.nii.gz
result = register(fixed, moving, RegisterConfig(backend="greedy"))

for stage in result.stages:
    print(f"{stage.name:10s} mean cosine {stage.cosine_before:.3f} -> {stage.cosine_after:.3f}  {stage.remark}")
if truth:
    before = truth.error_mm(sitk.Transform(3, sitk.sitkIdentity))
    print(f"mean error {before:.2f} mm -> {truth.error_mm(result.transform):.2f} mm")

field = DisplacementField.from_transform(result.transform, result.fixed_grid)  # linear part and deformation in one
io.write_image(field.to_transform().GetDisplacementField(), "warp.nii.gz")
io.write_image(result.moved(moving), "moved.nii.gz")
print("greedy -d 3 -rf fixed.nii.gz -rm moving.nii.gz moved.nii.gz -r warp.nii.gz")
