"""Label crops turned into images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric_train.views.appearance import Appearance, random_appearance, smooth_noise
from dsir_metric_train.views.placement import Affine, Views, Volume

__all__ = ["paint_both"]


def paint_both(
    rng: np.random.Generator,
    first: NDArray[np.number],
    second: NDArray[np.number],
    appearance: Appearance,
    warp: Affine,
) -> Views:
    """Views of two label crops; each region gets a mean and a texture of its own in each view."""
    return Views(_paint(rng, first, appearance), _paint(rng, second, appearance), first > 0, warp)


def _paint(rng: np.random.Generator, labels: NDArray[np.number], appearance: Appearance) -> Volume:
    values, inverse = np.unique(labels, return_inverse=True)
    mean = rng.uniform(0.05, 1, values.size).astype(np.float32)
    same = rng.uniform(size=values.size) < 0.1  # now and then two tissues look alike
    mean[same] = rng.choice(mean, int(same.sum()))
    if values[0] == 0 and rng.uniform() < 0.9:
        mean[0] = 0.0
    image = mean[inverse].reshape(labels.shape)
    texture = smooth_noise(rng, labels.shape, int(rng.integers(6, 20)))
    image = image * (1 + np.float32(rng.uniform(0, 0.15)) * texture)
    image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.8), truncate=2.5)  # partial volume
    return random_appearance(rng, image, appearance, curve=False)
