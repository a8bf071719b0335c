"""ITK images in, an ITK transform out, to a file and back, and itk.resample_image_filter with it.

python examples/itk/registration.py                      # on a phantom
python examples/itk/registration.py fixed.nii.gz moving.nii.gz
"""

import sys

import itk

from dsir_metric.itk import register, to_itk, transform_to_sitk
from dsir_metric.phantom import make_pair

if len(sys.argv) == 3:
    truth, (fixed, moving) = None, (itk.imread(path) for path in sys.argv[1:])
else:
    truth = make_pair(64, 3.0, ("t1", "flair"))
    fixed, moving = to_itk(truth.fixed), to_itk(truth.moving)

found = register(fixed, moving)  # RegisterConfig(...) as the third argument for anything but the defaults

for stage in found.result.stages:
    print(f"{stage.name:10s} mean cosine {stage.cosine_before:.3f} -> {stage.cosine_after:.3f}  {stage.remark}")
for warning in found.result.warnings:
    print("warning:", warning)

itk.transformwrite([found.transform], "transform.h5")
transform = itk.transformread("transform.h5")[0]
moved = itk.resample_image_filter(moving, transform=transform, use_reference_image=True, reference_image=fixed)
itk.imwrite(moved, "moved.nii.gz")

if truth:
    identity = itk.IdentityTransform[itk.D, 3].New()
    before, after = (truth.error_mm(transform_to_sitk(t)) for t in (identity, transform))
    print(f"mean error {before:.2f} mm -> {after:.2f} mm")
