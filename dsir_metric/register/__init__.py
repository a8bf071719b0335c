"""Registration in stages: centre, coarse search, rigid, affine, deformable, refine."""

from dsir_metric.register.backends import BACKENDS
from dsir_metric.register.config import (
    STAGES,
    DeformableConfig,
    DenseConfig,
    EngineConfig,
    InstanceConfig,
    LapirnConfig,
    RefineConfig,
    RegisterConfig,
    SearchConfig,
)
from dsir_metric.register.pipeline import register
from dsir_metric.register.result import Progress, RegistrationResult, StageReport

__all__ = [
    "BACKENDS",
    "STAGES",
    "DeformableConfig",
    "DenseConfig",
    "EngineConfig",
    "InstanceConfig",
    "LapirnConfig",
    "Progress",
    "RefineConfig",
    "RegisterConfig",
    "RegistrationResult",
    "SearchConfig",
    "StageReport",
    "register",
]
