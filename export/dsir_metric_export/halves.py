"""The network as the model file holds it."""

from __future__ import annotations

from dsir_metric_train.model import MasrNet
from torch import Tensor, nn

__all__ = ["INPUTS", "OUTPUTS", "Halves"]

INPUTS = ("image", "features")
OUTPUTS = ("image_features", "descriptors")


class Halves(nn.Module):
    """A MASR-Net cut at the feature map into two that do not depend on each other.

    The extractor sees far and keeps few channels, the head sees near and keeps many. A tile of the whole network would
    need the memory of the one and the halo of the other.

    Parameters
    ----------
    network : MasrNet
    """

    def __init__(self, network: MasrNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map (1, C_h, z, y, x) of `image`; channel-last descriptors (1, z, y, x, channels) of `features`."""
        return self.network.features(image), self.network.describe(features).permute(0, 2, 3, 4, 1)
