"""The 24-channel picture of a scan that the metric compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric.errors import ShapeError
from dsir_metric.geometry import Grid

__all__ = ["Representation"]


@dataclass(frozen=True, eq=False)
class Representation:
    """Deep structural image representation (DSIR) of one scan.

    Parameters
    ----------
    values : ndarray of float32, shape (z, y, x, channels)
        One descriptor a voxel, unit length as the model makes it, C-contiguous; z is 1 for a 2-D image.
    grid : Grid
        Where the voxels lie, LPS mm.
    provenance : mapping
        Model name and hash, intensity rule and whatever else made these values; strings and numbers only.
    mixture : ndarray of float32, shape (channels, channels), optional
        What the model says mixes the channels for a close comparison; see `mixed`. No file keeps it.

    Raises
    ------
    ShapeError
        If `values` is not four-dimensional or does not fit `grid`, or `mixture` does not fit its channels.
    """

    values: NDArray[np.float32]
    grid: Grid
    provenance: Mapping[str, object] = field(default_factory=dict)
    mixture: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 4 or self.values.shape[:3] != self.grid.shape:
            raise ShapeError(
                f"a representation on a grid of shape {self.grid.shape} (z, y, x) needs values (z, y, x, channels); "
                f"{self.values.shape} came"
            )
        if self.mixture is not None and self.mixture.shape != (self.channels, self.channels):
            raise ShapeError(f"a mixture of {self.channels} channels is square; {self.mixture.shape} came")

    @property
    def channels(self) -> int:
        """Number of channels, 24 for the default model."""
        return int(self.values.shape[3])

    def to_sitk(self) -> sitk.Image:
        """A multi-component float32 `sitk.Image` with the same geometry."""
        return self.grid.stamp(sitk.GetImageFromArray(self.values, isVector=True))

    @classmethod
    def from_sitk(cls, image: sitk.Image, name: str = "image") -> Representation:
        """Wrap a multi-component float `sitk.Image`; the inverse of `to_sitk` but for the provenance.

        Raises
        ------
        ShapeError
            If the image has another dimension, one component or voxels that are no floats; `name` begins the last.
        """
        channels = image.GetNumberOfComponentsPerPixel()
        if image.GetDimension() not in (2, 3) or channels < 2:
            raise ShapeError(
                f"a 3-D or 2-D image with several components is expected; {image.GetDimension()} axes with "
                f"{channels} component(s) came"
            )
        if image.GetPixelID() not in (sitk.sitkVectorFloat32, sitk.sitkVectorFloat64):
            raise ShapeError(
                f"{name} has voxels of type {image.GetPixelIDTypeAsString()}: a scalar image is expected, or one of "
                "float descriptors; pick a channel with sitk.VectorIndexSelectionCast"
            )
        grid = Grid.of(image)
        values = np.ascontiguousarray(sitk.GetArrayFromImage(image), np.float32)
        return cls(values.reshape(*grid.shape, channels), grid)

    def smoothed(self, sigma_mm: float) -> Representation:
        """Each channel under a Gaussian of `sigma_mm`; descriptors are no longer unit length (equation 5, psi)."""
        if sigma_mm <= 0:
            return self
        sigma_vox = [sigma_mm / s for s in reversed(self.grid.spacing_mm)]
        out = self.values
        for axis, sigma in enumerate(sigma_vox):
            if sigma >= 0.1:
                out = ndimage.gaussian_filter1d(out, sigma, axis=axis, mode="nearest", truncate=3.0)
        return replace(self, values=np.ascontiguousarray(out, np.float32))

    def unit(self) -> Representation:
        """The same directions, vectors of length 1; those that vanish stay as they are."""
        lengths = np.linalg.norm(self.values, axis=-1, keepdims=True)
        return replace(self, values=self.values / np.maximum(lengths, 1e-6))

    def mixed(self) -> Representation:
        """Each descriptor times `mixture`, of length 1 again; these as they are, where there is none.

        A model's own makes its descriptors fit for scans that are nearly aligned: directions that change from voxel to
        voxel count more, those in which tissues far from each other differ count less.

        Returns
        -------
        Representation
            Float32 (z, y, x, channels), a new array, on the same grid; vectors that vanish stay as they are. It has no
            mixture left.
        """
        if self.mixture is None:
            return self
        out = np.empty(self.values.shape, np.float32)
        for plane, values in zip(out, self.values, strict=True):  # no second copy of it all
            flat = plane.reshape(-1, self.channels)
            np.matmul(values.reshape(flat.shape), self.mixture.T, out=flat)
            flat /= np.maximum(np.sqrt(np.einsum("nc,nc->n", flat, flat)), 1e-12)[:, None]
        return replace(self, values=out, mixture=None)

    def resampled(self, grid: Grid, transform: sitk.Transform | None = None, *, extend: bool = False) -> Representation:
        """Trilinear values on another grid, whose vectors are no longer of unit length.

        Parameters
        ----------
        grid : Grid
        transform : sitk.Transform, optional
            Maps points of `grid` to points of this one, LPS mm; the identity by default.
        extend : bool
            Outside this grid: the nearest values (True) or zero vectors (False).
        """
        resample = sitk.ResampleImageFilter()
        resample.SetReferenceImage(grid.image())
        resample.SetTransform(transform or sitk.Transform(grid.dimension, sitk.sitkIdentity))
        resample.SetInterpolator(sitk.sitkLinear)
        resample.SetUseNearestNeighborExtrapolator(extend)
        values = sitk.GetArrayFromImage(resample.Execute(self.to_sitk())).reshape(*grid.shape, self.channels)
        return replace(self, values=values, grid=grid)
