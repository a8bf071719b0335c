"""Everything that decides the training of a registration network, read from one TOML file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from dsir_metric.errors import ConfigError
from dsir_metric.torch.lapirn import LapIRN, LapIRNConfig, RegistrationNetwork
from dsir_metric.torch.voxelmorph import VoxelMorph, VoxelMorphConfig
from dsir_metric_train.recipe import listed
from dsir_metric_train.views import Appearance, Paint

__all__ = ["Deformations", "RegistrationRecipe", "VolumeSource", "Volumes"]


@dataclass(frozen=True)
class VolumeSource:
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
    files: tuple[str, ...]
    variants: int = 1
    intensity: str = "auto"
    strip_above: int = 0
    one_tissue: tuple[tuple[int, ...], ...] = ()
    origin: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if not self.files or self.variants < 1:
            raise ConfigError(f"a source needs files and 1 or more variants; {list(self.files)}, {self.variants} came")


@dataclass(frozen=True)
class Volumes:
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
    spacing_mm: float = 4.0
    represented_mm: tuple[float, ...] = (2.0,)
    reference: str = ""
    held_back: int = 8

    def __post_init__(self) -> None:
        if not self.spacing_mm > 0 or not self.represented_mm or not 0 < max(self.represented_mm) <= self.spacing_mm:
            raise ConfigError(
                f"represented_mm is {list(self.represented_mm)}, spacing_mm {self.spacing_mm}; all are positive, and "
                "none of the former is larger than the latter"
            )
        if min(self.represented_mm) <= 0 or self.held_back < 2:
            raise ConfigError("represented_mm is positive, held_back 2 or more")


@dataclass(frozen=True)
class Deformations:
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

    smooth_mm: float = 6.0
    waves: int = 6
    linear: float = 0.05
    shift_mm: float = 4.0

    def __post_init__(self) -> None:
        if min(self.smooth_mm, self.linear, self.shift_mm) < 0 or self.waves < 1:
            raise ConfigError("smooth_mm, linear and shift_mm are not negative, waves is positive")


@dataclass(frozen=True)
class RegistrationRecipe:
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

    sources: tuple[VolumeSource, ...]
    name: str = "lapirn"
    base: str = ""
    network: Literal["lapirn", "voxelmorph"] = "lapirn"
    loss: Literal["dns", "nmi", "mind"] = "dns"
    smoothness: float = 1.0
    steps: tuple[int, ...] = (1000, 1000, 1000)
    frozen: int = 2000
    same: float = 0.5
    learning_rate: float = 1e-4
    largest_gradient: float = 1.0
    precision: Literal["single", "mixed"] = "single"
    chunk: int = 100
    seed: int = 0
    volumes: Volumes = field(default_factory=Volumes)
    deformations: Deformations = field(default_factory=Deformations)
    lapirn: LapIRNConfig = field(default_factory=LapIRNConfig)
    voxelmorph: VoxelMorphConfig = field(default_factory=VoxelMorphConfig)
    paint: Paint = field(default_factory=Paint)
    appearance: Appearance = field(default_factory=Appearance)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("a recipe needs at least one [[sources]] table")
        levels = self.lapirn.levels if self.network == "lapirn" else 1
        if len(self.steps) != levels or min(self.steps) < 1:
            raise ConfigError(f"steps is {list(self.steps)}; a {self.network} of {levels} levels needs so many numbers")
        if self.chunk < 1 or not self.learning_rate > 0 or not self.largest_gradient > 0:
            raise ConfigError("chunk, learning_rate and largest_gradient are positive")
        if self.frozen < 0 or not self.smoothness >= 0 or not 0 <= self.same <= 1:
            raise ConfigError("frozen and smoothness are not negative, same is a share, from 0 to 1")
        if not 0 <= self.seed < 1 << 32:
            raise ConfigError(f"seed is a whole number from 0 to {(1 << 32) - 1}; {self.seed} came")

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
