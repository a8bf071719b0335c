"""What a user may choose about a registration; the defaults need no tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dsir_metric.bridges.registry import ENGINES
from dsir_metric.errors import ConfigError

__all__ = ["BACKENDS", "STAGES", "DeformableConfig", "EngineConfig", "RegisterConfig", "SearchConfig", "Stage"]

Stage = Literal["centre", "search", "rigid", "affine", "deformable"]
STAGES: tuple[Stage, ...] = ("centre", "search", "rigid", "affine", "deformable")
BACKENDS: tuple[str, ...] = ("sitk", *ENGINES)


@dataclass(frozen=True)
class SearchConfig:
    """Coarse search over rotation and translation.

    Parameters
    ----------
    rotation_deg, rotation_step_deg : float
        Half width and step of the lattice of Euler angles, each axis.
    translation_mm : float
        Half width of the lattice of translations, each axis; less where it would exceed a quarter of the fixed image.
    translation_steps : int
        Steps of that lattice from its middle to either end.
    points : int
        Foreground points each candidate is judged on.
    candidates : int
        Best candidates that are refined by a rigid optimisation.
    significance : float
        The best of them is taken only if its mean cosine exceeds that of the refined start by this many standard
        deviations of the mean cosine over the whole lattice: of many wrong poses one always looks good.
    """

    rotation_deg: float = 24.0
    rotation_step_deg: float = 12.0
    translation_mm: float = 24.0
    translation_steps: int = 2
    points: int = 600
    candidates: int = 6
    significance: float = 3.0

    def __post_init__(self) -> None:
        if self.rotation_step_deg <= 0 or min(self.translation_steps, self.points, self.candidates) < 1:
            raise ConfigError("search steps, points and candidates are positive")


@dataclass(frozen=True)
class DeformableConfig:
    """Free-form deformation, coarse to fine.

    Parameters
    ----------
    lattice_mm : tuple of float
        Distance of the B-spline control points at each level, coarse to fine.
    iterations : tuple of int
        Largest number of optimiser iterations at each level.
    diffusion : float
        Weight of the mean squared Frobenius norm of grad u (no unit) against the mean cosine.
    bending_mm2 : float
        Weight of the mean squared Frobenius norm of the second derivatives of u (per mm^2), in mm^2.
    smallest_jacobian : float
        A voxel with a smaller Jacobian determinant counts as folding: the displacement is smoothed around it.
    """

    lattice_mm: tuple[float, ...] = (24.0, 12.0, 6.0)
    iterations: tuple[int, ...] = (40, 40, 40)
    diffusion: float = 0.3
    bending_mm2: float = 60.0
    smallest_jacobian: float = 0.05

    def __post_init__(self) -> None:
        if len(self.lattice_mm) != len(self.iterations) or not self.lattice_mm:
            raise ConfigError(
                f"lattice_mm has {len(self.lattice_mm)} levels and iterations {len(self.iterations)}; give one of each"
            )
        if min(self.lattice_mm) <= 0 or min(self.iterations) < 1 or min(self.diffusion, self.bending_mm2) < 0:
            raise ConfigError("lattice_mm and iterations are positive, diffusion and bending_mm2 not negative")


@dataclass(frozen=True)
class EngineConfig:
    """An engine that takes the place of our deformable stage.

    Parameters
    ----------
    channels : int, optional
        How many channels it is given; chosen for the engine by default. Fewer need less time and memory.
    timeout_s : float
        When it is given up.
    """

    channels: int | None = None
    timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        if (self.channels is not None and self.channels < 1) or not self.timeout_s > 0:
            raise ConfigError(f"engine: channels is {self.channels}, timeout_s {self.timeout_s}; both are positive")


@dataclass(frozen=True)
class RegisterConfig:
    """Settings of a registration.

    Parameters
    ----------
    backend : str
        What does the deformable stage: "sitk" (our own) or an engine of `dsir_metric.bridges.ENGINES`.
    model : str
        Name or path of the model that makes the representations.
    device : str
        "auto", "cpu" or "cuda", for the representations.
    threads : int, optional
        CPU threads; all cores by default.
    spacing_mm : float, optional
        Isotropic voxel size both images are represented at; chosen from the images by default.
    fixed_intensity, moving_intensity : str
        "auto", "mr", "ct", "ct:low,high" or "window:low,high".
    stages : tuple of str
        Any of centre, search, rigid, affine, deformable, in that order.
    seed : int
        Of every random choice; the same input and seed give the same output.
    search : SearchConfig
    deformable : DeformableConfig
        Of the backend sitk.
    engine : EngineConfig
        Of the other backends.
    """

    backend: str = "sitk"
    model: str = "default"
    device: str = "auto"
    threads: int | None = None
    spacing_mm: float | None = None
    fixed_intensity: str = "auto"
    moving_intensity: str = "auto"
    stages: tuple[Stage, ...] = STAGES
    seed: int = 0
    search: SearchConfig = field(default_factory=SearchConfig)
    deformable: DeformableConfig = field(default_factory=DeformableConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend {self.backend!r} is unknown; there are {', '.join(BACKENDS)}")
        wrong = [s for s in self.stages if s not in STAGES]
        if wrong or not self.stages:
            raise ConfigError(f"stages {list(self.stages)} came; use some of {', '.join(STAGES)}")
        if list(self.stages) != sorted(set(self.stages), key=STAGES.index):
            raise ConfigError(
                f"stages {list(self.stages)} are out of order or doubled; the order is {', '.join(STAGES)}"
            )
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; 0 or more is needed")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; at least 1 is needed")
