"""Two scans, represented so that their descriptors can be compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from dsir_metric.errors import ConfigError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.io import check_image
from dsir_metric.represent.cache import Cache
from dsir_metric.represent.intensity import resolve_intensity
from dsir_metric.represent.orientation import canonical_grid
from dsir_metric.represent.representation import Representation
from dsir_metric.represent.representer import Representer
from dsir_metric.represent.tiling import Box

__all__ = [
    "MOST_VOXELS",
    "PairRepresenter",
    "finer_spacing",
    "parallel",
    "represent_finer",
    "represent_pair",
    "represent_turned",
    "resampled",
    "resampled_scan",
    "shared_spacing",
    "turned_grid",
    "working_grids",
]

Points = NDArray[np.float64]

MOST_VOXELS = 16_000_000  # where the spacing is chosen
_MOST_FINER = 8_000_000  # in smaller voxels: larger scans show what there is to see, and would cost most
_REACH_MM = 12.0  # of a last lattice
_LEAST_FINER = 0.9  # smaller voxels than this share of the others, or it is not worth while
_LIMIT_VOXELS = 8 * MOST_VOXELS  # where it is given: 12 GB a representation of 24 channels
_SLAB = 50  # about as many slices stand for a 2-D image, so that it may have as many voxels less
# A Gaussian whose full width at half maximum turns a voxel of one size into a voxel of another.
_SIGMA_PER_WIDTH = 1 / np.sqrt(8 * np.log(2))
_STEPS_PER_OCTAVE = 4  # of the spacings that images of a study share: a pair's own is met within 9 %
_PATIENT_AXES = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class PairRepresenter:
    """How the scans of a registration are represented: the settings of `represent_pair`.

    Parameters
    ----------
    representer : Representer
    spacing_mm, fixed_intensity, moving_intensity, shared, cache
        See `represent_pair`.
    remark : str
        What is to be said about these settings beside the result; empty for nothing.
    """

    representer: Representer
    spacing_mm: float | None = None
    fixed_intensity: str = "auto"
    moving_intensity: str = "auto"
    shared: bool = False
    cache: Cache | None = None
    remark: str = ""

    def __call__(
        self, fixed: sitk.Image, moving: sitk.Image, rotation: NDArray[np.float64] | None = None
    ) -> tuple[Representation, Representation]:
        """Both scans, see `represent_pair`."""
        return represent_pair(
            fixed,
            moving,
            self.representer,
            spacing_mm=self.spacing_mm,
            fixed_intensity=self.fixed_intensity,
            moving_intensity=self.moving_intensity,
            shared=self.shared,
            cache=self.cache,
            rotation=rotation,
        )

    def turned(self, moving: sitk.Image, fixed: Grid, rotation: NDArray[np.float64], held: int = 0) -> Representation:
        """The moving scan along turned axes, see `represent_turned`; it suits this pair alone, so no cache has it."""
        return represent_turned(moving, fixed, rotation, self.representer, self.moving_intensity, held=held)

    def along(
        self, image: sitk.Image, grid: Grid, frame: Grid, side: Literal["fixed", "moving"], held: int = 0
    ) -> Representation:
        """The fixed or the moving scan on `grid`, shown to the network as if its axes were those of `frame`."""
        rule = self.fixed_intensity if side == "fixed" else self.moving_intensity
        return _represent_along(image, grid, frame, self.representer, rule, held)

    def finer(
        self,
        fixed: sitk.Image,
        moving: sitk.Image,
        working: tuple[Grid, Grid],
        spacing_mm: float,
        places_mm: tuple[Points, Points],
        held: int = 0,
        *,
        mixed: bool = False,
    ) -> tuple[Representation, Representation]:
        """Both scans in smaller voxels, see `represent_finer`; they suit this pair alone, so no cache has them."""
        rules = (self.fixed_intensity, self.moving_intensity)
        return represent_finer(
            fixed, moving, working, spacing_mm, places_mm, self.representer, rules, held=held, mixed=mixed
        )


def represent_pair(
    fixed: sitk.Image,
    moving: sitk.Image,
    representer: Representer,
    *,
    spacing_mm: float | None = None,
    fixed_intensity: str = "auto",
    moving_intensity: str = "auto",
    shared: bool = False,
    cache: Cache | None = None,
    rotation: NDArray[np.float64] | None = None,
) -> tuple[Representation, Representation]:
    """Represent two scans at one isotropic spacing and along the same axes.

    A descriptor depends on the size of a voxel and on the direction of its axes, so both scans are brought to the same
    ones first: each is resampled once (after a Gaussian where its voxels become larger, linearly, edge values repeated
    outside so that no false edge appears) and represented once.

    Parameters
    ----------
    fixed, moving : sitk.Image
        Scalar scans, both 3-D or both 2-D.
    representer : Representer
    spacing_mm : float or None
        Edge of the voxels, mm. None: see `working_grids`.
    fixed_intensity, moving_intensity : str
        See `resolve_intensity`; taken from the scan as it came, before it is resampled.
    shared : bool
        Choose grids that suit other pairs of the same scans too, see `working_grids`.
    cache : Cache, optional
        Where representations made before are found, and new ones kept, in half precision.
    rotation : ndarray, shape (3, 3), optional
        How the anatomy of the moving scan is known to be turned against that of the fixed one: the moving scan is
        represented by `represent_turned`.

    Returns
    -------
    tuple of Representation
        Of fixed and of moving, on the grids of `working_grids`, but for a moving scan that is turned.

    Raises
    ------
    ConfigError
        If `spacing_mm` is out of range, see `working_grids`, or an intensity rule is unknown.
    ShapeError
        If one scan is 2-D and the other 3-D.
    DsirError
        What `Representer` raises.

    References
    ----------
    Cardoso et al., Scale factor point spread function matching, MICCAI 2015, for the Gaussian.
    """
    fixed, moving = check_image(fixed, "fixed", plane=True), check_image(moving, "moving", plane=True)
    if fixed.GetDimension() != moving.GetDimension():
        raise ShapeError(
            f"fixed is {fixed.GetDimension()}-D and moving {moving.GetDimension()}-D: both must be the same"
        )
    fixed_grid, moving_grid = working_grids(Grid.of(fixed), Grid.of(moving), spacing_mm, shared=shared)
    first = _represent(fixed, fixed_grid, representer, fixed_intensity, cache)
    held = first.values.nbytes
    if rotation is not None:
        return first, represent_turned(moving, fixed_grid, rotation, representer, moving_intensity, held=held)
    return first, _represent(moving, moving_grid, representer, moving_intensity, cache, held=held)


def working_grids(
    fixed: Grid, moving: Grid, spacing_mm: float | None = None, *, shared: bool = False
) -> tuple[Grid, Grid]:
    """Grids on which two scans are represented.

    Both have the fixed scan's axes, turned to lie nearest to L, P, S. The first covers the fixed scan's box, the second
    the moving scan's, whatever its own axes.

    With `shared` the grid of a scan does not depend on its partner, but for the spacing, and that is one of few: the
    axes are L, P and S themselves, and a chosen spacing is the nearest of 1, 1.19, 1.41, 1.68, 2, ... mm, of which each
    is the fourth root of 2 larger than the one before. So a scan in many pairs is represented once.

    Parameters
    ----------
    fixed, moving : Grid
    spacing_mm : float or None
        Edge of the voxels, mm. None: the edge of a cube (a square) as large as a voxel of the coarser scan, or larger
        where a grid would have more than 16 million voxels (320,000 pixels).
    shared : bool

    Raises
    ------
    ConfigError
        If `spacing_mm` is not positive, or leaves a scan a single slice, or more voxels than memory holds.
    """
    if spacing_mm is not None and not 0 < spacing_mm < np.inf:
        raise ConfigError(f"spacing_mm is {spacing_mm}; give a positive number of mm, or none to have it chosen")
    axes, share = (3, 1) if fixed.dimension == 3 else (2, _SLAB)
    first = _bounding_box(fixed, _PATIENT_AXES) if shared else canonical_grid(fixed)
    second = _bounding_box(moving, first.direction)
    spacing = spacing_mm or max(
        _cube_edge(fixed.spacing_mm[:axes], 1),
        _cube_edge(moving.spacing_mm[:axes], 1),
        _cube_edge(first.extent_mm[:axes], MOST_VOXELS // share),
        _cube_edge(second.extent_mm[:axes], MOST_VOXELS // share),
    )
    if shared and spacing_mm is None:
        spacing = shared_spacing(spacing)
    grids = first.resampled(spacing), second.resampled(spacing)
    for name, grid in zip(("fixed", "moving"), grids, strict=True):
        size, limit = grid.size[:axes], _LIMIT_VOXELS // share
        if min(size) < 2 or np.prod(size, dtype=float) > limit:
            raise ConfigError(
                f"voxels of {spacing:g} mm make the {name} scan {size} voxels; choose a spacing_mm that leaves "
                f"2 or more along each axis and {limit / 1e6:g} million or fewer in all"
            )
    return grids


def shared_spacing(spacing_mm: float, larger: int = 0) -> float:
    """The nearest of the voxel sizes that a study shares, or one that is `larger` steps above it."""
    return float(2 ** ((np.rint(_STEPS_PER_OCTAVE * np.log2(spacing_mm)) + larger) / _STEPS_PER_OCTAVE))


def _cube_edge(edges_mm: ArrayLike, count: int) -> float:
    """Edge of the cubes (squares), mm, when a box of these edges is cut into `count` of them."""
    edges = np.asarray(edges_mm, float)
    return float((np.prod(edges) / count) ** (1 / len(edges)))


def _bounding_box(grid: Grid, direction: tuple[float, ...]) -> Grid:
    """The smallest box along `direction` around the box of `grid`, as one voxel."""
    rotation = np.reshape(direction, (3, 3))
    corners = [[x, y, z] for x in (0, grid.size[0]) for y in (0, grid.size[1]) for z in (0, grid.size[2])]
    along = grid.to_physical(np.array(corners) - 0.5) @ rotation
    low, high = along.min(axis=0), along.max(axis=0)
    extent, centre = high - low, rotation @ ((low + high) / 2)
    return Grid(
        (1, 1, 1),
        (float(extent[0]), float(extent[1]), float(extent[2])),
        (float(centre[0]), float(centre[1]), float(centre[2])),
        direction,
        grid.dimension,
    )


def turned_grid(moving: Grid, fixed: Grid, rotation: NDArray[np.float64]) -> Grid:
    """Grid of `represent_turned`."""
    turned = tuple((rotation @ np.reshape(fixed.direction, (3, 3))).ravel().tolist())
    return _bounding_box(moving, turned).resampled(fixed.spacing_mm[0])


def represent_turned(
    moving: sitk.Image,
    fixed: Grid,
    rotation: NDArray[np.float64],
    representer: Representer,
    intensity: str = "auto",
    *,
    held: int = 0,
) -> Representation:
    """Represent the moving scan along axes that are turned as the anatomy is.

    Descriptors are not indifferent to rotation: what lies 10 degrees askew is described differently. So once it is
    known how the fixed anatomy lies in the moving scan, the moving scan is shown to the network as it would lie in the
    fixed one.

    Parameters
    ----------
    moving : sitk.Image
        Scalar 3-D or 2-D scan, float.
    fixed : Grid
        Of the fixed representation.
    rotation : ndarray, shape (3, 3)
        Of directions of the fixed scan to those of the moving scan, LPS.
    representer : Representer
    intensity : str
        Its intensity rule.
    held : int
        See `Representer.__call__`.

    Returns
    -------
    Representation
        Over the box of the scan, on voxels of the size of those of `fixed`, whose axes are those of `fixed` turned.

    Raises
    ------
    ConfigError
        If the intensity rule is unknown.
    DsirError
        What `Representer` raises.
    """
    return _represent_along(moving, turned_grid(Grid.of(moving), fixed, rotation), fixed, representer, intensity, held)


def finer_spacing(working: tuple[Grid, Grid], share: float) -> float | None:
    """Edge, mm, of the voxels of `represent_finer`: `share` times that of the working grids.

    Larger where a grid would have more than 8 million voxels; None where that leaves next to no difference.
    """
    wanted = max(share * working[0].spacing_mm[0], *(_cube_edge(grid.extent_mm, _MOST_FINER) for grid in working))
    return wanted if wanted <= _LEAST_FINER * working[0].spacing_mm[0] else None


def represent_finer(
    fixed: sitk.Image,
    moving: sitk.Image,
    working: tuple[Grid, Grid],
    spacing_mm: float,
    places_mm: tuple[Points, Points],
    representer: Representer,
    intensities: tuple[str, str] = ("auto", "auto"),
    *,
    held: int = 0,
    mixed: bool = False,
) -> tuple[Representation, Representation]:
    """Represent two scans in voxels smaller than they have, for a last look at what is nearly aligned.

    In smaller voxels the network looks at smaller surroundings: descriptors say less about where in the body a point
    lies and more about where exactly. That is seen where they are read in between on the moving side. On the fixed side
    the points of `working` are as good as more of them, and cost less.

    Both sides go through the same steps: described in smaller voxels, mixed, read between them. If one skipped a step,
    scans that agree perfectly would seem to agree better a little apart.

    Parameters
    ----------
    fixed, moving : sitk.Image
        Scalar 3-D scans, float.
    working : tuple of Grid
        Of both representations; that of the moving one may be turned, see `represent_turned`.
    spacing_mm : float
        See `finer_spacing`.
    places_mm : tuple of ndarray, shape (n, 3)
        Points of the fixed scan that will be compared, and about where they lie in the moving one, LPS mm. The network
        sees all of both scans; descriptors are made in boxes around these.
    representer : Representer
    intensities : tuple of str
        Intensity rules of both.
    held : int
        See `Representer.__call__`.
    mixed : bool
        Whether to mix the channels, see `Representation.mixed`.

    Returns
    -------
    tuple of Representation
        Of fixed, on its working grid, right at the points, and of moving, in the smaller voxels and up to 12 mm from
        them. Both of unit length.

    Raises
    ------
    DsirError
        What `Representer` raises.
    """
    grids = working[0].resampled(spacing_mm), working[1].resampled(spacing_mm)
    boxes = _around(places_mm[0], grids[0], spacing_mm), _around(places_mm[1], grids[1], _REACH_MM)
    first = _represent_along(fixed, grids[0], working[0], representer, intensities[0], held, boxes[0])
    first = first.mixed() if mixed else first
    first = first.resampled(working[0], extend=True).unit()
    held += first.values.nbytes
    second = _represent_along(moving, grids[1], working[0], representer, intensities[1], held, boxes[1])
    return first, second.mixed() if mixed else second


def _around(points_mm: Points, grid: Grid, margin_mm: float) -> Box:
    """The voxels of `grid` in a box around points, widened by a margin."""
    index, margin = grid.to_index(points_mm), margin_mm / grid.spacing_mm[0]
    last = np.array(grid.size) - 1
    low = np.clip(np.floor(index.min(axis=0) - margin), 0, last).astype(int)
    high = np.clip(np.ceil(index.max(axis=0) + margin), 0, last).astype(int)
    x, y, z = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
    return z, y, x


def _represent_along(
    image: sitk.Image,
    grid: Grid,
    frame: Grid,
    representer: Representer,
    intensity: str,
    held: int,
    crop: Box | None = None,
) -> Representation:
    """A scan on `grid`, or a crop of it, shown to the network as if its axes were those of `frame`."""
    rule = representer.rule(sitk.GetArrayViewFromImage(image), intensity)
    straight = replace(grid, direction=frame.direction)
    found = representer(straight.stamp(resampled(image, grid)), rule, held=held, crop=crop)
    return replace(found, grid=grid if crop is None else grid.cropped(crop))


def _represent(
    image: sitk.Image, grid: Grid, representer: Representer, intensity: str, cache: Cache | None, held: int = 0
) -> Representation:
    rule = representer.rule(sitk.GetArrayViewFromImage(image), intensity)
    if cache is None:
        return representer(resampled(image, grid), rule, held=held)
    key = cache.key(image, grid, representer.model_hash, rule)
    found = cache.get(key, grid, lambda: representer(resampled(image, grid), rule, held=held))
    return replace(found, mixture=representer.mixture)


def resampled_scan(image: sitk.Image, grid: Grid, intensity: str = "auto") -> Representation:
    """A scan on `grid` under an intensity rule, in [0, 1]: a representation of one channel that is the scan itself."""
    rule = resolve_intensity(sitk.GetArrayViewFromImage(image), intensity)
    values = rule.apply(sitk.GetArrayFromImage(resampled(image, grid)))
    return Representation(values[..., None], grid)


def resampled(image: sitk.Image, grid: Grid) -> sitk.Image:
    """`image` on `grid`: after a Gaussian along the axes whose voxels become larger, edge values outside.

    Linear; cubic, within the range of the image, where the axes are turned: there a linear one would blur all over.
    """
    old = Grid.of(image)
    width = np.sqrt(np.maximum(grid.spacing_mm[0] ** 2 - np.square(old.spacing_mm), 0))
    sigma = (width * _SIGMA_PER_WIDTH / old.spacing_mm)[: old.dimension]
    smooth = ndimage.gaussian_filter(sitk.GetArrayViewFromImage(image), sigma[::-1], mode="nearest")
    low, high = float(smooth.min()), float(smooth.max())
    blurred = old.stamp(sitk.GetImageFromArray(smooth))
    del smooth  # not beside the coefficients of the splines
    resample = sitk.ResampleImageFilter()
    resample.SetReferenceImage(grid.image())
    resample.UseNearestNeighborExtrapolatorOn()
    turned = not parallel(old, grid)
    resample.SetInterpolator(sitk.sitkBSpline if turned else sitk.sitkLinear)
    out: sitk.Image = resample.Execute(blurred)
    return sitk.Clamp(out, out.GetPixelID(), low, high) if turned else out


def parallel(one: Grid, other: Grid) -> bool:
    """Whether the axes of two grids are the same, in any order and sense."""
    cosines = np.abs(np.reshape(one.direction, (3, 3)).T @ np.reshape(other.direction, (3, 3)))
    return bool(np.allclose(cosines, np.round(cosines), atol=1e-3))
