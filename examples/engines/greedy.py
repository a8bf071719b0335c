"""T1 <- FLAIR by greedy on representations; the warp is one that `greedy -r` reads.

python examples/engines/greedy.py                      # on a phantom
python examples/engines/greedy.py fixed.nii.gz moving.nii.gz
"""

from _pair import read_pair, show

from dsir_metric import io
from dsir_metric.geometry import DisplacementField
from dsir_metric.register import RegisterConfig, register

fixed, moving, truth = read_pair()

# In place of greedy -d 3 -m NMI -i fixed.nii.gz moving.nii.gz -o warp.nii.gz
result = register(fixed, moving, RegisterConfig(backend="greedy"))

show(result, truth)

field = DisplacementField.from_transform(result.transform, result.fixed_grid)  # linear part and deformation in one
io.write_image(field.to_transform().GetDisplacementField(), "warp.nii.gz")
io.write_image(result.moved(moving), "moved.nii.gz")
print("greedy -d 3 -rf fixed.nii.gz -rm moving.nii.gz moved.nii.gz -r warp.nii.gz")
