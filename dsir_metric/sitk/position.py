"""The point in parameter space that an optimiser moves, and how one step changes it.

ITK lets a transform decide what a step means: most add it to their parameters, those with a versor turn by it, a
displacement field smooths it first. SimpleITK does not expose that, so it is here.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage, special

from dsir_metric.errors import ConfigError, RegistrationError
from dsir_metric.geometry import Grid

__all__ = ["FieldPosition", "Position", "VersorPosition", "position_of", "smoothing_kernel"]

Vector = NDArray[np.float64]
_WITH_VERSOR = {
    sitk.sitkVersorRigid,
    sitk.sitkSimilarity,  # in 3-D
    sitk.sitkScaleVersor,
    sitk.sitkScaleSkewVersor,
    sitk.sitkComposeScaleSkewVersor,
}


class Position:
    """A transform whose parameters a step is added to.

    Parameters
    ----------
    transform : sitk.Transform
        Moved in place.
    """

    is_field = False

    def __init__(self, transform: Any) -> None:
        self._transform = transform

    @property
    def transform(self) -> Any:
        """The transform at the present parameters."""
        return self._transform

    @property
    def is_bspline(self) -> bool:
        """Whether the transform is a B-spline."""
        return bool(self._transform.GetTransformEnum() == sitk.sitkBSplineTransform)

    @property
    def parameters(self) -> Vector:
        """A copy of the parameters."""
        return np.array(self._transform.GetParameters())

    @property
    def local_size(self) -> int:
        """Number of parameters that act on one point: all of them, or one an axis for a displacement field."""
        return int(self._transform.GetNumberOfParameters())

    def move_to(self, parameters: Vector) -> None:
        """Take these parameters."""
        self._transform.SetParameters(parameters.tolist())

    def step(self, update: Vector, factor: float = 1.0) -> None:
        """Go `factor` times `update` further, as the transform's own rule has it."""
        self.move_to(self.parameters + factor * update)

    def commit(self) -> None:
        """Write the result into the transform that was given, where that has not happened at each step."""


class VersorPosition(Position):
    """A transform that begins with a versor: the first three numbers of a step are a rotation vector in radians."""

    def step(self, update: Vector, factor: float = 1.0) -> None:
        """Turn by the first three numbers and add the others."""
        parameters = self.parameters
        turn = factor * update[:3]
        half = np.linalg.norm(turn) / 2
        vector, scalar = turn / 2 * np.sinc(half / np.pi), np.cos(half)
        present = parameters[:3]
        present_scalar = math.sqrt(max(0.0, 1.0 - float(present @ present)))
        moved = parameters + factor * update
        moved[:3] = present_scalar * vector + scalar * present + np.cross(present, vector)
        if present_scalar * scalar - present @ vector < 0:
            moved[:3] *= -1
        self.move_to(moved)


class LastOfComposite(Position):
    """The transform of a composite that is applied first, which is the only one ITK optimises."""

    def __init__(self, composite: Any) -> None:
        self._composite = composite
        super().__init__(composite.GetNthTransform(composite.GetNumberOfTransforms() - 1))

    def commit(self) -> None:
        """Write the parameters into the composite, where those of its last transform come first."""
        others = self._composite.GetParameters()[self.local_size :]
        self._composite.SetParameters((*self._transform.GetParameters(), *others))


class FieldPosition(Position):
    """A displacement field; each step, and the field after it, may be smoothed.

    Parameters
    ----------
    transform : sitk.DisplacementFieldTransform
        Changed by `commit` only.

    Raises
    ------
    ConfigError
        If the transform smooths its updates with B-splines.
    """

    is_field = True

    def __init__(self, transform: Any) -> None:
        super().__init__(transform)
        if transform.GetNumberOfParameters() == 0:
            raise ConfigError("the displacement field transform is empty: make it from a field image first")
        self._update_variance, self._total_variance = smoothing_variances(transform)
        self.set_field(sitk.DisplacementFieldTransform(transform).GetDisplacementField())

    @property
    def only_update_is_smoothed(self) -> bool:
        """Whether the field after a step is left as it is."""
        return self._total_variance <= 0

    def set_field(self, image: sitk.Image) -> None:
        """Take the field and its grid from an image with a component for each axis."""
        self.grid = Grid.of(image)
        self._field = sitk.GetArrayFromImage(image).astype(np.float64)
        self._current: sitk.DisplacementFieldTransform | None = None

    def image(self) -> sitk.Image:
        """The field as a float64 image with a component for each axis, LPS mm."""
        return self.grid.stamp(sitk.GetImageFromArray(self._field, isVector=True))

    @property
    def transform(self) -> Any:
        """A displacement field transform at the present parameters; remade after each move."""
        if self._current is None:
            self._current = sitk.DisplacementFieldTransform(self.image())
        return self._current

    @property
    def local_size(self) -> int:
        """Number of components."""
        return self.grid.dimension

    @property
    def parameters(self) -> Vector:
        """A copy of the field, flat: z, y, x, then component."""
        return self._field.ravel().copy()

    def move_to(self, parameters: Vector) -> None:
        """Take this field, flat."""
        self._field = parameters.reshape(self._field.shape).copy()
        self._current = None

    def step(self, update: Vector, factor: float = 1.0) -> None:
        """Smooth the update, add it, smooth the sum."""
        update = smoothed(update.reshape(self._field.shape), self._update_variance)
        self._field = smoothed(self._field + factor * update, self._total_variance)
        self._current = None

    def commit(self) -> None:
        """Write field and grid into the transform that was given."""
        final = self.transform
        self._transform.SetFixedParameters(final.GetFixedParameters())
        self._transform.SetParameters(final.GetParameters())


def position_of(transform: Any) -> Position:
    """The kind of position that fits a transform of a class of its own; it works on `transform` itself.

    Raises
    ------
    RegistrationError
        If the transform has nothing to optimise.
    ConfigError
        If its steps are of a kind that is not supported.
    """
    if transform.GetNumberOfParameters() == 0 and transform.GetTransformEnum() != sitk.sitkDisplacementField:
        raise RegistrationError(f"{transform.GetName()} has no parameters to optimise: give another initial transform")
    kind = transform.GetTransformEnum()
    if kind == sitk.sitkComposite:
        return LastOfComposite(transform)
    if kind == sitk.sitkDisplacementField:
        return FieldPosition(transform)
    turns = kind in _WITH_VERSOR and transform.GetDimension() == 3
    return VersorPosition(transform) if turns else Position(transform)


def smoothing_variances(transform: Any) -> tuple[float, float]:
    """Variances, in voxels squared, of the smoothing on update and total field; 0 for none.

    SimpleITK has no getter for them: they are read from the text of the transform.
    """
    text = str(transform)
    if "NumberOfControlPointsForTheUpdateField" in text:
        raise ConfigError(
            "B-spline smoothing on update is not supported: use SetSmoothingGaussianOnUpdate or SetSmoothingOff"
        )
    found = [re.search(rf"GaussianSmoothingVarianceForThe{which}Field: (\S+)", text) for which in ("Update", "Total")]
    return tuple(float(match[1]) if match else 0.0 for match in found)  # type: ignore[return-value]


def smoothing_kernel(variance: float, width: int, maximum_error: float = 0.001) -> Vector:
    """ITK's discrete Gaussian: scaled Bessel functions until only `maximum_error` of the mass is left out."""
    half = special.ive(np.arange(width + 2), variance)
    mass = half[0] + 2 * np.cumsum(np.append(0.0, half[1:]))
    enough = int(np.argmax(mass >= 1 - maximum_error)) if mass[-1] >= 1 - maximum_error else width
    half = half[: max(enough, 1) + 1]
    kernel = np.concatenate([half[:0:-1], half])
    return np.asarray(kernel / kernel.sum())


def smoothed(field: Vector, variance: float) -> Vector:
    """A field (z, y, x, 3) or (y, x, 2) under a Gaussian, its outermost voxels held at 0; variance in voxels^2."""
    if variance <= 0:
        return field
    blurred = field
    for axis in reversed(range(field.ndim - 1)):
        kernel = smoothing_kernel(variance, field.shape[axis])
        blurred = ndimage.correlate1d(blurred, kernel, axis=axis, mode="nearest")
    share = min(1.0, 1.0 - variance / 0.5) if variance < 0.5 else 1.0
    result = np.zeros_like(field)
    inner = (slice(1, -1),) * (field.ndim - 1)
    result[inner] = (share * blurred + (1 - share) * field)[inner]
    return result
