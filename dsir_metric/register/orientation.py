"""A search over all orientations and places, for scans that the usual search does not bring together.

Descriptors are not indifferent to rotation, so the moving scan is represented again, in coarse voxels, for every
orientation that is tried. Along axes turned like that the voxels of both scans lie on one lattice: a product of Fourier
transforms compares them at all shifts at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import fft
from scipy.spatial.transform import Rotation

from dsir_metric.errors import RegistrationError
from dsir_metric.geometry import Grid, angle_deg, rotation
from dsir_metric.register.chance import margin
from dsir_metric.register.linear import affine_matrix, as_rigid, fit
from dsir_metric.register.pair import Level
from dsir_metric.register.problem import Problem
from dsir_metric.register.state import Matrix, Points, mapped
from dsir_metric.represent import PairRepresenter, Representation
from dsir_metric.represent.pair import resampled

__all__ = ["ELSEWHERE_DEG", "LARGEST", "apart_deg", "coarse_bytes", "first_lead", "oriented"]

# Voxels along the edge of a cube as large as the smaller body, for the search and for the first look: 7 and 11 mm in a
# head.
_ACROSS, _ACROSS_FIRST = 22.0, 14.0
_MOST_VOXELS = 20_000  # of the box around either body
_LEAST_COARSER = 1.5  # than the working voxels: small scans must not cost more than large ones
_MARGIN_VOX = 2.0  # of that box: the outline is looked at from outside as well
_LEAST_OVERLAP = 0.25  # of the smaller body
_CANDIDATES, _FINALISTS, _TURNS = 6, 3, 4
_POINTS, _ITERATIONS = 3000, 40
_SETTLED_DEG = 2.0
ELSEWHERE_DEG = 40.0  # descriptors of one anatomy hardly agree when it is turned further
_TURNED_BOX = 3**1.5  # the box around a turned box has at most this many times its volume
LARGEST = Grid((int((_TURNED_BOX * _MOST_VOXELS) ** (1 / 3)) + 1,) * 3)  # as many voxels as are represented at once


@dataclass(frozen=True, eq=False)
class _Coarse:
    """The fixed scan in coarse voxels, and what is needed to represent the moving one like it.

    Parameters
    ----------
    fixed : Representation
    mask : sitk.Image
        Where the fixed scan counts, on the grid of `fixed`.
    moving : sitk.Image
    body : sitk.Image
        Foreground of the moving scan.
    body_mm : ndarray, shape (n, 3)
        Its voxels.
    make : PairRepresenter
    pivot_mm : ndarray, shape (3,)
        Where rotations turn.
    seed : int
    """

    fixed: Representation
    mask: sitk.Image
    moving: sitk.Image
    body: sitk.Image
    body_mm: Points
    make: PairRepresenter
    pivot_mm: Points
    seed: int

    def along(self, turn: Matrix) -> tuple[Representation, NDArray[np.bool_]]:
        """The moving scan along axes turned by `turn`, (3, 3), and its body there."""
        frame = self.fixed.grid
        grid = _box(self.body_mm, turn @ np.reshape(frame.direction, (3, 3)), frame.spacing_mm[0])
        body = sitk.Resample(self.body, grid.image(), sitk.Transform(), sitk.sitkNearestNeighbor)
        return self.make.along(self.moving, grid, frame, "moving"), sitk.GetArrayViewFromImage(body) != 0


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A rigid pose, and what it has above chance, counted over the points that both scans show."""

    score: float
    matrix: Matrix


def oriented(
    fixed: sitk.Image,
    moving: sitk.Image,
    problem: Problem,
    start: Matrix,
    make: PairRepresenter,
    report: Callable[[float, float], None],
) -> list[Matrix]:
    """The rigid poses with the best agreement of all orientations and shifts, and of `start`.

    All shifts are tried along 72 orientations, of which one lies within 45 degrees of any. From the best few a rigid
    fit and a new representation, along axes turned as that fit says, take turns until the pose settles.

    Parameters
    ----------
    fixed, moving : sitk.Image
        The scans.
    problem : Problem
        Gives the masks; its levels stay as they are.
    start : ndarray, shape (4, 4)
        Fixed to moving points, LPS mm.
    make : PairRepresenter
    report : callable
        Receives the fraction done and the negated score of the best pose so far.

    Returns
    -------
    list of ndarray, shape (4, 4)
        The best few, best first, turned against each other by more than 40 degrees. Coarse voxels do not always tell
        them apart: finer ones should.
    """
    coarse = _coarse(fixed, moving, problem, make, _ACROSS)
    turns = _orientations()
    found = []
    for k, turn in enumerate(turns):
        found.append(_placed(coarse, turn))
        report(0.5 * (k + 1) / len(turns), -max(c.score for c in found))
    found = sorted(found, key=lambda c: -c.score)[:_CANDIDATES]
    poses = [start, *(c.matrix for c in found)]
    tried = [_fitted(coarse, pose) for pose in poses]
    report(0.8, -max(c.score for c in tried))
    settled = [_settled(coarse, c) for c in sorted(tried, key=lambda c: -c.score)[:_FINALISTS]]
    report(1.0, -max(c.score for c in settled))
    best: list[Matrix] = []
    for candidate in sorted((*settled, *tried), key=lambda c: -c.score):
        if all(apart_deg(candidate.matrix, other) > ELSEWHERE_DEG for other in best):
            best.append(candidate.matrix)
    return best[:_FINALISTS]


def first_lead(fixed: sitk.Image, moving: sitk.Image, problem: Problem, start: Matrix, make: PairRepresenter) -> float:
    """A first look: how far the orientation of `start` is ahead of the best one with other axes, such as upside down.

    The 23 others that exchange axes or their senses are judged, each at its best shift. A body whose outline is nearly
    round agrees far above chance with itself upside down; the right orientation still agrees better.

    Parameters
    ----------
    fixed, moving, problem, start, make
        See `oriented`.

    Returns
    -------
    float
        The difference of their agreement above chance.
    """
    coarse = _coarse(fixed, moving, problem, make, _ACROSS_FIRST)
    own = rotation(start[:3, :3])
    others = [own @ turn for turn in Rotation.create_group("O").as_matrix() if angle_deg(turn) > ELSEWHERE_DEG]
    return _placed(coarse, own).score - max(_placed(coarse, turn).score for turn in others)


def coarse_bytes(channels: int) -> int:
    """The most that `oriented` holds beside the scans, the levels and the network, bytes."""
    voxels = (1 + _TURNED_BOX) * _MOST_VOXELS
    padded = 2**3 * voxels  # where Fourier transforms do not wrap
    return int(4 * channels * voxels + 4 * (channels + 3) * padded)


@lru_cache(maxsize=1)
def _orientations() -> NDArray[np.float64]:
    """The rotations of the cube, which exchange axes, and those of the icosahedron; (72, 3, 3)."""
    both = Rotation.concatenate([Rotation.create_group("O"), Rotation.create_group("I")]).as_matrix()
    kept: list[NDArray[np.float64]] = []
    for turn in both:
        if all(angle_deg(turn.T @ other) > 1.0 for other in kept):
            kept.append(turn)
    return np.array(kept)


def _coarse(fixed: sitk.Image, moving: sitk.Image, problem: Problem, make: PairRepresenter, across: float) -> _Coarse:
    """Both bodies, and the fixed scan in voxels of which `across` span the smaller of them."""
    finest = problem.levels[-1]
    seen, body_mm = (_voxels_mm(mask) for mask in (finest.fixed_mask, problem.moving_body))
    smaller = min(
        len(seen) * prod(finest.fixed_mask.GetSpacing()), len(body_mm) * prod(problem.moving_body.GetSpacing())
    )
    axes = np.reshape(finest.fixed.grid.direction, (3, 3))
    boxes = [float(np.prod(np.ptp(points @ axes, axis=0))) for points in (seen, body_mm)]
    edge = max(
        _LEAST_COARSER * finest.spacing_mm,
        smaller ** (1 / 3) / across,
        *((box / _MOST_VOXELS) ** (1 / 3) for box in boxes),
    )
    grid = _box(seen, axes, edge)
    mask = sitk.Resample(finest.fixed_mask, grid.image(), sitk.Transform(), sitk.sitkNearestNeighbor)
    first = make.along(fixed, grid, grid, "fixed")
    small = Grid.of(moving).resampled(edge / 2)  # it is resampled for every orientation
    moving = resampled(moving, small) if max(Grid.of(moving).spacing_mm) < edge / 2 else moving
    return _Coarse(first, mask, moving, problem.moving_body, body_mm, make, problem.pivot_mm, problem.config.seed)


def _voxels_mm(mask: sitk.Image) -> Points:
    """Where a mask is set, (n, 3), LPS mm."""
    points: Points = Grid.of(mask).points_mm()[sitk.GetArrayViewFromImage(mask) != 0]
    return points


def _box(points_mm: Points, axes: Matrix, edge_mm: float) -> Grid:
    """Grid along the columns of `axes`, (3, 3), around points."""
    along = points_mm @ axes
    low, high = along.min(axis=0) - _MARGIN_VOX * edge_mm, along.max(axis=0) + _MARGIN_VOX * edge_mm
    x, y, z = (np.floor((high - low) / edge_mm).astype(int) + 1).tolist()
    ox, oy, oz = (axes @ low).tolist()
    return Grid((x, y, z), (edge_mm, edge_mm, edge_mm), (ox, oy, oz), tuple(axes.ravel().tolist()))


def _placed(coarse: _Coarse, turn: Matrix) -> _Candidate:
    """The best shift for an orientation."""
    moving, body = coarse.along(turn)
    seen = sitk.GetArrayViewFromImage(coarse.mask) != 0
    cosines, counts = _at_all_shifts(_unit(coarse.fixed.values, seen), seen, _unit(moving.values, body), body)
    smaller = min(int(seen.sum()), int(body.sum()))
    enough = counts >= max(_LEAST_OVERLAP * smaller, 1.0)
    if not enough.any():  # thin slabs across each other
        return _Candidate(-1.0, _moved(turn, coarse.fixed.grid, moving.grid.to_physical(np.zeros(3))))
    chance = float(cosines[enough].sum() / counts[enough].sum())
    scores = np.where(enough, cosines - chance * counts, -np.inf)
    best = np.array(np.unravel_index(scores.argmax(), scores.shape))
    shift = np.where(best < moving.values.shape[:3], best, best - scores.shape)  # z, y, x; it wraps around
    return _Candidate(
        float(scores.max()) / smaller, _moved(turn, coarse.fixed.grid, moving.grid.to_physical(shift[::-1]))
    )


def _moved(turn: Matrix, fixed: Grid, there_mm: Points) -> Matrix:
    """The pose, (4, 4), that turns by `turn` and brings the first voxel of `fixed` to a point, (3,)."""
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = there_mm - turn @ np.asarray(fixed.origin_mm)
    return matrix


def _unit(values: NDArray[np.float32], where: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Channels first, 0 outside `where`; representations come with vectors of unit length."""
    masked: NDArray[np.float32] = np.moveaxis(np.where(where[..., None], values, 0), -1, 0)
    return masked


def _at_all_shifts(
    fixed: NDArray[np.float32], seen: NDArray[np.bool_], moving: NDArray[np.float32], body: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sum of cosines, and number of voxels in both bodies, where voxel i of fixed meets voxel i + shift of moving."""
    shape = [fft.next_fast_len(a + b - 1, real=True) for a, b in zip(seen.shape, body.shape, strict=True)]
    total = np.zeros((*shape[:2], shape[2] // 2 + 1), np.complex64)
    for one, other in zip(fixed, moving, strict=True):
        total += fft.rfftn(one, shape).conj() * fft.rfftn(other, shape)
    both = fft.rfftn(seen.astype(np.float32), shape).conj() * fft.rfftn(body.astype(np.float32), shape)
    return fft.irfftn(total, shape), np.rint(fft.irfftn(both, shape))


def _fitted(coarse: _Coarse, pose: Matrix) -> _Candidate:
    """A rigid fit from `pose`, the moving scan represented along axes turned as it says."""
    moving, _ = coarse.along(rotation(pose[:3, :3]))
    metric = Level(coarse.fixed, moving, coarse.mask, coarse.body).metric(_POINTS, coarse.seed)
    try:
        found = affine_matrix(fit(metric, as_rigid(pose, coarse.pivot_mm), _ITERATIONS))
    except RegistrationError:  # nothing overlaps there
        return _Candidate(-1.0, pose)
    places = mapped(found, metric.points_mm)
    compared = margin(metric, places, coarse.seed)
    return _Candidate(compared.shared * (compared.above or 0.0), found)


def _settled(coarse: _Coarse, candidate: _Candidate) -> _Candidate:
    """The best of further fits, each along axes turned as the one before says, until they turn no further."""
    best = last = candidate
    for _ in range(_TURNS):
        turned = _fitted(coarse, last.matrix)
        if turned.score > best.score:
            best = turned
        if apart_deg(last.matrix, turned.matrix) < _SETTLED_DEG:
            break
        last = turned
    return best


def apart_deg(one: Matrix, other: Matrix) -> float:
    """Angle between the rotations of two poses."""
    return angle_deg(rotation(one[:3, :3]).T @ rotation(other[:3, :3]))
