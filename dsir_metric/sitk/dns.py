"""From what `Execute` was given to the DNS cosine metric of each level."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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

__all__ = ["ComparedPair", "Picture", "compared_pair", "require_one_dimension"]

Picture = sitk.Image | Representation


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
    small_slopes : bool
        See `Problem`.
    """

    fixed: Representation
    moving: Representation
    fixed_grid: Grid
    moving_grid: Grid
    foreground: sitk.Image | None = None
    small_slopes: bool = True

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
                level.sampling_strategy,
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
    ShapeError
        If an image is neither 3-D nor 2-D, or one is represented and the other is not.
    DsirError
        What `represent_pair` raises.
    """
    first, second = _representation_in(fixed, "fixed"), _representation_in(moving, "moving")
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


def require_one_dimension(settings: Settings, fixed: Picture, moving: Picture) -> None:
    """Check that images, masks, virtual domain and transforms are all 3-D, or all 2-D.

    Raises
    ------
    DataError
        If an image is none.
    ShapeError
        If a dimension differs from that of the fixed image, or is neither.
    """
    expected = _dimension(fixed, "fixed")
    others = {"moving": _dimension(moving, "moving")}
    things: dict[str, Any] = {
        "the fixed mask": settings.fixed_mask,
        "the moving mask": settings.moving_mask,
        "the virtual domain": settings.virtual_domain,
        "the initial transform": settings.initial,
        "the fixed initial transform": settings.fixed_initial,
        "the moving initial transform": settings.moving_initial,
    }
    others |= {name: thing.GetDimension() for name, thing in things.items() if thing is not None}
    for name, dimension in others.items():
        if dimension != expected:
            raise ShapeError(f"fixed is {expected}-D and {name} {dimension}-D: give all in one dimension")


def _dimension(picture: Picture, name: str) -> int:
    if isinstance(picture, Representation):
        return picture.grid.dimension
    if not isinstance(picture, sitk.Image):
        raise DataError(f"{name}: a {type(picture).__name__} came; a sitk.Image or a Representation is expected")
    dimension = int(picture.GetDimension())
    if dimension not in (2, 3):
        raise ShapeError(f"{name} is {dimension}-D: a 3-D or 2-D image is expected; pick one with image[..., 0]")
    return dimension


@lru_cache(maxsize=1)
def _representer(model: str, device: str) -> Representer:
    return Representer(model, device)


def _representation_in(picture: Picture, name: str) -> Representation | None:
    if isinstance(picture, Representation):
        return picture
    if picture.GetNumberOfComponentsPerPixel() == 1:
        return None
    if picture.GetPixelID() not in (sitk.sitkVectorFloat32, sitk.sitkVectorFloat64):
        raise ShapeError(
            f"{name} has voxels of type {picture.GetPixelIDTypeAsString()}: a scalar image is expected, or one of "
            "float descriptors; pick a channel with sitk.VectorIndexSelectionCast"
        )
    return Representation.from_sitk(picture)
