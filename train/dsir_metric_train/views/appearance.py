"""Random changes of appearance: what may differ between two scans of one anatomy."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from scipy import ndimage

from dsir_metric_train.views.placement import Volume

__all__ = ["Appearance", "bezier_curve", "random_appearance", "smooth_noise"]


@dataclass(frozen=True)
class Appearance:
    """How strongly `random_appearance` changes a view. The paper uses the curve and the inversion alone.

    Parameters
    ----------
    invert : float
        Probability delta of equation 3 that the intensity is inverted.
    control_points : int
        n + 1 control points of the Bezier curve, uniform in [0, 1] (equation 2; the paper's n is 3).
    bias : float
        Largest amplitude (log units) of a smooth multiplicative field.
    noise : float
        Largest standard deviation of Gaussian noise, in units of the intensity range.
    blur_vox : float
        Largest standard deviation of a Gaussian blur, in voxels.
    """

    invert: float = 0.5
    control_points: int = 4
    bias: float = 0.0
    noise: float = 0.0
    blur_vox: float = 0.0


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
    coarse = rng.uniform(-1, 1, (cells,) * 3).astype(np.float32)
    grid = np.meshgrid(*[np.linspace(0, cells - 1, n, dtype=np.float32) for n in shape], indexing="ij")
    field: Volume = ndimage.map_coordinates(coarse, grid, order=1, mode="nearest")
    return field


def random_appearance(rng: np.random.Generator, image: Volume, rule: Appearance, *, curve: bool = True) -> Volume:
    """One view of `image`: curve and inversion inside the foreground range, then bias, blur and noise.

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
    if rule.bias:
        out = out * np.exp(rng.uniform(0, rule.bias) * smooth_noise(rng, image.shape, int(rng.integers(2, 5))))
    if rule.blur_vox:
        sigma = rng.uniform(0, rule.blur_vox)
        out = ndimage.gaussian_filter(out, sigma, truncate=2.5) if sigma > 0.3 else out
    if rule.noise:
        out = out + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, rule.noise))
    return np.clip(out, 0, 1).astype(np.float32)
