"""The DNS cosine metric with the names of ITK v4, for ITK images and ITK transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from dsir_metric.errors import ConfigError, DataError
from dsir_metric.geometry import Grid
from dsir_metric.itk.convert import components, from_itk, to_sitk
from dsir_metric.itk.package import load_itk
from dsir_metric.itk.transforms import transform_to_sitk
from dsir_metric.metric import CosineMetric, Sampling
from dsir_metric.represent.representation import Representation
from dsir_metric.sitk.dns import Picture, compared_pair
from dsir_metric.sitk.settings import DNSCosine, Settings

__all__ = ["DNSCosineImageToImageMetricv4", "mask_of", "picture_of"]

Vector = NDArray[np.float64]


class DNSCosineImageToImageMetricv4:
    """Negated mean cosine of two images' representations under an ITK transform: -1 is perfect agreement.

    Methods with ITK's names do what ITK's do, with two differences: derivatives are returned, and where no point counts
    there is an error. ITK's derivative is the direction in which the value falls, so it is *minus* the gradient;
    `value_and_gradient` has the sign and the form that SciPy's `minimize` takes.

    Parameters
    ----------
    sampling : Sampling, optional
        Which points of the virtual domain are compared; every voxel by default.
    **choices
        How scalar images are represented: `model`, `device`, `spacing_mm`, `fixed_intensity`, `moving_intensity` and
        `foreground`, as for `dsir_metric.sitk.ImageRegistrationMethod.SetMetricAsDNSCosine`.
    """

    def __init__(self, *, sampling: Sampling | None = None, **choices: Any) -> None:
        self._choice = DNSCosine(**choices)
        self._sampling = sampling
        self._fixed: Picture | None = None
        self._moving: Picture | None = None
        self._fixed_mask: sitk.Image | None = None
        self._moving_mask: sitk.Image | None = None
        self._fixed_transform: sitk.Transform | None = None
        self._transform: Any = None
        self._virtual: Grid | None = None
        self._metric: CosineMetric | None = None

    @classmethod
    def New(cls, **choices: Any) -> DNSCosineImageToImageMetricv4:
        """As the constructor."""
        return cls(**choices)

    def SetFixedImage(self, image: Any) -> None:
        """A scalar itk image, which `Initialize` represents, or an `itk.VectorImage` or Representation that is one."""
        self._fixed, self._metric = picture_of(image, "fixed"), None

    def SetMovingImage(self, image: Any) -> None:
        """As `SetFixedImage`; both images are scalar or both are represented."""
        self._moving, self._metric = picture_of(image, "moving"), None

    def SetFixedImageMask(self, mask: Any) -> None:
        """Points count where the `itk.ImageMaskSpatialObject`, or itk image, is not 0; None for no mask."""
        self._fixed_mask, self._metric = mask_of(mask, "fixed mask"), None

    def SetMovingImageMask(self, mask: Any) -> None:
        """As `SetFixedImageMask`, for where points map to."""
        self._moving_mask, self._metric = mask_of(mask, "moving mask"), None

    def SetFixedTransform(self, transform: Any) -> None:
        """From the virtual domain to the fixed image, kept as it is; the identity by default."""
        self._fixed_transform, self._metric = transform_to_sitk(transform), None

    def SetMovingTransform(self, transform: Any) -> None:
        """From the virtual domain to the moving image: the ITK transform whose parameters are sought.

        Of a composite those of the transform added last: call its `SetOnlyMostRecentTransformToOptimizeOn` before.

        Raises
        ------
        ConfigError
            If it is of a kind without a known derivative, or a composite that would optimise other transforms.
        """
        transform_to_sitk(transform)
        self._transform = _with_last_free(transform)

    SetTransform = SetMovingTransform

    def GetMovingTransform(self) -> Any:
        """The ITK transform that was set; the metric keeps it, not a copy."""
        if self._transform is None:
            raise ConfigError("there is no transform: call SetMovingTransform first")
        return self._transform

    GetTransform = GetMovingTransform

    def SetVirtualDomainFromImage(self, image: Any) -> None:
        """The voxels that are compared; those of the fixed image by default."""
        self._virtual, self._metric = Grid.of(to_sitk(image, "virtual domain")), None

    def Initialize(self) -> None:
        """Represent what is not represented and take the samples; call it again after a `Set...` other than transforms.

        A scalar moving image is represented as it lies under the transform of this moment, where that turns it by more
        than 5 degrees: call it again for one that turns otherwise.

        Raises
        ------
        ConfigError
            If an image is missing.
        DsirError
            What the representation of an image raises; RegistrationError if no sample lies inside the fixed image.
        """
        if self._fixed is None or self._moving is None:
            which = "fixed" if self._fixed is None else "moving"
            raise ConfigError(f"there is no {which} image: call Set{which.capitalize()}Image first")
        initial = None if self._transform is None else transform_to_sitk(self._transform)
        settings = Settings(
            self._choice, fixed_mask=self._fixed_mask, initial=initial, fixed_initial=self._fixed_transform
        )
        pair = compared_pair(self._fixed, self._moving, settings)
        self._metric = CosineMetric(
            pair.fixed,
            pair.moving,
            virtual=self._virtual or pair.fixed_grid,
            fixed_mask=pair.foreground if self._fixed_mask is None else self._fixed_mask,
            moving_mask=self._moving_mask,
            sampling=self._sampling,
            fixed_initial=self._fixed_transform,
        )

    def GetValue(self) -> float:
        """The value under the transform, in [-1, 1].

        Raises
        ------
        ConfigError
            If `Initialize` was not called.
        RegistrationError
            If no point falls inside both images and masks.
        """
        return self._initialized.value(transform_to_sitk(self.GetMovingTransform()))

    def GetValueAndDerivative(self) -> tuple[float, Vector]:
        """The value, and the direction in which it falls.

        Returns
        -------
        value : float
        derivative : ndarray of float64, shape (parameters,)
            Minus the gradient of the value with respect to the parameters; for displacement fields, as in ITK, that of
            the sum over the points and not of their mean.
        """
        transform = self.GetMovingTransform()
        value, gradient = self._initialized.value_and_derivative(transform_to_sitk(transform))
        local = transform.GetNumberOfLocalParameters() != transform.GetNumberOfParameters()
        return value, -gradient * (self._initialized.valid_points if local else 1.0)

    def GetDerivative(self) -> Vector:
        """See `GetValueAndDerivative`."""
        return self.GetValueAndDerivative()[1]

    def GetNumberOfParameters(self) -> int:
        """How many parameters the transform has."""
        return int(self.GetMovingTransform().GetNumberOfParameters())

    def GetParameters(self) -> Vector:
        """The parameters of the transform, a copy."""
        return np.asarray(load_itk().array_from_vnl_vector(self.GetMovingTransform().GetParameters()), float)

    def SetParameters(self, parameters: ArrayLike) -> None:
        """Set the parameters of the transform."""
        itk, values = load_itk(), np.asarray(parameters, float).ravel()
        if values.size != self.GetNumberOfParameters():
            raise ConfigError(f"{values.size} parameters came; the transform has {self.GetNumberOfParameters()}")
        self.GetMovingTransform().SetParameters(itk.OptimizerParameters[itk.D](values.tolist()))

    def UpdateTransformParameters(self, derivative: ArrayLike, factor: float = 1.0) -> None:
        """Let the transform take a step of `factor` along `derivative`, in the way of its kind."""
        itk = load_itk()
        step = itk.Array[itk.D](np.asarray(derivative, float).ravel().tolist())
        self.GetMovingTransform().UpdateTransformParameters(step, factor)

    def GetNumberOfValidPoints(self) -> int:
        """How many points counted in the last evaluation."""
        return self._initialized.valid_points

    def value_and_gradient(self, parameters: ArrayLike) -> tuple[float, Vector]:
        """Set the parameters; give the value and its gradient, for `scipy.optimize.minimize(..., jac=True)`."""
        self.SetParameters(parameters)
        return self._initialized.value_and_derivative(transform_to_sitk(self.GetMovingTransform()))

    @property
    def _initialized(self) -> CosineMetric:
        if self._metric is None:
            raise ConfigError("the metric is not initialised: call Initialize() after the images are set")
        return self._metric


def picture_of(image: Any, name: str) -> Picture:
    """A Representation as it is, an itk image of several components as one, a scalar itk image as a sitk.Image.

    Raises
    ------
    DataError
        If something else came.
    ShapeError
        If it is not 3-D.
    """
    if isinstance(image, Representation):
        return image
    return from_itk(image, name) if components(image, name) > 1 else to_sitk(image, name)


def mask_of(mask: Any, name: str) -> sitk.Image | None:
    """An `itk.ImageMaskSpatialObject`, or an itk image, as a sitk.Image; None as None.

    Raises
    ------
    DataError
        If something else came, or the spatial object was moved away from where its image lies.
    """
    if hasattr(mask, "GetObjectToWorldTransform"):
        place = transform_to_sitk(mask.GetObjectToWorldTransform())
        if any(np.abs(np.subtract(place.TransformPoint(p), p)).max() > 1e-6 for p in np.eye(4, 3).tolist()):
            raise DataError(f"{name}: the spatial object was moved; give the image of the mask where it lies")
        mask = mask.GetImage()
    return None if mask is None else to_sitk(mask, name)


def _with_last_free(transform: Any) -> Any:
    """The one transform that came, if of a composite it optimises the one added last alone."""
    transform = load_itk().down_cast(transform[0] if isinstance(transform, list | tuple) else transform)
    if transform.GetNameOfClass() == "CompositeTransform":
        count = transform.GetNumberOfTransforms()
        free = [i for i in range(count) if transform.GetNthTransformToOptimize(i)]
        if free != [count - 1]:
            raise ConfigError(
                f"the composite would optimise {len(free)} of its {count} transforms; the derivative is that of the "
                "one added last: call its SetOnlyMostRecentTransformToOptimizeOn()"
            )
    return transform
