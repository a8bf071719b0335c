"""T1 <- FLAIR by elastix' B-splines on representations, as an ITK transform.

python examples/engines/elastix.py                      # on a phantom
python examples/engines/elastix.py fixed.nii.gz moving.nii.gz
"""

from _pair import read_pair, show

from dsir_metric import io
from dsir_metric.register import RegisterConfig, register

fixed, moving, truth = read_pair()

# In place of itk.elastix_registration_method(fixed, moving) with AdvancedMattesMutualInformation
result = register(fixed, moving, RegisterConfig(backend="elastix"))

show(result, truth)

io.write_transform(result.transform, "transform.h5")
io.write_image(result.moved(moving), "moved.nii.gz")
