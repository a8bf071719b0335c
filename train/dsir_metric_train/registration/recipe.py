"""Everything that decides the training of a registration network, read from one TOML file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from dsir_metric.bounds import Length, Range
from dsir_metric.config import Settings
from dsir_metric.errors import ConfigError
from dsir_metric.torch.lapirn import LapIRN, LapIRNConfig, RegistrationNetwork
from dsir_metric.torch.voxelmorph import VoxelMorph, VoxelMorphConfig
from dsir_metric_train.recipe import Count, Rate, Seed, Steps, listed
from dsir_metric_train.views import Appearance, Paint

__all__ = ["Deformations", "RegistrationRecipe", "VolumeSource", "Volumes"]


Label = Annotated[int, Range(0, (1 << 32) - 1)]
VoxelSize = Annotated[float, Range(0.01, 1000)]  # mm
NotNegative = Annotated[float, Range(0, 1e6)]


@dataclass(frozen=True)
class VolumeSource(Settings):
    """One source of volumes to register with each other.

    Parameters
    ----------
    kind : str
        "scans", or "labels": label maps painted at random.
    files : tuple of str
        Glob patterns below the data folder.
    variants : int
        How often each file is used: represented at another voxel size (`Volumes.represented_mm`), and painted anew.
    intensity : str
        Intensity rule of scans: auto, mr, ct, ct:low,high.
    strip_above : int
        Labels from here on (skull, skin) are removed in every second variant; 0 keeps all.
    one_tissue : tuple of tuple of int
        Labels that are painted as the first of their group: those of the left and of the right side, for instance.
    origin, licence : str
        Recorded in the card of the network.
    """

    kind: Literal["scans", "labels"]
    files: Annotated[tuple[str, ...], Length(1, 1_000_000)]
    variants: Annotated[int, Range(1, 1000)] = 1
    intensity: str = "auto"
    strip_above: Label = 0
    one_tissue: Annotated[tuple[Annotated[tuple[Label, ...], Length(1, 1000)], ...], Length(0, 1000)] = ()
    origin: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Volumes(Settings):
    """How volumes are prepared.

    Parameters
    ----------
    model : str
        Name or file of the model that makes the representations.
    spacing_mm : float
        Edge of the voxels the network works at.
    represented_mm : tuple of float
        Edges of the voxels the representations are made at, taken in turn by the variants of a file; they are averaged
        to `spacing_mm`, as at run time. A user's scans come at any.
    reference : str
        File all others are brought to by an affine transform, and whose box they are cut to; the first by default.
    held_back : int
        One file in so many is kept for validation, at least one.
    """

    model: str = "default"
    spacing_mm: VoxelSize = 4.0
    represented_mm: Annotated[tuple[VoxelSize, ...], Length(1, 100)] = (2.0,)
    reference: str = ""
    held_back: Annotated[int, Range(2, 1_000_000)] = 8

    def check_together(self) -> None:
        """See that representations can be averaged to the voxels of the network."""
        if max(self.represented_mm) > self.spacing_mm:
            raise ConfigError(
                f"represented_mm must not be larger than spacing_mm ({self.spacing_mm:g}), got "
                f"{list(self.represented_mm)}"
            )


@dataclass(frozen=True)
class Deformations(Settings):
    """How the moving volume of a pair is deformed on top of what it differs anyway: by the flow of a random velocity.

    Descriptors are carried along, not turned: keep the affine part small.

    Parameters
    ----------
    smooth_mm : float
        Largest root mean square of the smooth part, mm.
    waves : int
        Half waves that fit the longest edge of the box, at most.
    linear : float
        Largest entry of the matrix of the linear part: 0.05 turns by 3 degrees, or scales by 5 %.
    shift_mm : float
        Largest shift along each axis, mm.
    """

    smooth_mm: Annotated[float, Range(0, 1000)] = 6.0
    waves: Annotated[int, Range(1, 100)] = 6
    linear: Annotated[float, Range(0, 1)] = 0.05
    shift_mm: Annotated[float, Range(0, 1000)] = 4.0


@dataclass(frozen=True)
class RegistrationRecipe(Settings):
    """A training of a registration network.

    Parameters
    ----------
    sources : tuple of VolumeSource
    name : str
        In the card, and of the file.
    base : str
        Hash of the weights the training begins with; random weights where it is empty.
    network : str
        "lapirn" or "voxelmorph".
    loss : str
        "dns" (negated cosine of the representations), "nmi" or "mind" (of the images). What the network is given are
        the representations in any case.
    smoothness : float
        Weight of the mean squared gradient of its output (no unit) against the loss.
    steps : tuple of int
        Optimiser steps of each level, coarse to fine, each at the resolution of that level but for the coarsest, which
        takes that of the second; a VoxelMorph has one.
    frozen : int
        First steps of a level that leave the coarser ones as they are.
    same : float
        Share of the pairs that are two variants of one file, in different contrast where they are painted.
    learning_rate : float
        Adam; 1e-4 as published.
    largest_gradient : float
        Gradients with a larger norm are scaled down to it.
    precision : str
        "single", or "mixed": the layers in bfloat16, the warps not, on GPUs and on CPUs with AVX-512.
    chunk : int
        Steps between checkpoints, the resume points, and validations.
    seed : int
        Of weights, paintings and pairs.
    volumes : Volumes
    deformations : Deformations
    lapirn : LapIRNConfig
    voxelmorph : VoxelMorphConfig
    paint : Paint
        Its `finer` plays no part: the label maps have the voxels of the views.
    appearance : Appearance
    """

    sources: Annotated[tuple[VolumeSource, ...], Length(1, 1000)]
    name: str = "lapirn"
    base: str = ""
    network: Literal["lapirn", "voxelmorph"] = "lapirn"
    loss: Literal["dns", "nmi", "mind"] = "dns"
    smoothness: NotNegative = 1.0
    steps: Annotated[tuple[Steps, ...], Length(1, 4)] = (1000, 1000, 1000)
    frozen: Annotated[int, Range(0, 1_000_000_000)] = 2000
    same: Annotated[float, Range(0, 1)] = 0.5
    learning_rate: Rate = 1e-4
    largest_gradient: Annotated[float, Range(0, 1e6, above=True)] = 1.0
    precision: Literal["single", "mixed"] = "single"
    chunk: Count = 100
    seed: Seed = 0
    volumes: Volumes = field(default_factory=Volumes)
    deformations: Deformations = field(default_factory=Deformations)
    lapirn: LapIRNConfig = field(default_factory=LapIRNConfig)
    voxelmorph: VoxelMorphConfig = field(default_factory=VoxelMorphConfig)
    paint: Paint = field(default_factory=Paint)
    appearance: Appearance = field(default_factory=Appearance)

    def check_together(self) -> None:
        """See that each level of the network has its steps."""
        levels = self.lapirn.levels if self.network == "lapirn" else 1
        if len(self.steps) != levels:
            raise ConfigError(f"steps must have {levels} entries for a {self.network}, got {list(self.steps)}")

    def level(self, step: int) -> int:
        """How many levels of the network are in use at a step."""
        done = 0
        for k, count in enumerate(self.steps):
            done += count
            if step < done:
                return k + 1
        return len(self.steps)

    def since(self, step: int) -> int:
        """Steps since the finest level in use was added."""
        return step - sum(self.steps[: self.level(step) - 1])

    def make_network(self, channels: int) -> RegistrationNetwork:
        """The network with random weights, for representations of so many channels."""
        if self.network == "lapirn":
            return LapIRN(replace(self.lapirn, channels=channels))
        return VoxelMorph(replace(self.voxelmorph, channels=channels))

    def manifest(self, root: Path) -> list[dict[str, str]]:
        """One line a file for the card: what was read, whence, under which licence."""
        return [line for s in self.sources for line in listed(root, s.files, s.origin, s.licence)]
