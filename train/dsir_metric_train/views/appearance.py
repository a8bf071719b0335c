"""Random changes of appearance: what may differ between two scans of one anatomy."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric.bounds import Range
from dsir_metric.config import Settings
from dsir_metric_train.views.placement import Volume

__all__ = ["Appearance", "bezier_curve", "random_appearance", "smooth_noise"]


Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Appearance(Settings):
    """How strongly `random_appearance` changes a view. The paper uses the curve and the inversion alone.

    Parameters
    ----------
    invert : float
        Probability delta of equation 3 that the intensity is inverted.
    control_points : int
        n + 1 control points of the Bezier curve, uniform in [0, 1] (equation 2; the paper's n is 3).
    gamma : float
        Largest size of the logarithm of an exponent on the intensity.
    bias : float
        Largest amplitude (log units) of a smooth multiplicative field.
    noise : float
        Largest standard deviation of noise, in units of the intensity range; Rician in half of the views.
    blur_vox : float
        Largest standard deviation of a Gaussian blur, in voxels.
    slices_vox : float
        Thickest slices along one axis, in voxels.
    ghosting : float
        Largest share of a displaced copy (periodic motion along one axis).
    artefacts : float
        Share of the views that get thick slices, and of those that get ghosts.
    """

    invert: Share = 0.5
    control_points: Annotated[int, Range(2, 64)] = 4
    gamma: Annotated[float, Range(0, 10)] = 0.0
    bias: Annotated[float, Range(0, 10)] = 0.0
    noise: Annotated[float, Range(0, 100)] = 0.0
    blur_vox: Annotated[float, Range(0, 100)] = 0.0
    slices_vox: Annotated[float, Range(0, 1000)] = 0.0
    ghosting: Annotated[float, Range(0, 10)] = 0.0
    artefacts: Share = 0.25


def bezier_curve(rng: np.random.Generator, control_points: int = 4, samples: int = 256) -> tuple[Volume, Volume]:
    """A random monotone curve on [0, 1]: abscissae and ordinates, both increasing from 0 to 1 (equation 2).

    The inner control points are uniform in the unit square; sorting both coordinates makes the curve monotone.
    """
    inner = np.sort(rng.uniform(0, 1, (control_points - 2, 2)), axis=0)
    points = np.concatenate([[[0.0, 0.0]], inner, [[1.0, 1.0]]])
    n, t = control_points - 1, np.linspace(0, 1, samples)
    bernstein = np.stack([comb(n, i) * t**i * (1 - t) ** (n - i) for i in range(n + 1)], axis=1)
    x, y = (bernstein @ points).T.astype(np.float32)
    return x, y


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Volume:
    """A smooth random field in [-1, 1] on `shape` (z, y, x), drawn on `cells` nodes an axis."""
    field: Volume = rng.uniform(-1, 1, (cells,) * 3).astype(np.float32)
    for n in shape:  # linear along one axis after the other; the axes come round in order
        weights = _hat(np.linspace(0, cells - 1, n), np.arange(cells), 1.0)
        field = np.tensordot(field, weights, axes=(0, 1))
    return field


def random_appearance(rng: np.random.Generator, image: Volume, rule: Appearance, *, curve: bool = True) -> Volume:
    """One view of `image`: curve and inversion, then what a scanner adds.

    Parameters
    ----------
    rng : numpy.random.Generator
    image : ndarray, shape (z, y, x), intensities in [0, 1]
    rule : Appearance
    curve : bool
        Whether to apply the Bezier curve and the inversion.

    Returns
    -------
    ndarray of float32, shape (z, y, x), clipped to [0, 1].
    """
    out = image
    if curve:
        source = 1 - image if rng.uniform() <= rule.invert else image
        out = np.interp(source, *bezier_curve(rng, rule.control_points)).astype(np.float32)
    if rule.gamma:
        out = np.clip(out, 0, 1) ** np.float32(np.exp(rng.uniform(-rule.gamma, rule.gamma)))
    if rule.bias:
        out = out * np.exp(rng.uniform(0, rule.bias) * smooth_noise(rng, image.shape, int(rng.integers(2, 5))))
    if rule.blur_vox:
        sigma = rng.uniform(0, rule.blur_vox)
        out = ndimage.gaussian_filter(out, sigma, truncate=2.5) if sigma > 0.3 else out
    if rule.slices_vox and rng.uniform() < rule.artefacts:
        out = _thick_slices(rng, out, rng.uniform(1.5, max(1.5, rule.slices_vox)))
    if rule.ghosting and rng.uniform() < rule.artefacts:
        out = _ghosts(rng, out, rng.uniform(0, rule.ghosting))
    if rule.noise:
        out = _noisy(rng, out, rng.uniform(0, rule.noise))
    return np.clip(out, 0, 1).astype(np.float32)


def _hat(at: NDArray[np.number], nodes: NDArray[np.number], spacing: float) -> Volume:
    """Weights, (at, nodes), of linear interpolation between evenly spaced nodes; the end nodes reach outwards."""
    at = np.clip(at, nodes[0], nodes[-1])
    weights: Volume = np.maximum(0, 1 - np.abs(at[:, None] - nodes[None]) / spacing).astype(np.float32)
    return weights


def _thick_slices(rng: np.random.Generator, image: Volume, thickness: float) -> Volume:
    """`image` seen through slices `thickness` voxels apart and thick along one axis, and interpolated back."""
    axis = int(rng.integers(3))
    voxels = np.arange(image.shape[axis])
    slices = np.arange(rng.uniform(0, thickness), voxels[-1] + 0.5, thickness)
    profile = np.exp(-0.5 * ((slices[:, None] - voxels) / (thickness / 2.355)) ** 2)
    seen = _hat(voxels, slices, thickness) @ (profile / profile.sum(axis=1, keepdims=True)).astype(np.float32)
    out: Volume = np.moveaxis(np.tensordot(seen, image, axes=(1, axis)), 0, axis)
    return out


def _ghosts(rng: np.random.Generator, image: Volume, share: float) -> Volume:
    """Displaced copies on both sides along one axis, as periodic motion leaves them."""
    axis = int(rng.integers(3))
    step = int(rng.integers(image.shape[axis] // 6, image.shape[axis] // 2))
    copies = np.roll(image, step, axis) + np.roll(image, -step, axis)
    return ((1 - share) * image + 0.5 * share * copies).astype(np.float32)


def _noisy(rng: np.random.Generator, image: Volume, deviation: float) -> Volume:
    scale = np.float32(deviation)
    out: Volume = image + rng.standard_normal(image.shape, np.float32) * scale
    if rng.uniform() < 0.5:  # magnitude of a complex signal
        out = np.hypot(out, rng.standard_normal(image.shape, np.float32) * scale)
    return out
