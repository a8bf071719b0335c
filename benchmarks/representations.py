"""Representations by name, for benchmarks: models of this project, MIND-SSC, and raw intensity patches.

All of them go the same way: same grids, same intensity rules, same cosine. Only the descriptor differs.

MIND was published with the sum of squared differences of its 12 values; the solver here takes the cosine. Four ways to
bring them together were tried on the tuning tasks: the values as they are ("mind", 0.139 of the error left with weights
to suit), less their mean at each voxel ("mind-centred", 0.136), less their mean over the volume (0.141, coarser grid),
and lifted to cos and sin of pi/2 times the value, so that the cosine falls as the squared difference grows (0.142). The
first two are kept: on other tasks now the one, now the other is better.

"mind-mixed" asks what mixing the channels, as the card of a model has it, would be worth to MIND. It has no training to
say how; so each scan's mean is taken away, and C and G (`dsir_metric_train.calibration`) are those of the pair itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.geometry import Grid
from dsir_metric.represent import IntensityRule, PairRepresenter, Representation, Representer, resolve_intensity
from dsir_metric.represent.foreground import foreground
from dsir_metric.represent.tiling import Box

Values = NDArray[np.float32]
Describe = Callable[[Values], Values]


def mind_ssc(volume: Values, radius: int = 1, dilation: int = 2) -> Values:
    """Self-similarity context of a volume: `dsir_metric.torch.mind.mind_ssc` for arrays.

    Parameters
    ----------
    volume : ndarray of float32, shape (z, y, x)
        Intensities; a linear change of them changes nothing.
    radius : int
        Of the box over which squared differences are averaged, voxels.
    dilation : int
        Distance of the six neighbours, voxels.

    Returns
    -------
    ndarray of float32, shape (z, y, x, 12)
        In [0, 1]; 1 for the most similar pair.
    """
    import torch  # here, for a model of this project does without

    from dsir_metric.torch import mind

    with torch.inference_mode():
        found = mind.mind_ssc(torch.tensor(volume)[None, None], radius, dilation)
    return np.ascontiguousarray(found[0].movedim(0, -1).numpy())


def mind_centred(volume: Values) -> Values:
    """`mind_ssc` less the mean of its 12 values at each voxel, unit length; zero where all are equal."""
    return _standing_out(mind_ssc(volume))


def patches(volume: Values) -> Values:
    """The 27 intensities of each 3^3 neighbourhood less their mean, unit length; zero where all are equal."""
    steps = product((-1, 0, 1), repeat=3)
    return _standing_out(np.stack([_shifted(volume, step) for step in steps], axis=-1))


def _standing_out(values: Values) -> Values:
    values = values - values.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.where(length > 1e-6, values / np.maximum(length, 1e-6), np.float32(0))


def represent(
    name: str, fixed: sitk.Image, moving: sitk.Image, spacing_mm: float | None = None, threads: int | None = 1
) -> tuple[Representation, Representation]:
    """Both scans under the representation `name`, on the grids of `represent_pair`.

    Parameters
    ----------
    name : str
        What `representer` takes, or "mind-mixed".
    fixed, moving : sitk.Image
        Scalar 3-D scans.
    spacing_mm, threads
        See `representer`.
    """
    if name == "mind-mixed":
        return _mixed((fixed, moving), represent("mind", fixed, moving, spacing_mm, threads))
    return representer(name, spacing_mm, threads)(fixed, moving)


def representer(name: str, spacing_mm: float | None = None, threads: int | None = 1) -> PairRepresenter:
    """What `register` asks for the representation `name` whenever it needs one, in smaller voxels too.

    Parameters
    ----------
    name : str
        "mind", "mind-centred", "patch", or what `Representer` takes: a shipped model or the path of an ONNX model.
    spacing_mm : float or None
        Edge of the voxels, mm; chosen from the scans by default.
    threads : int or None
        CPU threads of a model.
    """
    make = HANDMADE.get(name)
    return PairRepresenter(Representer(name, threads=threads) if make is None else make, spacing_mm)


def _mixed(
    scans: tuple[sitk.Image, sitk.Image], pair: tuple[Representation, Representation]
) -> tuple[Representation, Representation]:
    """Both sides less their mean, channels mixed so that inner products are a^T C^-1 G C^-1 b, unit length."""
    spread, change = np.zeros((2, pair[0].channels, pair[0].channels))
    means: list[NDArray[np.float64]] = []
    for scan, side in zip(scans, pair, strict=True):
        inside = sitk.GetArrayFromImage(foreground(scan, side.grid, "scan")) != 0  # no view: it would outlive the image
        values = side.values[inside].astype(float)
        means.append(values.mean(axis=0))
        spread += (values - means[-1]).T @ (values - means[-1])
        for axis in range(3):
            steps = np.diff(side.values, axis=axis)
            steps = steps[np.take(inside, range(steps.shape[axis]), axis=axis)].astype(float)
            change += steps.T @ steps
    import torch  # see `mind_ssc`
    from dsir_metric_train.calibration import mixture_for

    mixture = mixture_for(torch.from_numpy(spread), torch.from_numpy(change)).float().numpy()
    first, second = (
        replace(side, values=side.values - np.float32(mean), mixture=mixture).mixed()
        for side, mean in zip(pair, means, strict=True)
    )
    return first, second


@dataclass(frozen=True)
class Describer:
    """What `register` asks of a `Representer`, with any function from a volume to descriptors.

    Parameters
    ----------
    name : str
    describe : callable
        From intensities in [0, 1], (z, y, x) float32, to descriptors (z, y, x, channels).
    """

    name: str
    describe: Describe
    channels: ClassVar[int] = 0  # memory is told from these two, and is not limited here
    mixture: ClassVar[None] = None
    obstacle: ClassVar[str] = ""  # nothing keeps it from the device

    @property
    def card(self) -> Describer:
        """All that is asked of a card is here."""
        return self

    def rule(self, values: Values, intensity: str = "auto") -> IntensityRule:
        """The intensity rule that the models use too."""
        return resolve_intensity(values, intensity)

    def least_bytes(self, grid: Grid, held: int) -> int:
        """Only what else is held: no memory is limited here."""
        del grid
        return held

    def __call__(
        self, image: sitk.Image, rule: IntensityRule, *, held: int = 0, crop: Box | None = None
    ) -> Representation:
        """Describe a scan on its own grid, or a crop of it."""
        del held
        values, grid = self.describe(rule.apply(sitk.GetArrayViewFromImage(image))), Grid.of(image)
        if crop is not None:
            values, grid = values[crop], grid.cropped(crop)
        return Representation(np.ascontiguousarray(values, np.float32), grid, {"model": self.name})


def _shifted(volume: Values, step: tuple[int, ...]) -> Values:
    """What lies `step` voxels (z, y, x) from each voxel, edge values repeated outside."""
    index = [np.clip(np.arange(n) + s, 0, n - 1) for n, s in zip(volume.shape, step, strict=True)]
    return volume[np.ix_(*index)]


HANDMADE = {
    d.name: d
    for d in (Describer("mind", mind_ssc), Describer("mind-centred", mind_centred), Describer("patch", patches))
}
