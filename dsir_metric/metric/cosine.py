"""The DNS cosine metric: how well two representations agree under a transform, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.errors import RegistrationError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.metric import kernel
from dsir_metric.metric.mask import Mask, to_index
from dsir_metric.metric.sampling import Sampling
from dsir_metric.metric.transforms import ChainMap, PointMap, point_map
from dsir_metric.represent.representation import Representation

__all__ = ["CosineMetric"]

Points = NDArray[np.float64]
_BLOCK = 1 << 17  # points mapped and compared in one go: bounds memory, and fixes the order of the sums


class CosineMetric:
    """Negated mean cosine between the descriptors of a fixed and a moving image (equation 5 of the paper).

    A sample point v of the virtual domain is compared as fixed(fixed_initial(v)) with
    moving(moving_initial(transform(v))), both trilinear. It counts where it falls inside both images and both masks,
    and the mean goes over the points that count, as in ITK. -1 is perfect agreement; the metric is minimised.

    Parameters
    ----------
    fixed, moving : Representation
        Descriptors with the same number of channels, of any length: the metric looks at their directions only.
    virtual : Grid, optional
        Where the sample points are drawn; the grid of `fixed` by default.
    fixed_mask, moving_mask : sitk.Image, optional
        Points count where the nearest voxel of the mask is not 0; a mask may have a grid of its own.
    sampling : Sampling, optional
        Every voxel by default.
    fixed_initial, moving_initial : sitk.Transform, optional
        Transforms from the virtual domain to `fixed`, and from the output of the transform to `moving`.

    Raises
    ------
    ShapeError
        If the two representations have different numbers of channels, a mask is not a scalar image, or something is
        2-D where the other is 3-D.
    RegistrationError
        If no sample point lies inside the fixed image and its mask.

    Notes
    -----
    Results are the same to the bit for any number of threads (`dsir_metric.threads.at_most`).
    """

    def __init__(
        self,
        fixed: Representation,
        moving: Representation,
        *,
        virtual: Grid | None = None,
        fixed_mask: sitk.Image | None = None,
        moving_mask: sitk.Image | None = None,
        sampling: Sampling | None = None,
        fixed_initial: sitk.Transform | None = None,
        moving_initial: sitk.Transform | None = None,
    ) -> None:
        if fixed.channels != moving.channels:
            raise ShapeError(
                f"fixed has {fixed.channels} channels and moving {moving.channels}: represent both with the same model"
            )
        self._dimension = fixed.grid.dimension
        virtual = virtual or fixed.grid
        for name, grid in (("moving", moving.grid), ("the virtual domain", virtual)):
            if grid.dimension != self._dimension:
                raise ShapeError(f"fixed is {self._dimension}-D and {name} {grid.dimension}-D: both must be the same")
        self._samples = _take_samples(fixed, virtual, sampling or Sampling(), fixed_mask, fixed_initial)
        self._moving = np.ascontiguousarray(moving.values, np.float32)
        self._moving_index = to_index(moving.grid)
        self._moving_mask = Mask(moving_mask, self._dimension) if moving_mask is not None else None
        self._moving_initial = point_map(moving_initial, self._dimension) if moving_initial is not None else None
        self._valid_points = 0

    @property
    def points_mm(self) -> Points:
        """Sample points of the virtual domain, (n, 3) LPS mm."""
        return self._samples.points

    @property
    def valid_points(self) -> int:
        """Number of points that counted in the last evaluation."""
        return self._valid_points

    def value(self, transform: sitk.Transform) -> float:
        """Negated mean cosine under `transform`, in [-1, 1].

        Raises
        ------
        RegistrationError
            If no point falls inside both images and masks.
        """
        mapping = self._chain(transform)
        total, valid = 0.0, 0
        for block in self._blocks():
            cosine, _, inside = self._compare(mapping.map(self._samples.points[block]), self._samples.rows[block])
            total += float(cosine.sum())
            valid += int(np.count_nonzero(inside))
        return -total / self._count(valid)

    def value_and_derivative(self, transform: sitk.Transform) -> tuple[float, NDArray[np.float64]]:
        """Negated mean cosine and its derivative with respect to the parameters of `transform`.

        Returns
        -------
        value : float
            As `value`.
        derivative : ndarray of float64, shape (parameters,)
            In the order of `transform.GetParameters()`; of a composite, those of the transform added last.

        Raises
        ------
        RegistrationError
            If no point falls inside both images and masks.
        """
        mapping = self._chain(transform)
        derivative = np.zeros(mapping.parameters)
        total, valid = 0.0, 0
        for block in self._blocks():
            points = self._samples.points[block]
            cosine, gradient, inside = self._compare(mapping.map(points), self._samples.rows[block])
            mapping.pull_to_parameters(points, gradient, derivative)
            total += float(cosine.sum())
            valid += int(np.count_nonzero(inside))
        derivative /= -self._count(valid)
        return -total / valid, derivative

    def at_points(self, mapped_mm: Points) -> tuple[float, NDArray[np.float64], Points]:
        """Evaluate with the sample points moved to given places, for transforms that are no SimpleITK object.

        Parameters
        ----------
        mapped_mm : ndarray of float64, shape (n, 3)
            Where a transform takes each of `points_mm`, LPS mm, before `moving_initial`.

        Returns
        -------
        value : float
            Negated mean cosine.
        cosine : ndarray of float64, shape (n,)
            Cosine at each sample point, 0 where it does not count.
        gradient : ndarray of float64, shape (n, 3)
            Derivative of that cosine with respect to the mapped point, per mm, 0 where it does not count.

        Raises
        ------
        RegistrationError
            If no point falls inside both images and masks.
        """
        after = self._moving_initial
        cosine, gradient = np.empty(len(mapped_mm)), np.empty((len(mapped_mm), 3))
        valid = 0
        for block in self._blocks():
            points = np.ascontiguousarray(mapped_mm[block])
            cosine[block], block_gradient, inside = self._compare(
                after.map(points) if after else points, self._samples.rows[block]
            )
            gradient[block] = after.pull_to_points(points, block_gradient) if after else block_gradient
            valid += int(np.count_nonzero(inside))
        return -float(cosine.sum()) / self._count(valid), cosine, gradient

    def agreements(self, mapped_mm: Points) -> NDArray[np.float64]:
        """Compare several transforms at once, without derivatives and without failing where there is no overlap.

        Parameters
        ----------
        mapped_mm : ndarray of float64, shape (k, n, 3)
            Where each of k transforms takes each of `points_mm`, LPS mm, before `moving_initial`.

        Returns
        -------
        ndarray of float64, shape (k,)
            Mean cosine over all sample points, those that do not count taken as 0: leaving the moving image never pays.
        """
        after, (count, points, _) = self._moving_initial, mapped_mm.shape
        together = max(1, _BLOCK // points)
        out = np.empty(count)
        for start in range(0, count, together):
            some = mapped_mm[start : start + together]
            places = np.ascontiguousarray(some.reshape(-1, 3))
            rows = np.tile(self._samples.rows, len(some))
            cosine = self._compare(after.map(places) if after else places, rows)[0]
            out[start : start + together] = cosine.reshape(len(some), points).mean(axis=1)
        return out

    def _chain(self, transform: sitk.Transform) -> PointMap:
        first = point_map(transform, self._dimension)
        return ChainMap([first, self._moving_initial]) if self._moving_initial else first

    def _blocks(self) -> list[slice]:
        return [slice(start, start + _BLOCK) for start in range(0, len(self._samples.points), _BLOCK)]

    def _compare(
        self, mapped: Points, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], Points, NDArray[np.bool_]]:
        """Cosine, derivative and validity of samples with these descriptor `rows`, `mapped` into the moving image."""
        count = len(mapped)
        valid, cosine, gradient = np.ones(count, bool), np.empty(count), np.empty((count, 3))
        if self._moving_mask is not None:
            self._moving_mask.restrict(mapped, valid)
        descriptors = self._samples.descriptors
        kernel.cosine_and_gradient(
            descriptors, rows, self._moving, mapped, *self._moving_index, valid, cosine, gradient
        )
        return cosine, gradient, valid

    def _count(self, valid: int) -> int:
        self._valid_points = valid
        if valid == 0:
            raise RegistrationError(
                f"none of {len(self._samples.points)} sample points falls inside the moving image and its mask: "
                "start from a transform under which the images overlap"
            )
        return valid


@dataclass(frozen=True, eq=False)
class _Samples:
    """Points of the virtual domain (n, 3) and the row of `descriptors` (rows, channels) that belongs to each."""

    points: Points
    descriptors: NDArray[np.float32]
    rows: NDArray[np.int64]


def _take_samples(
    fixed: Representation,
    virtual: Grid,
    sampling: Sampling,
    mask: sitk.Image | None,
    initial: sitk.Transform | None,
) -> _Samples:
    points = virtual.to_physical(sampling.indices(virtual))
    dimension = fixed.grid.dimension
    places = point_map(initial, dimension).map(points) if initial is not None else points
    keep = np.ones(len(points), bool)
    if mask is not None:
        Mask(mask, dimension).restrict(places, keep)
    values = np.ascontiguousarray(fixed.values, np.float32)
    if sampling.strategy == "none" and initial is None and virtual.matches(fixed.grid, tolerance_vox=1e-6):
        samples = _Samples(points[keep], values.reshape(-1, fixed.channels), np.flatnonzero(keep))
    else:
        descriptors = np.empty((len(points), fixed.channels), np.float32)
        kernel.interpolate(values, places, *to_index(fixed.grid), descriptors, keep)
        samples = _Samples(points[keep], descriptors[keep], np.arange(np.count_nonzero(keep)))
    if len(samples.points) == 0:
        raise RegistrationError(
            f"none of {len(points)} sample points lies inside the fixed image and its mask: "
            "check the mask, the virtual domain and the fixed initial transform"
        )
    return samples
