"""What a user may choose about a registration; the defaults need no tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dsir_metric.bounds import MOST_NUMBER, Bytes, Length, Range, Threads, quoted
from dsir_metric.config import Settings
from dsir_metric.errors import ConfigError
from dsir_metric.register.backends import BACKENDS
from dsir_metric.represent.device import Device

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

Count = Annotated[int, Range(1, 10_000)]  # of iterations: hours of work
Weight = Annotated[float, Range(0, 1e6)]
_LEVELS = Length(1, 10)  # each halves the size, more or less
# Of a search. An image's descriptor is compared at a point in 140 ns: the second is five minutes on one core.
_MOST_POSES = 1_000_000
_MOST_COMPARED = 2_000_000_000
_MOST_AT_ONCE = 10_000_000  # points of all shifts for one turn: 240 MB of coordinates


@dataclass(frozen=True)
class SearchConfig(Settings):
    """Coarse search over rotation and translation.

    Parameters
    ----------
    rotation_deg, rotation_step_deg : float
        Half width and step of the lattice of Euler angles, each axis, degrees; a half width of 0 turns nothing.
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
    orientations : bool
        Whether all orientations and places are searched where the pose is not surely better than chance, or another
        orientation looks better.
    """

    rotation_deg: Annotated[float, Range(0, 180)] = 24.0
    rotation_step_deg: Annotated[float, Range(0.01, 180)] = 12.0
    translation_mm: Annotated[float, Range(0, 10_000, above=True)] = 24.0
    translation_steps: Annotated[int, Range(1, 50)] = 2
    points: Annotated[int, Range(1, 1_000_000)] = 600
    candidates: Annotated[int, Range(1, 100)] = 6
    significance: Annotated[float, Range(0, 1e6)] = 3.0
    orientations: bool = True

    def check_together(self) -> None:
        """See that the lattice has more than its middle and not more poses than can be judged."""
        if 0 < self.rotation_deg < self.rotation_step_deg:  # else no rotation would be tried, without a word
            raise ConfigError(
                f"rotation_deg must be 0 or at least rotation_step_deg ({self.rotation_step_deg:g}), got "
                f"{self.rotation_deg:g}"
            )
        turns = (2 * int(self.rotation_deg / self.rotation_step_deg) + 1) ** 3
        shifts = (2 * self.translation_steps + 1) ** 3
        poses = turns * shifts
        if poses > _MOST_POSES or poses * self.points > _MOST_COMPARED or shifts * self.points > _MOST_AT_ONCE:
            raise ConfigError(
                f"the search must have up to {_MOST_POSES} poses, {_MOST_AT_ONCE} points of all shifts and "
                f"{_MOST_COMPARED} comparisons, got {turns} turns x {shifts} shifts x {self.points} points: take "
                "larger steps or fewer points"
            )


@dataclass(frozen=True)
class DeformableConfig(Settings):
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
        A voxel with a smaller Jacobian determinant counts as folding: the displacement is smoothed around it. At most
        0.9: no displacement that moves anything keeps 1 everywhere.
    adaptive : bool
        Whether the last level has a third of `diffusion`, and a weight of bending that follows from the deformation so
        far: up to twice `bending_mm2` where it is smooth, as between scans of one patient, and down to a sixteenth
        where it is rough, as between people.
    """

    lattice_mm: Annotated[tuple[Annotated[float, Range(1e-3, 10_000)], ...], _LEVELS] = (48.0, 24.0, 12.0, 6.0)
    iterations: Annotated[tuple[Count, ...], _LEVELS] = (40, 40, 40, 40)
    diffusion: Weight = 0.3
    bending_mm2: Annotated[float, Range(0, 1e9)] = 75.0
    information: Weight = 0.5
    mixed: bool = True
    smallest_jacobian: Annotated[float, Range(0, 0.9)] = 0.05
    adaptive: bool = True

    @property
    def weights(self) -> tuple[float, float]:
        """Those of diffusion and of bending energy (mm^2)."""
        return self.diffusion, self.bending_mm2

    def check_together(self) -> None:
        """See that each level has its lattice and its iterations."""
        if len(self.lattice_mm) != len(self.iterations):
            raise ConfigError(
                f"lattice_mm and iterations must have one entry a level each, got {len(self.lattice_mm)} and "
                f"{len(self.iterations)}"
            )


@dataclass(frozen=True)
class RefineConfig(Settings):
    """The last lattice of `DeformableConfig` once more, on the scans represented in smaller voxels.

    Parameters
    ----------
    voxels : float
        Their edge as a share of that of the others. The stage is left out where a scan would have more than 8 million.
    iterations : int
        Largest number of optimiser iterations.
    """

    voxels: Annotated[float, Range(0.05, 1, below=True)] = 0.7
    iterations: Count = 40


@dataclass(frozen=True)
class DenseConfig(Settings):
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

    scales: Annotated[tuple[Annotated[float, Range(0.01, 1)], ...], _LEVELS] = (0.5, 0.75, 1.0)
    iterations: Annotated[tuple[Count, ...], _LEVELS] = (100, 80, 50)
    learning_rate: Annotated[tuple[Annotated[float, Range(0, 1, above=True)], ...], _LEVELS] = (1e-2, 5e-3, 3e-3)
    diffusion: Annotated[tuple[Weight, ...], _LEVELS] = (0.6, 0.5, 0.4)

    def check_together(self) -> None:
        """See that each level has one value of each, and that the levels rise."""
        lists = (self.scales, self.iterations, self.learning_rate, self.diffusion)
        if len({len(values) for values in lists}) != 1:
            raise ConfigError(
                "scales, iterations, learning_rate and diffusion of dense must have one entry a level each, got "
                f"{', '.join(str(len(v)) for v in lists)} values"
            )
        if list(self.scales) != sorted(self.scales):
            raise ConfigError(f"scales of dense must be rising shares of the finest level, got {list(self.scales)}")


@dataclass(frozen=True)
class InstanceConfig(Settings):
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
    weight: Annotated[float, Range(0, 1e6, above=True)] | None = None
    parametrisation: Literal["bspline", "dense"] = "bspline"
    velocity: bool = False
    init: Literal["zero", "convex"] = "zero"
    gaussian_sigma: Annotated[float, Range(0, 8)] = 0.0  # wider than the gap between two organs
    dense: DenseConfig = field(default_factory=DenseConfig)

    def check_together(self) -> None:
        """See that the metric has what the search needs."""
        if self.metric == "nmi" and self.init == "convex":
            raise ConfigError("instance: init convex compares descriptors, which nmi has not; use metric dns or mind")
        if self.gaussian_sigma > 0 and self.metric != "dns":
            raise ConfigError(
                f"instance: gaussian_sigma smooths representations, got metric {self.metric}, which compares none; use "
                "metric dns, or leave it out"
            )


@dataclass(frozen=True)
class LapirnConfig(Settings):
    """A registration network: the backend lapirn.

    Parameters
    ----------
    model : str
        Name or path of the network.
    refine_iterations : int
        Iterations of free-form deformation after it, at the finest level of `DeformableConfig`; 0 for none.
    """

    model: str = "lapirn"
    refine_iterations: Annotated[int, Range(0, 10_000)] = 0


@dataclass(frozen=True)
class EngineConfig(Settings):
    """An engine that takes the place of our deformable stage.

    Parameters
    ----------
    channels : int, optional
        How many channels it is given; chosen for the engine by default. Fewer need less time and memory.
    timeout_s : float
        When it is given up, seconds; 30 days at most.
    """

    channels: Annotated[int, Range(1, 1024)] | None = None
    timeout_s: Annotated[float, Range(0, 30 * 86_400, above=True)] = 3600.0


@dataclass(frozen=True)
class RegisterConfig(Settings):
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
    scale : float, optional
        Size of the body against an adult patient: default lengths (`translation_mm`, `lattice_mm`, `bending_mm2`,
        margins and reach) are multiplied by it; other values of these settings are taken in mm as they are. By default
        it follows from the boxes and voxels of the scans, see `dsir_metric.geometry.body_scale`.
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
    threads: Threads | None = None
    gpu_memory_bytes: Bytes | None = None
    memory_bytes: Bytes | None = None
    spacing_mm: Annotated[float, Range(1e-4, 1000)] | None = None
    fixed_intensity: str = "auto"
    moving_intensity: str = "auto"
    stages: Annotated[tuple[Stage, ...], Length(1, len(STAGES))] = STAGES
    turn_deg: Annotated[float, Range(0, 180, above=True)] = 5.0
    scale: Annotated[float, Range(1e-6, 1e6)] | None = None
    seed: Annotated[int, Range(0, MOST_NUMBER)] = 0
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

    def check_together(self) -> None:
        """See that device and backend exist and have what is set, and that the stages are in order."""
        Device.of(self.device)
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend {quoted(self.backend)} is unknown; there are {', '.join(BACKENDS)}")
        if self.memory_bytes is not None and self.backend != "sitk":
            raise ConfigError(
                f"memory_bytes is {self.memory_bytes}, the backend {self.backend!r}; only sitk keeps to a limit"
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
        if list(self.stages) != sorted(set(self.stages), key=STAGES.index):
            raise ConfigError(
                f"stages {list(self.stages)} are out of order or doubled; the order is {', '.join(STAGES)}"
            )
