"""Registration in stages: centre, coarse search, rigid, affine, deformable."""

from dsir_metric.register.config import BACKENDS, STAGES, DeformableConfig, EngineConfig, RegisterConfig, SearchConfig
from dsir_metric.register.pipeline import register
from dsir_metric.register.result import Progress, RegistrationResult, StageReport

__all__ = [
    "BACKENDS",
    "STAGES",
    "DeformableConfig",
    "EngineConfig",
    "Progress",
    "RegisterConfig",
    "RegistrationResult",
    "SearchConfig",
    "StageReport",
    "register",
]
