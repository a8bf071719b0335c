"""Label crops turned into images, by the intensity laws of the modalities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric.bounds import Range
from dsir_metric.config import Settings
from dsir_metric.errors import ConfigError
from dsir_metric_train.views.appearance import Appearance, random_appearance, smooth_noise
from dsir_metric_train.views.placement import Affine, Placement, Views, Volume

__all__ = ["Made", "Paint", "paint_both"]


@dataclass(frozen=True)
class Paint(Settings):
    """How regions become intensities; each view draws a law of its own.

    Parameters
    ----------
    mr, ct, us : float
        Shares of the laws. mr: any mean for any region. ct: air, fat, soft tissues that hardly differ, bone. us:
        speckle, boundaries bright where they face the beam, attenuation with depth.
    texture : float
        Largest relative amplitude of a texture, drawn for each region and view.
    detail : float
        Largest amplitude of fine structure inside the regions that both views share, each with a sign of its own.
    alike : float
        Share of regions that look like another one.
    finer : int
        Labels are drawn and painted in voxels this many times smaller than those of a view, which are their means: a
        voxel on a boundary then tells, as in a scan, how much of it lies on either side. With 1 it lies on one side,
        and where the boundary is exactly nothing can tell.
    """

    mr: Annotated[float, Range(0, 1e6)] = 1.0
    ct: Annotated[float, Range(0, 1e6)] = 0.0
    us: Annotated[float, Range(0, 1e6)] = 0.0
    texture: Annotated[float, Range(0, 100)] = 0.15
    detail: Annotated[float, Range(0, 100)] = 0.0
    alike: Annotated[float, Range(0, 1)] = 0.1
    finer: Annotated[int, Range(1, 8)] = 1

    def check_together(self) -> None:
        """See that there is a law to draw."""
        if self.mr + self.ct + self.us <= 0:
            raise ConfigError("mr, ct and us are shares of the intensity laws: one at least must be positive")


class Made:
    """A source whose anatomy is made at random; only the crop and the warp of the placement play a part.

    Parameters
    ----------
    placement : Placement
    paint : Paint
    appearance : Appearance
    """

    def __init__(self, placement: Placement, paint: Paint, appearance: Appearance) -> None:
        self.placement, self.paint, self.appearance = placement, paint, appearance


def paint_both(
    rng: np.random.Generator,
    labels: tuple[NDArray[np.number], NDArray[np.number]],
    detail: tuple[Volume, Volume],
    paint: Paint,
    appearance: Appearance,
    warp: Affine,
) -> Views:
    """Views of two label crops; each region gets a mean and a texture of its own in each view.

    Parameters
    ----------
    rng : numpy.random.Generator
    labels : pair of ndarray of integers, shape (z, y, x)
        First and second crop; 0 is background. In voxels of the views or `Paint.finer` ones.
    detail : pair of ndarray, shape (z, y, x), in [-1, 1]
        One field on both crops, the fine structure inside the regions, in voxels of the views.
    paint : Paint
    appearance : Appearance
        What the scanner adds.
    warp : ndarray, shape (3, 4)
        As `Views`.
    """
    shares = np.array([paint.mr, paint.ct, paint.us])
    names, painted = list(_LAWS), []
    for crop, structure in zip(labels, detail, strict=True):
        law = _LAWS[names[int(rng.choice(3, p=shares / shares.sum()))]]
        image = law(rng, crop, structure, paint)
        painted.append(random_appearance(rng, np.clip(image, 0, 1), appearance, curve=False))
    return Views(painted[0], painted[1], _means(labels[0] > 0, detail[0].shape) >= 0.5, warp)


def _means(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Means of `values` over the voxels of `shape`, each of which has as many of them along each axis."""
    ratio = values.shape[0] // shape[0]
    if ratio == 1:
        return values
    blocks = values.reshape([k for n in shape for k in (n, ratio)])
    means: NDArray[Any] = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    return means


def _regions(
    rng: np.random.Generator,
    labels: NDArray[np.number],
    detail: Volume,
    paint: Paint,
    draw: Callable[[int], NDArray[np.floating]],
) -> Volume:
    """Means of `draw` for the regions, with their texture and detail, mixed at the boundaries (partial volume)."""
    values, inverse = np.unique(labels, return_inverse=True)
    count, inverse = values.size, inverse.reshape(labels.shape)
    mean = draw(count).astype(np.float32)
    same = rng.uniform(size=count) < paint.alike
    mean[same] = rng.choice(mean, int(same.sum()))
    if values[0] == 0 and rng.uniform() < 0.9:
        mean[0] = 0.0
    texture = rng.uniform(0, paint.texture, count).astype(np.float32)
    structure = (rng.uniform(-1, 1, count) * rng.uniform(0, paint.detail)).astype(np.float32)

    def painted(of_region: Volume) -> Volume:
        return _means(of_region[inverse], detail.shape)

    image = painted(mean) + painted(mean * texture) * smooth_noise(rng, detail.shape, int(rng.integers(6, 20)))
    if paint.detail:
        image = image + painted(structure * np.minimum(1, 4 * mean)) * detail
    mixed: Volume = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.8), truncate=2.5)
    return mixed


def _mr(rng: np.random.Generator, labels: NDArray[np.number], detail: Volume, paint: Paint) -> Volume:
    return _regions(rng, labels, detail, paint, lambda n: rng.uniform(0.05, 1, n))


def _ct(rng: np.random.Generator, labels: NDArray[np.number], detail: Volume, paint: Paint) -> Volume:
    """Air, fat, soft tissue and bone, for a random window; noise in small clumps."""
    soft, spread, fat = rng.uniform(0.2, 0.6), rng.uniform(0.02, 0.08), rng.uniform(0.05, 0.15)

    def means(count: int) -> NDArray[np.floating]:
        kind = rng.choice(4, count, p=[0.1, 0.2, 0.55, 0.15])
        drawn = [
            rng.uniform(0, 0.1, count),
            soft - fat + rng.normal(0, 0.02, count),
            soft + rng.normal(0, spread, count),
            rng.uniform(soft + 0.15, 1, count),
        ]
        return np.clip(np.choose(kind, drawn), 0, 1)

    image = _regions(rng, labels, 0.5 * detail, paint, means)
    clumps = ndimage.gaussian_filter(rng.standard_normal(detail.shape, np.float32), 0.7, truncate=2.5)
    noisy: Volume = image + np.float32(rng.uniform(0, 0.05)) * clumps
    return noisy


def _us(rng: np.random.Generator, labels: NDArray[np.number], detail: Volume, paint: Paint) -> Volume:
    """Echoes of scatterers and boundaries along a beam, attenuated with depth, compressed."""
    scatter = _regions(rng, labels, detail, paint, lambda n: rng.uniform(0.02, 0.6, n))
    beam = rng.standard_normal(3)
    beam /= np.linalg.norm(beam)
    facing = np.abs(sum(b * g for b, g in zip(beam, np.gradient(scatter), strict=True)))
    grain = [ndimage.gaussian_filter(rng.standard_normal(detail.shape, np.float32), 0.8) for _ in range(2)]
    speckle = np.hypot(*grain) / np.float32(np.hypot(*(g.std() for g in grain)))
    depth = np.tensordot(beam, np.indices(detail.shape, np.float32), 1) / detail.shape[0]
    strength = np.float32(rng.uniform(0.2, 0.8))
    echo = scatter * ((1 - strength) + strength * speckle) + rng.uniform(0, 3) * facing
    echo = echo * np.exp(-rng.uniform(0, 1.5) * depth)
    return np.asarray(np.clip(echo, 0, 1) ** rng.uniform(0.4, 0.9), np.float32)


_LAWS = {"mr": _mr, "ct": _ct, "us": _us}
