"""The native torch path: losses, warps, instance optimisation and networks, on the CPU or a GPU (extra `torch`)."""

from importlib.util import find_spec

from dsir_metric.errors import MissingDependencyError

if find_spec("torch") is None:
    raise MissingDependencyError("dsir_metric.torch needs torch: pip install 'dsir-metric[torch]'")

from dsir_metric.torch.convex import ConvexConfig, coupled_convex
from dsir_metric.torch.cosine import cosine_at
from dsir_metric.torch.instance import optimise
from dsir_metric.torch.losses import (
    BendingLoss,
    DiffusionLoss,
    DNSCosineLoss,
    FoldLoss,
    LocalNCCLoss,
    MINDSSCLoss,
    NMILoss,
)
from dsir_metric.torch.objective import Volumes
from dsir_metric.torch.tensors import as_representation, as_tensor
from dsir_metric.torch.warp import compose, exponential, warp

__all__ = [
    "BendingLoss",
    "ConvexConfig",
    "DNSCosineLoss",
    "DiffusionLoss",
    "FoldLoss",
    "LocalNCCLoss",
    "MINDSSCLoss",
    "NMILoss",
    "Volumes",
    "as_representation",
    "as_tensor",
    "compose",
    "cosine_at",
    "coupled_convex",
    "exponential",
    "optimise",
    "warp",
]
