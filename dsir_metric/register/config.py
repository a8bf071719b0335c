"""What a user may choose about a registration; the defaults need no tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dsir_metric.errors import ConfigError
from dsir_metric.register.backends import BACKENDS

__all__ = [
    "STAGES",
    "DeformableConfig",
    "DenseConfig",
    "EngineConfig",
    "InstanceConfig",
    "LapirnConfig",
    "RefineConfig",
    "RegisterConfig",
    "SearchConfig",
    "Stage",
]

Stage = Literal["centre", "search", "rigid", "affine", "deformable", "refine"]
STAGES: tuple[Stage, ...] = ("centre", "search", "rigid", "affine", "deformable", "refine")


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
    """Free-form deformation, coarse to fine, of the backends sitk and torch.

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
    information : float
        Weight of the normalised mutual information of the scans against the mean cosine; 0 looks at the cosine alone.
    mixed : bool
        Whether the channels are mixed as the model says, for what is nearly aligned; see `Representation.mixed`.
    smallest_jacobian : float
        A voxel with a smaller Jacobian determinant counts as folding: the displacement is smoothed around it.
    adaptive : bool
        Whether the last level has a third of `diffusion`, and a weight of bending that follows from the deformation so
        far: up to twice `bending_mm2` where it is smooth, as between scans of one patient, and down to a sixteenth
        where it is rough, as between people.
    """

    lattice_mm: tuple[float, ...] = (48.0, 24.0, 12.0, 6.0)
    iterations: tuple[int, ...] = (40, 40, 40, 40)
    diffusion: float = 0.3
    bending_mm2: float = 75.0
    information: float = 0.5
    mixed: bool = True
    smallest_jacobian: float = 0.05
    adaptive: bool = True

    @property
    def weights(self) -> tuple[float, float]:
        """Those of diffusion and of bending energy (mm^2)."""
        return self.diffusion, self.bending_mm2

    def __post_init__(self) -> None:
        if len(self.lattice_mm) != len(self.iterations) or not self.lattice_mm:
            raise ConfigError(
                f"lattice_mm has {len(self.lattice_mm)} levels and iterations {len(self.iterations)}; give one of each"
            )
        if (
            min(self.lattice_mm) <= 0
            or min(self.iterations) < 1
            or min(self.diffusion, self.bending_mm2, self.information) < 0
        ):
            raise ConfigError(
                "lattice_mm and iterations are positive; diffusion, bending_mm2 and information are not negative"
            )


@dataclass(frozen=True)
class RefineConfig:
    """The last lattice of `DeformableConfig` once more, on the scans represented in smaller voxels.

    Parameters
    ----------
    voxels : float
        Their edge as a share of that of the others. The stage is left out where a scan would have more than 8 million.
    iterations : int
        Largest number of optimiser iterations.
    """

    voxels: float = 0.7
    iterations: int = 40

    def __post_init__(self) -> None:
        if not 0 < self.voxels < 1:
            raise ConfigError(
                f"refine: voxels is {self.voxels}; give a share above 0 and below 1, or leave refine out of the stages"
            )
        if self.iterations < 1:
            raise ConfigError(f"refine: iterations is {self.iterations}; at least 1 is needed")


@dataclass(frozen=True)
class DenseConfig:
    """A displacement, or velocity, for every voxel, found by Adam; the defaults are table 4 of the paper.

    Parameters
    ----------
    scales : tuple of float
        Size of each level, coarse to fine, as a share of the finest one.
    iterations : tuple of int
        Of each level.
    learning_rate : tuple of float
        Of each level. Adam moves a voxel by about this much an iteration, in half edges of the volume. The paper gives
        numbers without a unit; this is that of coordinates from -1 to 1, as in its authors' other work.
    diffusion : tuple of float
        Of each level: weight of the mean squared Frobenius norm of grad u (no unit) against the metric.
    """

    scales: tuple[float, ...] = (0.5, 0.75, 1.0)
    iterations: tuple[int, ...] = (100, 80, 50)
    learning_rate: tuple[float, ...] = (1e-2, 5e-3, 3e-3)
    diffusion: tuple[float, ...] = (0.6, 0.5, 0.4)

    def __post_init__(self) -> None:
        lists = (self.scales, self.iterations, self.learning_rate, self.diffusion)
        if len({len(values) for values in lists}) != 1 or not self.scales:
            raise ConfigError(
                f"dense: scales, iterations, learning_rate and diffusion have {', '.join(str(len(v)) for v in lists)} "
                "values; give one of each for every level"
            )
        if not all(0 < s <= 1 for s in self.scales) or list(self.scales) != sorted(self.scales):
            raise ConfigError(f"dense: scales are {list(self.scales)}; rising shares of the finest level are expected")
        if min(self.iterations) < 1 or min(self.learning_rate) <= 0 or min(self.diffusion) < 0:
            raise ConfigError("dense: iterations and learning_rate are positive, diffusion not negative")


@dataclass(frozen=True)
class InstanceConfig:
    """Instance optimisation in torch: the backend torch.

    Parameters
    ----------
    metric : str
        "dns", the cosine of the representations; "mind", the mean squared difference of MIND-SSC; "nmi", normalised
        mutual information. The last two look at the intensities.
    weight : float, optional
        Of the metric against smoothness; by default 1 for dns, and for the others such that the same smoothness
        suits them.
    parametrisation : str
        "bspline": a cubic B-spline lattice by L-BFGS, with the settings of `DeformableConfig`; "dense": see `dense`.
    velocity : bool
        Whether it is that of a stationary velocity: the deformation is then a diffeomorphism with an inverse.
    init : str
        "zero", or "convex": a discrete search first, for displacements that descent cannot reach.
    gaussian_sigma : float
        Standard deviation, in voxels, of the Gaussian under which both representations are compared (psi in equation 5
        of the paper), with the metric dns; 0, the default, for none, up to 8.
    dense : DenseConfig
    """

    metric: Literal["dns", "mind", "nmi"] = "dns"
    weight: float | None = None
    parametrisation: Literal["bspline", "dense"] = "bspline"
    velocity: bool = False
    init: Literal["zero", "convex"] = "zero"
    gaussian_sigma: float = 0.0
    dense: DenseConfig = field(default_factory=DenseConfig)

    def __post_init__(self) -> None:
        if self.metric == "nmi" and self.init == "convex":
            raise ConfigError("instance: init convex compares descriptors, which nmi has not; use metric dns or mind")
        if not 0 <= self.gaussian_sigma <= 8:  # wider than the anatomy between two organs
            raise ConfigError(f"instance: gaussian_sigma must be from 0 to 8 voxels, got {self.gaussian_sigma}")
        if self.gaussian_sigma > 0 and self.metric != "dns":
            raise ConfigError(
                f"instance: gaussian_sigma smooths representations, got metric {self.metric}, which compares none; use "
                "metric dns, or leave it out"
            )
        if self.weight is not None and self.weight <= 0:
            raise ConfigError(f"instance: weight is {self.weight}; a positive number is needed")


@dataclass(frozen=True)
class LapirnConfig:
    """A registration network: the backend lapirn.

    Parameters
    ----------
    model : str
        Name or path of the network.
    refine_iterations : int
        Iterations of free-form deformation after it, at the finest level of `DeformableConfig`; 0 for none.
    """

    model: str = "lapirn"
    refine_iterations: int = 0

    def __post_init__(self) -> None:
        if self.refine_iterations < 0:
            raise ConfigError(f"lapirn: refine_iterations is {self.refine_iterations}; 0 or more is needed")


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
        What does the deformable stage, a name of `BACKENDS`.
    model : str
        Name, path or address of the model that makes the representations.
    device : str
        "auto", "cpu", "cuda" or "cuda:1" (the second GPU), for the representations and the backends torch and lapirn. A
        GPU that is named and not there is an error; "auto" then takes the CPU.
    threads : int, optional
        CPU threads; all cores by default.
    gpu_memory_bytes : int, optional
        The most that ONNX Runtime, and torch, take on the GPU.
    memory_bytes : int, optional
        What the process may have, with the backend sitk; it makes tiles smaller, and voxels larger where `spacing_mm`
        is not given. Masks and labels come on top.
    spacing_mm : float, optional
        Isotropic voxel size both images are represented at; chosen from the images by default.
    fixed_intensity, moving_intensity : str
        "auto", "mr", "ct", "ct:low,high" or "window:low,high".
    stages : tuple of str
        Any of centre, search, rigid, affine, deformable, refine, in that order; see `refines` for the last.
    turn_deg : float
        When the moving scan turns out to lie askew by more than this, it is represented again along turned axes, for
        descriptors are not indifferent to rotation; kept where the mean cosine rises. 180 never does it.
    seed : int
        Of every random choice; the same input and seed give the same output.
    search : SearchConfig
    deformable : DeformableConfig
        Of the backends sitk and torch.
    refine : RefineConfig
    instance : InstanceConfig
        Of the backend torch.
    lapirn : LapirnConfig
        Of the backend lapirn.
    engine : EngineConfig
        Of the backends that are programs of their own.
    """

    backend: str = "sitk"
    model: str = "default"
    device: str = "auto"
    threads: int | None = None
    gpu_memory_bytes: int | None = None
    memory_bytes: int | None = None
    spacing_mm: float | None = None
    fixed_intensity: str = "auto"
    moving_intensity: str = "auto"
    stages: tuple[Stage, ...] = STAGES
    turn_deg: float = 5.0
    seed: int = 0
    search: SearchConfig = field(default_factory=SearchConfig)
    deformable: DeformableConfig = field(default_factory=DeformableConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    instance: InstanceConfig = field(default_factory=InstanceConfig)
    lapirn: LapirnConfig = field(default_factory=LapirnConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    @property
    def refines(self) -> bool:
        """Whether there is a refine stage: after a deformable one it is for a lattice of ours that has no inverse."""
        lattice = self.instance.metric == "dns" and self.instance.parametrisation == "bspline"
        ours = {
            "sitk": True,
            "torch": lattice and not self.instance.velocity,
            "lapirn": self.lapirn.refine_iterations > 0,
        }
        return "refine" in self.stages and ("deformable" not in self.stages or ours.get(self.backend, False))

    @property
    def mixes(self) -> bool:
        """Whether the deformable stage compares mixed channels; networks and engines are given them as they are."""
        ours = self.backend == "sitk" or (self.backend == "torch" and self.instance.metric == "dns")
        return ours and self.deformable.mixed

    @property
    def looks_at_scans(self) -> bool:
        """Whether a stage looks at intensities, beside the representations or instead of them."""
        ours = self.backend in ("sitk", "torch") or self.lapirn.refine_iterations > 0
        asked = self.deformable.information > 0 or self.instance.metric != "dns"
        return ("deformable" in self.stages and ours and asked) or (self.refines and self.deformable.information > 0)

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend {self.backend!r} is unknown; there are {', '.join(BACKENDS)}")
        if self.memory_bytes is not None and (self.memory_bytes < 1 or self.backend != "sitk"):
            raise ConfigError(
                f"memory_bytes is {self.memory_bytes}, the backend {self.backend!r}; give a positive number; only "
                "sitk keeps to it"
            )
        if self.backend != "torch" and self.instance != InstanceConfig():
            raise ConfigError(
                f"settings of instance optimisation came with the backend {self.backend!r}; only torch has them "
                "(--backend torch)"
            )
        if self.backend != "lapirn" and self.lapirn != LapirnConfig():
            raise ConfigError(
                f"settings of lapirn came with the backend {self.backend!r}; choose it (--backend lapirn)"
            )
        wrong = [s for s in self.stages if s not in STAGES]
        if wrong or not self.stages:
            raise ConfigError(f"stages {list(self.stages)} came; use some of {', '.join(STAGES)}")
        if list(self.stages) != sorted(set(self.stages), key=STAGES.index):
            raise ConfigError(
                f"stages {list(self.stages)} are out of order or doubled; the order is {', '.join(STAGES)}"
            )
        if not self.turn_deg > 0:
            raise ConfigError(f"turn_deg is {self.turn_deg}; a positive angle is needed, 180 for never")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; 0 or more is needed")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; at least 1 is needed")
