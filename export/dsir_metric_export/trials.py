"""Trials of a model without labels: scans it never saw, deformed and changed in appearance in known ways."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from dsir_metric_train.views import Appearance
from dsir_metric_train.views.appearance import random_appearance
from dsir_metric_train.views.placement import BACKGROUND, Volume
from numpy.typing import NDArray

from dsir_metric.errors import DataError, RegistrationError
from dsir_metric.evaluate import retrieval
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.io import read_image
from dsir_metric.phantom import smooth_transform
from dsir_metric.register import RegisterConfig, register
from dsir_metric.represent import Representer, represent_pair, resolve_intensity
from dsir_metric.represent.pair import resampled, working_grids

__all__ = ["MARGIN", "Figure", "Score", "Trial", "compare", "make_trial", "score"]

MARGIN = 0.02  # of a figure; a smaller change counts for nothing
MOST_VOXELS = 500_000  # a registration takes some seconds
CANDIDATES = 10_000
FEWEST_VOXELS = 1000
_DRAWN_FOR_MM = 200.0  # edge of the box whose smooth deformation has knots of 45 mm and moves 6 mm


@dataclass(frozen=True, eq=False)
class Trial:
    """Two appearances of one scan and what lies between them.

    Parameters
    ----------
    fixed, moving : sitk.Image
        float32 in [0, 1], isotropic, on one grid.
    mask : ndarray of bool, shape (z, y, x)
        The anatomy in `fixed`.
    truth : sitk.Transform
        Maps fixed to moving points, LPS mm.
    """

    fixed: sitk.Image
    moving: sitk.Image
    mask: NDArray[np.bool_]
    truth: sitk.Transform


@dataclass(frozen=True)
class Score:
    """How a model did in a trial.

    Parameters
    ----------
    retrieval : float
        Share of points whose true match is the nearest of up to 10,000 by their descriptors.
    error_mm : float
        Mean distance over the anatomy between where the registration and the truth send a point.
    """

    retrieval: float
    error_mm: float


@dataclass(frozen=True)
class Figure:
    """A figure before and after, over all trials.

    Parameters
    ----------
    before, after : float
        Means.
    gain : float
        Mean improvement, as a share of `before`; negative where it became worse.
    noise : float
        Two standard errors of `gain`.
    """

    before: float
    after: float
    gain: float
    noise: float

    @property
    def verdict(self) -> str:
        """One of better, worse and same; a change counts if it exceeds both the noise and 2 %."""
        if abs(self.gain) <= max(MARGIN, self.noise):
            return "same"
        return "better" if self.gain > 0 else "worse"


def make_trial(file: Path, appearance: Appearance, seed: Sequence[int]) -> Trial:
    """Deform a scan by a known smooth transform and show both in a random appearance each.

    The moving scan is the anatomy A(y) as it is, the fixed one A(truth(x)): nothing needs to be inverted.

    Parameters
    ----------
    file : Path
        A scan.
    appearance : Appearance
    seed : sequence of int

    Raises
    ------
    DataError, ShapeError, GeometryError
        If the file is none that `read_image` takes, or almost all background.
    """
    rng, image = np.random.default_rng(seed), read_image(file)
    scaled = resolve_intensity(sitk.GetArrayViewFromImage(image)).apply(sitk.GetArrayFromImage(image))
    whole = Grid.of(image)
    edge = float((np.prod(whole.extent_mm) / MOST_VOXELS) ** (1 / 3))
    grid, _ = working_grids(whole, whole, max(edge, float(np.prod(whole.spacing_mm) ** (1 / 3))))
    anatomy = resampled(whole.stamp(sitk.GetImageFromArray(scaled)), grid)
    truth = _deformation(grid, rng)
    deformed = sitk.Resample(anatomy, grid.image(), truth, sitk.sitkLinear, 0.0)
    inside = sitk.GetArrayFromImage(deformed) > BACKGROUND
    if inside.sum() < FEWEST_VOXELS:
        raise DataError(f"{file}: is almost all background; leave it out, or check its intensities")
    views = (_view(rng, sitk.GetArrayFromImage(a), appearance) for a in (deformed, anatomy))
    fixed, moving = (grid.stamp(sitk.GetImageFromArray(view)) for view in views)
    return Trial(fixed, moving, inside, truth)


def score(trial: Trial, representer: Representer, threads: int | None = None) -> Score:
    """Retrieval and registration of a trial by a model."""
    spacing = trial.fixed.GetSpacing()[0]
    rule = "window:0,1"
    pair = represent_pair(
        trial.fixed, trial.moving, representer, spacing_mm=spacing, fixed_intensity=rule, moving_intensity=rule
    )
    found = retrieval(*pair, trial.truth, trial.mask, candidates=min(CANDIDATES, int(trial.mask.sum()) // 2))
    transform: sitk.Transform = sitk.Transform()
    with suppress(RegistrationError):  # then it counts as if nothing had been done
        transform = register(trial.fixed, trial.moving, RegisterConfig(threads=threads), representations=pair).transform
    grid = Grid.of(trial.fixed)
    there, true = (DisplacementField.from_transform(t, grid).values for t in (transform, trial.truth))
    return Score(found.rate, float(np.linalg.norm(there - true, axis=-1)[trial.mask].mean()))


def compare(before: Sequence[float], after: Sequence[float], *, larger_is_better: bool) -> Figure:
    """The figures of the same trials, before and after, in short.

    Parameters
    ----------
    before, after : sequence of float
        One value a trial, at least two.
    larger_is_better : bool
    """
    old, new = np.mean(before), np.mean(after)
    gains = np.subtract(after, before) * (1 if larger_is_better else -1) / max(float(old), 1e-12)
    noise = 2 * np.std(gains, ddof=1) / np.sqrt(len(gains))
    return Figure(float(old), float(new), float(gains.mean()), float(noise))


def _deformation(grid: Grid, rng: np.random.Generator) -> sitk.CompositeTransform:
    """A smooth part of up to 6 mm, then turns of up to 5 degrees and shifts of up to 5 mm about and along each axis.

    The lengths are those of a scan of 200 mm; smaller ones move less.
    """
    scale = float(np.prod(grid.extent_mm) ** (1 / 3)) / _DRAWN_FOR_MM
    smooth = smooth_transform(grid, scale, 6.0 * scale, rng)
    angles, shift = rng.uniform(-1, 1, 3) * np.deg2rad(5.0), rng.uniform(-1, 1, 3) * 5.0 * scale
    rigid = sitk.Euler3DTransform(grid.centre_mm.tolist(), *angles.tolist(), shift.tolist())
    return sitk.CompositeTransform([rigid, smooth])


def _view(rng: np.random.Generator, anatomy: Volume, appearance: Appearance) -> Volume:
    """A random appearance; what is dark around the anatomy stays dark, as in any scan."""
    view: Volume = random_appearance(rng, anatomy, appearance) * np.clip(anatomy / BACKGROUND - 1, 0, 1)
    return view
