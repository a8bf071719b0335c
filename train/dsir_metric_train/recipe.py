"""Everything that decides a training run, read from one TOML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from dsir_metric.bounds import Length, Range
from dsir_metric.config import Settings
from dsir_metric.errors import ConfigError
from dsir_metric_train.model import ModelConfig
from dsir_metric_train.views import (
    Appearance,
    Bodies,
    LabelMaps,
    Paint,
    Pairs,
    Partner,
    Placement,
    Scans,
    Shapes,
    Source,
    find_images,
)
from dsir_metric_train.views.cache import Cache

__all__ = ["DataSource", "Optimisation", "Recipe", "listed"]


Count = Annotated[int, Range(1, 1_000_000)]
Steps = Annotated[int, Range(1, 1_000_000_000)]
Seed = Annotated[int, Range(0, (1 << 32) - 1)]  # what Lightning and NumPy take
Rate = Annotated[float, Range(0, 1, above=True)]
_MOST_SOURCES = 1000


@dataclass(frozen=True)
class DataSource(Settings):
    """One source of training views.

    Parameters
    ----------
    kind : str
        "scans" (one view and its intensity transformation), "pairs" (two scans that lie on each other), "labels" (label
        maps painted at random), "shapes" or "bodies" (made at random and painted likewise).
    files : tuple of str
        Glob patterns below the data folder; none for shapes and bodies.
    partners : tuple of str
        Of pairs: patterns of the other scans, as many as `files`; each belongs to the one in the same place, by name.
    outlines, partner_outlines : tuple of str
        Of pairs that lie apart: patterns of label files with an organ of each scan. The partner is laid over the scan
        by them, and what lies more than 5 mm beyond does not count.
    weight : float
        Share of the draws, relative to the other sources.
    intensity : str
        Intensity rule of scans and pairs: auto, mr, ct, ct:low,high.
    assume_spacing_mm : float
        Voxel size to believe instead of the header's; 0 believes the header.
    strip_above : int
        Labels from here on (skull, skin) are removed in half of the draws; 0 keeps all.
    origin, licence : str
        Recorded in the model card.
    """

    kind: Literal["scans", "pairs", "labels", "shapes", "bodies"]
    files: tuple[str, ...] = ()
    partners: tuple[str, ...] = ()
    outlines: tuple[str, ...] = ()
    partner_outlines: tuple[str, ...] = ()
    weight: Annotated[float, Range(0, 1e6, above=True)] = 1.0
    intensity: str = "auto"
    assume_spacing_mm: Annotated[float, Range(0, 1000)] = 0.0
    strip_above: Annotated[int, Range(0, (1 << 32) - 1)] = 0
    origin: str = ""
    licence: str = ""

    def check_together(self) -> None:
        """See that the source has the files that its kind needs, and no others."""
        if (self.kind in ("shapes", "bodies")) == bool(self.files):
            raise ConfigError(
                f"a source of kind {self.kind!r} with files {list(self.files)}: scans, pairs and labels need some"
            )
        if (self.kind == "pairs") != bool(self.partners):
            raise ConfigError(
                f"a source of kind {self.kind!r} with partners {list(self.partners)}: pairs alone need some"
            )
        if bool(self.outlines) != bool(self.partner_outlines) or (self.outlines and not self.partners):
            raise ConfigError("outlines and partner_outlines belong to pairs, and to each other: give both or neither")


@dataclass(frozen=True)
class Optimisation(Settings):
    """How the weights are found.

    Parameters
    ----------
    steps : int
        Optimiser steps.
    batch : int
        Pairs of views a step, whose gradients are averaged; 1 in the paper. Points are contrasted within a pair alone,
        so that processes may share a batch and nothing else changes.
    learning_rate : float
        Adam; 1e-4 in the paper.
    decay : bool
        Cosine decay to a hundredth of the learning rate; the paper keeps it fixed.
    points : int
        N^k, sampled foreground voxels; 8196 in the paper.
    temperature : float
        tau, 0.07 in the paper.
    symmetric : bool
        Contrast both ways; the paper goes from the image to the augmented image.
    both_views : bool
        Transform the first view too; the paper leaves it as it is.
    alignment : float
        Weight of `alignment_loss` beside the contrastive loss; the paper has none.
    calibration : int
        Pairs of views, none of those before, that decide at the end how the channels are mixed for a close comparison
        (`calibration`); 0 for not at all, as in the paper.
    precision : str
        "single", or "mixed": the two convolutions after the self-similarities, three quarters of the work, in
        bfloat16 on GPUs and on CPUs with AVX-512; others would be slower for it and stay in single precision. The
        self-similarities are differences of near values and always in single precision.
    chunk : int
        Steps between checkpoints; the resume points of a run.
    seed : int
        Fixes weights, views and sampled points.
    """

    steps: Steps = 20000
    batch: Annotated[int, Range(1, 10_000)] = 1
    learning_rate: Rate = 1e-4
    decay: bool = False
    points: Count = 8196
    temperature: Annotated[float, Range(1e-4, 1000)] = 0.07
    symmetric: bool = False
    both_views: bool = False
    alignment: Annotated[float, Range(0, 1e6)] = 0.0
    calibration: Annotated[int, Range(0, 1_000_000)] = 0
    precision: Literal["single", "mixed"] = "single"
    chunk: Count = 100
    seed: Seed = 0


@dataclass(frozen=True)
class Recipe(Settings):
    """A training run: data, views, network, optimisation.

    `base` is the hash of the weights the run begins with; random weights where it is empty.
    """

    sources: Annotated[tuple[DataSource, ...], Length(1, _MOST_SOURCES)]
    name: str = "masrnet"
    base: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    placement: Placement = field(default_factory=Placement)
    paint: Paint = field(default_factory=Paint)
    appearance: Appearance = field(default_factory=Appearance)
    optimisation: Optimisation = field(default_factory=Optimisation)

    def check_together(self) -> None:
        """See that the crops fit the network and what is to be seen in them."""
        thickest, half = self.appearance.slices_vox, self.placement.crop / 2
        if thickest > half:
            raise ConfigError(f"slices_vox is {thickest:g}; at most half a crop, {half:g}, can be seen")
        if self.placement.crop < 16 or self.placement.crop % self.model.multiple:
            raise ConfigError(
                f"crop is {self.placement.crop}; a multiple of {self.model.multiple}, at least 16, is needed"
            )

    def open_sources(self, root: Path) -> Sequence[Source]:
        """Every source, with its files below `root`; scans are read when they are drawn, and share one cache."""
        cache = Cache()
        return [self._open(source, root, cache) for source in self.sources]

    def _open(self, source: DataSource, root: Path, cache: Cache) -> Source:
        if source.kind in ("shapes", "bodies"):
            made = Shapes if source.kind == "shapes" else Bodies
            return made(self.placement, self.paint, self.appearance)
        files = find_images(root, source.files)
        if source.kind == "labels":
            return LabelMaps(files, self.placement, self.paint, self.appearance, source.strip_above)
        if source.kind == "pairs":
            return Pairs(
                files,
                _partners(root, source, len(files)),
                self.placement,
                self.appearance,
                source.intensity,
                source.assume_spacing_mm,
                cache,
            )
        both = self.optimisation.both_views
        return Scans(files, self.placement, self.appearance, both, source.intensity, source.assume_spacing_mm, cache)

    def shares(self) -> NDArray[np.float64]:
        """Probability of each source."""
        weights = np.array([s.weight for s in self.sources])
        shares: NDArray[np.float64] = weights / weights.sum()
        return shares

    def manifest(self, root: Path) -> list[dict[str, str]]:
        """One line a file for the model card: what was read, whence, under which licence."""
        lines: list[dict[str, str]] = []
        for s in self.sources:
            made = [{"file": f"synthetic {s.kind}", "source": s.origin, "licence": s.licence}]
            patterns = (*s.files, *s.partners, *s.outlines, *s.partner_outlines)
            lines += listed(root, patterns, s.origin, s.licence) if patterns else made
        return [line for k, line in enumerate(lines) if line not in lines[:k]]  # a scan may be in two sources


def _partners(root: Path, source: DataSource, count: int) -> list[Partner]:
    """What belongs to each of the `count` scans of a source of pairs, in their order."""

    def matched(name: str, patterns: tuple[str, ...]) -> list[Path]:
        found = find_images(root, patterns)
        if len(found) != count:
            raise ConfigError(
                f"pairs: {count} files, but {len(found)} {name} match {', '.join(patterns)}; one for each is needed"
            )
        return found

    scans = matched("partners", source.partners)
    if not source.outlines:
        return [Partner(scan) for scan in scans]
    outlines = [matched(n, getattr(source, n)) for n in ("outlines", "partner_outlines")]
    return [Partner(scan, (here, there)) for scan, here, there in zip(scans, *outlines, strict=True)]


def listed(root: Path, files: Sequence[str], origin: str, licence: str) -> list[dict[str, str]]:
    """The files below `root` that match the patterns `files`, for a card."""
    names = [file.relative_to(root).as_posix() for file in find_images(root, files)]
    return [{"file": name, "source": origin, "licence": licence} for name in names]
