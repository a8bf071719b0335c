"""A registration network of your own, trained on the DNS cosine: one import, one line of loss.

python examples/torch/own_network.py                      # on a phantom
python examples/torch/own_network.py fixed.nii.gz moving.nii.gz
"""

import sys

import SimpleITK as sitk
import torch
from torch import nn

from dsir_metric.phantom import make_pair
from dsir_metric.represent import Representer, represent_pair
from dsir_metric.torch import DiffusionLoss, DNSCosineLoss, as_tensor, exponential, warp

if len(sys.argv) == 3:
    fixed, moving = (sitk.ReadImage(path, sitk.sitkFloat32) for path in sys.argv[1:])
else:
    pair = make_pair(40, 4.5, ("t1", "flair"), rotation_deg=(0, 0, 0), translation_mm=(4, -3, 3))
    fixed, moving = pair.fixed, pair.moving
torch.manual_seed(0)

# Scans become 24 channels once; from here on the contrast does not matter.
f, m = represent_pair(fixed, moving, Representer())
m = m.resampled(f.grid, extend=True)  # both on one grid
f, m = (as_tensor(r).movedim(-1, 0)[None] for r in (f, m))  # (1, 24, z, y, x)

network = nn.Sequential(  # yours: anything that makes a displacement or velocity (batch, 3, z, y, x), in voxels
    nn.Conv3d(48, 16, 3, stride=2, padding=1),
    nn.LeakyReLU(0.2),
    nn.Conv3d(16, 16, 3, stride=2, padding=1),
    nn.LeakyReLU(0.2),
    nn.Upsample(size=f.shape[2:], mode="trilinear"),
    nn.Conv3d(16, 3, 3, padding=1),
)
similarity, smoothness = DNSCosineLoss(), DiffusionLoss()
optimiser = torch.optim.Adam(network.parameters(), 2e-3)

for step in range(40):
    displacement = exponential(network(torch.cat([f, m], dim=1)))
    loss = similarity(f, warp(m, displacement)) + 0.3 * smoothness(displacement)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if step % 13 == 0:
        print(f"step {step:2d}  loss {loss.item():.4f}")
