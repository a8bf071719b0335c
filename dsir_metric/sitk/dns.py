"""From what `Execute` was given to the DNS cosine metric of each level.

Descriptors know up from down. So where the transforms turn the fixed scan by more than a few degrees, the moving scan
is represented along axes that are turned with it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import DataError, ShapeError
from dsir_metric.geometry import Grid, angle_deg, rotation
from dsir_metric.io import check_image
from dsir_metric.metric import CosineMetric, Sampling
from dsir_metric.metric.transforms import point_map
from dsir_metric.represent.foreground import foreground
from dsir_metric.represent.pair import PairRepresenter
from dsir_metric.represent.representation import Representation
from dsir_metric.represent.representer import Representer
from dsir_metric.sitk.levels import Level, smoothed
from dsir_metric.sitk.settings import DNSCosine, Settings

__all__ = ["ComparedPair", "Picture", "compared_pair", "require_one_dimension"]

Picture = sitk.Image | Representation
Matrix = NDArray[np.float64]
_MOST_ASKEW_DEG = 5.0  # to which two scans may lie askew before one is represented again, as in `register`
_LATTICE = 5  # points along each axis that tell how a transform turns an image


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
    again : callable or None
        Represents the moving image along axes turned by a rotation (3, 3); None where it came represented.
    small_slopes : bool
        See `Problem`.
    """

    fixed: Representation
    moving: Representation
    fixed_grid: Grid
    moving_grid: Grid
    foreground: sitk.Image | None = None
    again: Callable[[Matrix], Representation] | None = None
    small_slopes: bool = True

    def facing(self, settings: Settings, maps: Sequence[Any]) -> ComparedPair:
        """The pair as it is best compared under `maps`, transforms in the order in which points pass through them.

        Where they turn the fixed image more than 5 degrees away from how the moving one is represented, that is
        represented again.
        """
        if self.again is None:
            return self
        turn = _turn(self.fixed_grid, settings.fixed_initial, maps)
        fixed, moving = (np.reshape(side.grid.direction, (3, 3)) for side in (self.fixed, self.moving))
        if turn is None or angle_deg(moving.T @ turn @ fixed) <= _MOST_ASKEW_DEG:
            return self
        return replace(self, moving=self.again(turn))

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


def compared_pair(fixed: Picture, moving: Picture, settings: Settings) -> ComparedPair:
    """Represent two scalar images as they lie under the initial transforms, or take two that are represented.

    Raises
    ------
    ShapeError
        If an image is neither 3-D nor 2-D, or one is represented and the other is not.
    DataError
        If the foreground of the fixed image is needed and there is none, or a representation is not finite.
    DsirError
        What `represent_pair` raises.
    """
    first, second = _representation_in(fixed, "fixed"), _representation_in(moving, "moving")
    if first is not None and second is not None:
        return ComparedPair(first, second, first.grid, second.grid)
    if isinstance(fixed, Representation) or isinstance(moving, Representation) or first is not second:
        which = "fixed" if second is None else "moving"
        raise ShapeError(f"only {which} is represented: give two scalar images, or two representations")
    choice = settings.metric or DNSCosine()
    fixed, moving = check_image(fixed, "fixed", plane=True), check_image(moving, "moving", plane=True)
    fixed_grid, moving_grid = Grid.of(fixed), Grid.of(moving)
    maps = [t for t in (settings.initial, settings.moving_initial) if t is not None]
    turn = _turn(fixed_grid, settings.fixed_initial, maps)
    if turn is not None and angle_deg(turn) <= _MOST_ASKEW_DEG:
        turn = None
    representer = _representer(choice.model, choice.device)
    make = PairRepresenter(representer, choice.spacing_mm, choice.fixed_intensity, choice.moving_intensity)
    first, second = make(fixed, moving, turn)
    needed = choice.foreground and settings.fixed_mask is None
    mask = foreground(fixed, first.grid, "fixed") if needed else None
    return ComparedPair(
        first, second, fixed_grid, moving_grid, mask, lambda turn: make.turned(moving, first.grid, turn)
    )


def _turn(grid: Grid, fixed_initial: Any, maps: Sequence[Any]) -> Matrix | None:
    """How `maps` turn the directions of the fixed image (3, 3), by an affine fit; None where they do not say."""
    axes = grid.dimension
    corners = [np.linspace(0, size - 1, _LATTICE if size > 1 else 1) for size in grid.size]
    start = grid.to_physical(np.stack(np.meshgrid(*corners), axis=-1).reshape(-1, 3))
    here = start if fixed_initial is None else point_map(fixed_initial, axes).map(start)
    there = start
    for transform in maps:
        there = point_map(transform, axes).map(there)
    if not np.isfinite([here, there]).all():
        return None
    fitted = np.linalg.lstsq((here - here.mean(axis=0))[:, :axes], (there - there.mean(axis=0))[:, :axes])[0].T
    if np.linalg.det(fitted) <= 0:
        return None
    turn = np.eye(3)
    turn[:axes, :axes] = rotation(fitted)
    return turn


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
        return _finite(picture, name)
    if picture.GetNumberOfComponentsPerPixel() == 1:
        return None
    return _finite(Representation.from_sitk(picture, name), name)


def _finite(representation: Representation, name: str) -> Representation:
    values = representation.values
    if not np.isfinite(values.sum(dtype=float)):  # far less memory than asking each number
        broken = np.count_nonzero(~np.isfinite(values).all(axis=-1))
        raise DataError(f"{name}: the descriptors of {broken} voxels are NaN or infinite; represent the scan again")
    return representation
