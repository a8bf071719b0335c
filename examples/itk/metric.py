"""The DNS cosine metric on an itk.Transform, driven by SciPy's L-BFGS-B; then by steps in the manner of ITK v4.

python examples/itk/metric.py                      # on a phantom
python examples/itk/metric.py fixed.nii.gz moving.nii.gz
"""

import sys

import itk
from scipy.optimize import minimize

from dsir_metric.itk import DNSCosineImageToImageMetricv4, to_itk, transform_to_sitk
from dsir_metric.metric import Sampling
from dsir_metric.phantom import make_pair

if len(sys.argv) == 3:
    truth, (fixed, moving) = None, (itk.imread(path, itk.F) for path in sys.argv[1:])
else:
    truth = make_pair(48, 4.0, ("t1", "flair"), amplitude_mm=0.0)
    fixed, moving = to_itk(truth.fixed), to_itk(truth.moving)

transform = itk.Euler3DTransform[itk.D].New()
transform.SetCenter(fixed.TransformIndexToPhysicalPoint([n // 2 for n in itk.size(fixed)]))

metric = DNSCosineImageToImageMetricv4.New(sampling=Sampling("random", 0.2, seed=1))
metric.SetFixedImage(fixed)  # native: itk.MattesMutualInformationImageToImageMetricv4[ImageType, ImageType].New()
metric.SetMovingImage(moving)
metric.SetMovingTransform(transform)
metric.Initialize()
print(f"{metric.GetNumberOfParameters()} parameters, value {metric.GetValue():.4f}")

scale = 100.0  # a radian moves the head as far as 100 mm do


def value_and_gradient(unknowns):
    value, gradient = metric.value_and_gradient([*(unknowns[:3] / scale), *unknowns[3:]])
    return value, [*(gradient[:3] / scale), *gradient[3:]]


best = minimize(value_and_gradient, [0.0] * 6, jac=True, method="L-BFGS-B")
metric.SetParameters([*(best.x[:3] / scale), *best.x[3:]])
print(f"L-BFGS-B: value {metric.GetValue():.4f} after {best.nit} iterations")

derivative = metric.GetDerivative()  # ITK's: the way down, in units of the parameters
metric.UpdateTransformParameters([*(derivative[:3] / scale**2), *derivative[3:]], 0.1)
print(f"one step by hand: value {metric.GetValue():.4f}")

print([round(p, 4) for p in transform.GetParameters()])
if truth:
    identity = itk.IdentityTransform[itk.D, 3].New()
    before, after = (truth.error_mm(transform_to_sitk(t)) for t in (identity, transform))
    print(f"mean error {before:.2f} mm -> {after:.2f} mm")
