"""A head that never was: two scans of different modality with a deformation known exactly.

The moving scan shows the anatomy A(y) and the fixed one A(phi(x)), both evaluated at their own voxel centres: phi maps
fixed to moving points, with nothing inverted and nothing resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric.errors import ConfigError
from dsir_metric.geometry import DisplacementField, Grid

__all__ = ["LABELS", "Contrast", "PhantomPair", "make_pair", "smooth_transform"]

Contrast = Literal["t1", "t2", "flair", "ct"]
Triple = tuple[float, float, float]
Floats = NDArray[np.float32]

LABELS = {"scalp": 1, "skull": 2, "fluid": 3, "grey": 4, "white": 5, "ventricle": 6, "deep grey": 7, "lesion": 8}

_BRIGHTNESS: dict[str, tuple[float, ...]] = {  # air, then as LABELS; CT in HU
    "t1": (0, 900, 90, 200, 520, 760, 200, 600, 400),
    "t2": (0, 420, 80, 1000, 640, 450, 1000, 500, 900),
    "flair": (0, 450, 80, 90, 640, 480, 90, 560, 980),
    "ct": (-1000, 20, 1000, 6, 38, 27, 6, 36, 18),
}
_FIELD_OF_VIEW_MM = 200.0  # the anatomy below is drawn for a box of this size and scaled with the real one
_KNOTS_MM = 45.0


@dataclass(frozen=True)
class _Part:
    """An ellipsoid, mm; `fold_mm` is the depth of its gyri."""

    name: str
    centre: Triple
    radii: Triple
    fold_mm: float = 0.0


_PARTS = (  # painted in this order, LPS around the middle of the head
    _Part("scalp", (0, 0, 0), (68, 82, 76)),
    _Part("skull", (0, 0, 1), (60, 74, 68)),
    _Part("fluid", (0, 0, 2), (52, 66, 60)),
    _Part("grey", (0, 0, 2), (48, 62, 56), 2.5),
    _Part("white", (0, 0, 3), (37, 50, 44), 7.0),
    _Part("grey", (0, 34, -30), (32, 20, 18), 1.5),
    _Part("white", (0, 34, -30), (23, 12, 10), 2.0),
    _Part("ventricle", (12, -4, 14), (7, 25, 11)),
    _Part("ventricle", (-12, -2, 14), (8, 24, 10)),
    _Part("deep grey", (12, 4, -5), (8, 13, 8)),
    _Part("deep grey", (-12, 4, -5), (8, 13, 8)),
    _Part("deep grey", (26, -8, -1), (6, 15, 9)),
    _Part("deep grey", (-26, -8, -1), (6, 15, 9)),
    _Part("lesion", (-24, 20, 20), (8, 9, 7)),
)


@dataclass(frozen=True, eq=False)
class PhantomPair:
    """Two scans of one head and what a registration should find.

    Parameters
    ----------
    fixed, moving : sitk.Image
        float32.
    fixed_labels, moving_labels : sitk.Image
        uint8; the values of `LABELS`, 0 is air.
    truth : sitk.CompositeTransform
        phi: maps fixed to moving points, exactly; a B-spline, then a rigid transform.
    """

    fixed: sitk.Image
    moving: sitk.Image
    fixed_labels: sitk.Image
    moving_labels: sitk.Image
    truth: sitk.CompositeTransform

    def error_mm(self, transform: sitk.Transform) -> float:
        """Mean distance, over the voxels of the fixed head, between where `transform` and the truth send a point."""
        grid = Grid.of(self.fixed)
        found, true = (DisplacementField.from_transform(t, grid).values for t in (transform, self.truth))
        head = sitk.GetArrayViewFromImage(self.fixed_labels) > 0
        return float(np.linalg.norm(found - true, axis=-1)[head].mean())


def make_pair(
    size: int | Sequence[int] = 72,
    spacing_mm: float | Sequence[float] = 2.5,
    contrast: tuple[Contrast, Contrast] = ("t1", "flair"),
    *,
    direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
    moving_grid: Grid | None = None,
    rotation_deg: Triple = (4.0, -3.0, 5.0),
    translation_mm: Triple = (5.0, -4.0, 3.0),
    amplitude_mm: float = 6.0,
    seed: int = 0,
) -> PhantomPair:
    """Make a fixed and a moving scan of one head.

    Parameters
    ----------
    size : int or sequence of int
        Voxels of the fixed scan along x, y, z. The head is as large as its shortest side allows.
    spacing_mm : float or sequence of float
        Voxel spacing of the fixed scan.
    contrast : tuple of {"t1", "t2", "flair", "ct"}
        What the fixed and the moving scan look like. CT is in HU.
    direction : tuple of float
        Row-major direction matrix of the fixed scan, which is centred on the LPS origin.
    moving_grid : Grid, optional
        Grid of the moving scan; by default that of the fixed one.
    rotation_deg, translation_mm : tuple of float
        Rigid part of the truth: Euler angles about x, y, z and a shift, LPS.
    amplitude_mm : float
        Largest displacement of the smooth part of the truth.
    seed : int
        Draws deformation, texture, bias and noise.

    Returns
    -------
    PhantomPair

    Raises
    ------
    ConfigError
        If a contrast is unknown, or `amplitude_mm` is so large that the truth folds.
    """
    unknown = [c for c in contrast if c not in _BRIGHTNESS]
    if unknown:
        raise ConfigError(f"the phantom knows the contrasts {', '.join(_BRIGHTNESS)}; {unknown[0]!r} came")
    grid = _centred_grid(size, spacing_mm, direction)
    scale = float(grid.extent_mm.min()) / _FIELD_OF_VIEW_MM
    rng = np.random.default_rng(seed)
    smooth = smooth_transform(grid, scale, amplitude_mm, rng)
    angles = np.deg2rad(rotation_deg)
    rigid = sitk.Euler3DTransform((0.0, 0.0, 0.0), *map(float, angles), tuple(map(float, translation_mm)))
    truth = sitk.CompositeTransform([rigid, smooth])  # the last one comes first
    mapped = grid.points_mm() + DisplacementField.from_transform(truth, grid).values
    other = moving_grid or grid
    fixed, fixed_labels = _scan(grid, mapped, scale, contrast[0], rng)
    moving, moving_labels = _scan(other, other.points_mm(), scale, contrast[1], rng)
    return PhantomPair(fixed, moving, fixed_labels, moving_labels, truth)


def _centred_grid(size: int | Sequence[int], spacing_mm: float | Sequence[float], direction: tuple[float, ...]) -> Grid:
    sizes, spacings = (np.broadcast_to(n, 3) if np.ndim(n) == 0 else np.asarray(n) for n in (size, spacing_mm))
    grid = Grid(tuple(sizes.tolist()), tuple(spacings.tolist()), direction=direction)
    return replace(grid, origin_mm=tuple((-grid.centre_mm).tolist()))


def smooth_transform(grid: Grid, scale: float, amplitude_mm: float, rng: np.random.Generator) -> sitk.BSplineTransform:
    """A random smooth deformation without folds: a cubic B-spline with knots 45 mm x `scale` apart.

    Its domain reaches far beyond the grid, since outside of it ITK moves nothing. `amplitude_mm` is the length of its
    largest displacement on the grid.

    Raises
    ------
    ConfigError
        If that amplitude folds.
    """
    coarse = grid.resampled(8.0 * scale)
    extent = 2 * grid.extent_mm
    spline = sitk.BSplineTransform(3, 3)
    spline.SetTransformDomainDirection(grid.direction)
    spline.SetTransformDomainOrigin(grid.centre_mm - np.reshape(grid.direction, (3, 3)) @ extent / 2)
    spline.SetTransformDomainPhysicalDimensions(extent)
    mesh = np.ceil(extent / (_KNOTS_MM * scale)).astype(int)
    spline.SetTransformDomainMeshSize(mesh.tolist())
    coefficients = rng.standard_normal(spline.GetNumberOfParameters())
    spline.SetParameters(coefficients)
    largest = DisplacementField.from_transform(spline, coarse).length_mm().max()
    spline.SetParameters(coefficients * (amplitude_mm / largest))
    if DisplacementField.from_transform(spline, coarse).jacobian_determinant().min() < 0.1:
        raise ConfigError(f"an amplitude of {amplitude_mm} mm folds a head of this size; choose a smaller one")
    return spline


def _scan(
    grid: Grid, points_mm: NDArray[np.float64], scale: float, contrast: Contrast, rng: np.random.Generator
) -> tuple[sitk.Image, sitk.Image]:
    """Image and labels of the anatomy seen at `points_mm` (z, y, x, 3)."""
    points = (points_mm / scale).astype(np.float32)
    softness = float(np.mean(grid.spacing_mm)) / scale  # partial volume: an edge is one voxel wide
    brightness = _BRIGHTNESS[contrast]
    values = np.full(grid.shape, brightness[0], np.float32)
    labels = np.zeros(grid.shape, np.uint8)
    for part in _PARTS:
        depth = _depth(part, points)
        share = np.clip(0.5 + depth / softness, 0.0, 1.0)
        values += share * (brightness[LABELS[part.name]] - values)
        labels[depth > 0] = LABELS[part.name]
    inside = labels > 0
    values[inside] += _texture(points, rng)[inside] * (1.5 if contrast == "ct" else 25.0)
    values += rng.normal(0.0, 2.0 if contrast == "ct" else 10.0, grid.shape).astype(np.float32)
    if contrast != "ct":
        ramp = (grid.points_mm() / scale / _FIELD_OF_VIEW_MM) @ rng.normal(0.0, 0.2, 3)
        values = np.abs(values) * np.exp(ramp)
    image = grid.stamp(sitk.GetImageFromArray(values.astype(np.float32)))
    return image, grid.stamp(sitk.GetImageFromArray(labels))


def _depth(part: _Part, points: Floats) -> Floats:
    """About how many mm a point lies below the surface of a part; negative outside."""
    centre, radii = np.asarray(part.centre, np.float32), np.asarray(part.radii, np.float32)
    distance = np.sqrt(np.square((points - centre) / radii).sum(axis=-1))
    depth: Floats = (1.0 - distance) * float(np.mean(part.radii))
    if part.fold_mm:
        x, y, z = np.moveaxis(points / 5.0, -1, 0)
        depth += part.fold_mm * (np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x))
    return depth


def _texture(points: Floats, rng: np.random.Generator) -> Floats:
    """Smooth noise with about unit standard deviation, tied to the anatomy, new for each scan."""
    lattice = rng.standard_normal((48, 48, 48)).astype(np.float32)
    index = np.moveaxis(points / 5.0, -1, 0)
    noise: Floats = ndimage.map_coordinates(lattice, index, order=1, mode="grid-wrap", output=np.float32)
    return 2.0 * noise
