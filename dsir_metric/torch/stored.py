"""A representation as a TorchScript model, for programs that compare the features of such models."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dsir_metric.represent.representation import Representation

__all__ = ["save_stored"]


class _Stored(nn.Module):
    """Answers any image with the features it holds."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features: Tensor
        self.register_buffer("features", features)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.features]


def save_stored(image: Representation, path: Path) -> None:
    """Write a TorchScript model that answers with the descriptors of `image`, whatever it is asked.

    Parameters
    ----------
    image : Representation
    path : Path
        The answer is a list of one tensor, float32 (1, channels, z, y, x).
    """
    features = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image.values, -1, 0), np.float32))[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what those programs read
        torch.jit.save(torch.jit.script(_Stored(features)), str(path))
