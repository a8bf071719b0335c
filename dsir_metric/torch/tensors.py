"""Representations as tensors and back, without a copy where the memory is the CPU's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dsir_metric.geometry import Grid
from dsir_metric.represent import Representation

__all__ = ["as_representation", "as_tensor"]


def as_tensor(representation: Representation, device: str | torch.device = "cpu", half: bool = False) -> Tensor:
    """Descriptors of a representation as a tensor.

    Parameters
    ----------
    representation : Representation
    device : str or torch.device
        On the CPU, without `half`, the tensor shares the memory of `representation.values` (unless that is read-only):
        do not change it in place.
    half : bool
        float16 instead of float32: half the memory, three digits.

    Returns
    -------
    Tensor, shape (z, y, x, channels)
        Contiguous: channels last.
    """
    values = np.require(representation.values, np.float32, ["C", "W"])
    tensor = torch.from_numpy(values).to(device)
    return tensor.half() if half else tensor


def as_representation(tensor: Tensor, grid: Grid, provenance: Mapping[str, object] | None = None) -> Representation:
    """A tensor (z, y, x, channels) on `grid` as a representation, whose values are its memory if that can be.

    Raises
    ------
    ShapeError
        If the tensor does not fit `grid`.
    """
    values = tensor.detach().to("cpu").float().contiguous().numpy()
    return Representation(values, grid, provenance or {})
