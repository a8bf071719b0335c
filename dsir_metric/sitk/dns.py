"""From what `Execute` was given to the DNS cosine metric of each level."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import lru_cache

import SimpleITK as sitk

from dsir_metric.errors import DataError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.metric import CosineMetric, Sampling
from dsir_metric.represent.foreground import foreground
from dsir_metric.represent.pair import represent_pair
from dsir_metric.represent.representation import Representation
from dsir_metric.represent.representer import Representer
from dsir_metric.sitk.levels import Level, smoothed
from dsir_metric.sitk.settings import DNSCosine, Settings

__all__ = ["ComparedPair", "Picture", "compared_pair"]

Picture = sitk.Image | Representation
_STRATEGIES = {
    sitk.ImageRegistrationMethod.NONE: "none",
    sitk.ImageRegistrationMethod.REGULAR: "regular",
    sitk.ImageRegistrationMethod.RANDOM: "random",
}


@dataclass(frozen=True)
class ComparedPair:
    """Two representations, and the grids of the images they were made from.

    Parameters
    ----------
    fixed, moving : Representation
    fixed_grid, moving_grid : Grid
        The virtual domain comes from the first, index shifts from the second, as they would for the images.
    foreground : sitk.Image or None
        Mask of the fixed image for when none is set.
    """

    fixed: Representation
    moving: Representation
    fixed_grid: Grid
    moving_grid: Grid
    foreground: sitk.Image | None = None

    def metric(self, settings: Settings, level: Level, moving_initial: sitk.Transform | None) -> CosineMetric:
        """The metric of a level."""
        seed = level.sampling_seed
        return CosineMetric(
            smoothed(self.fixed, level),
            smoothed(self.moving, level),
            virtual=level.virtual,
            fixed_mask=self.foreground if settings.fixed_mask is None else settings.fixed_mask,
            moving_mask=settings.moving_mask,
            sampling=Sampling(
                _STRATEGIES[level.sampling_strategy],  # type: ignore[arg-type]
                level.sampling_percentage,
                (secrets.randbits(31) if seed == sitk.sitkWallClock else seed) + level.index,
            ),
            fixed_initial=settings.fixed_initial,
            moving_initial=moving_initial,
        )


def compared_pair(fixed: Picture, moving: Picture, choice: DNSCosine) -> ComparedPair:
    """Represent two scalar images, or take two that are represented.

    Raises
    ------
    DataError
        If something else came.
    ShapeError
        If an image is not 3-D, or one is represented and the other is not.
    DsirError
        What `represent_pair` raises.
    """
    first, second = _representation_in(fixed), _representation_in(moving)
    if first is not None and second is not None:
        return ComparedPair(first, second, first.grid, second.grid)
    if isinstance(fixed, Representation) or isinstance(moving, Representation) or first is not second:
        which = "fixed" if second is None else "moving"
        raise ShapeError(f"only {which} is represented: give two scalar images, or two representations")
    fixed_grid, moving_grid = Grid.of(fixed), Grid.of(moving)
    first, second = represent_pair(
        fixed,
        moving,
        _representer(choice.model, choice.device),
        spacing_mm=choice.spacing_mm,
        fixed_intensity=choice.fixed_intensity,
        moving_intensity=choice.moving_intensity,
    )
    mask = foreground(fixed, first.grid) if choice.foreground else None
    return ComparedPair(first, second, fixed_grid, moving_grid, mask)


@lru_cache(maxsize=1)
def _representer(model: str, device: str) -> Representer:
    return Representer(model, device)


def _representation_in(picture: Picture) -> Representation | None:
    if isinstance(picture, Representation):
        return picture
    if not isinstance(picture, sitk.Image):
        raise DataError(f"a {type(picture).__name__} came; a sitk.Image or a Representation is expected")
    return Representation.from_sitk(picture) if picture.GetNumberOfComponentsPerPixel() > 1 else None
