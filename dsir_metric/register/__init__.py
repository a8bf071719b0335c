"""Registration in stages: centre, coarse search, rigid, affine, deformable."""

from dsir_metric.register.config import STAGES, DeformableConfig, RegisterConfig, SearchConfig
from dsir_metric.register.pipeline import register
from dsir_metric.register.result import Progress, RegistrationResult, StageReport

__all__ = [
    "STAGES",
    "DeformableConfig",
    "Progress",
    "RegisterConfig",
    "RegistrationResult",
    "SearchConfig",
    "StageReport",
    "register",
]
