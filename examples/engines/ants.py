"""T1 <- FLAIR by ANTs' SyN on representations, for antsApplyTransforms.

python examples/engines/ants.py                      # on a phantom
python examples/engines/ants.py fixed.nii.gz moving.nii.gz
"""

from _pair import read_pair, show

from dsir_metric import io
from dsir_metric.register import RegisterConfig, register

fixed, moving, truth = read_pair()

# In place of ants.registration(fixed, moving, type_of_transform="SyN", syn_metric="mattes")
result = register(fixed, moving, RegisterConfig(backend="ants"))

show(result, truth)

io.write_transform(result.transform, "transform.h5")
io.write_image(result.moved(moving), "moved.nii.gz")
print("antsApplyTransforms -d 3 -i moving.nii.gz -r fixed.nii.gz -t transform.h5 -o moved.nii.gz")
