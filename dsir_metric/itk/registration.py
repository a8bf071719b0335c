"""Registration with ITK images in and ITK transforms out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsir_metric.errors import ShapeError
from dsir_metric.itk.convert import to_itk, to_sitk
from dsir_metric.itk.metric import mask_of, picture_of
from dsir_metric.itk.transforms import transform_to_itk, transform_to_sitk
from dsir_metric.register import Progress, RegisterConfig, RegistrationResult
from dsir_metric.register import register as register_sitk
from dsir_metric.represent.representation import Representation

__all__ = ["ItkRegistration", "register"]


@dataclass(frozen=True)
class ItkRegistration:
    """Outcome of `register`.

    Parameters
    ----------
    transform : itk.CompositeTransform
        Fixed points to moving points, LPS mm: for `itk.resample_image_filter` and `itk.transformwrite`.
    inverse : itk.CompositeTransform or None
        Moving points to fixed points, where the deformation has an inverse that is known.
    result : RegistrationResult
        Stages, warnings, Jacobian statistics, seconds.
    """

    transform: Any
    inverse: Any
    result: RegistrationResult

    def moved(self, image: Any, *, labels: bool = False) -> Any:
        """An itk image in the space of moving, on the fixed grid; see `RegistrationResult.moved`."""
        return to_itk(self.result.moved(to_sitk(image), labels=labels))


def register(
    fixed: Any,
    moving: Any,
    config: RegisterConfig | None = None,
    *,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    initial_transform: Any = None,
    representations: tuple[Any, Any] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ItkRegistration:
    """Register two ITK images of any modality; `dsir_metric.register.register` does the work.

    Parameters
    ----------
    fixed, moving : itk.Image
        Scalar 3-D images of any pixel type.
    config : RegisterConfig, optional
    fixed_mask, moving_mask : itk.Image or itk.ImageMaskSpatialObject, optional
        On the grids of their images.
    initial_transform : itk.Transform or list with one, optional
        Fixed to moving, LPS mm; what `itk.transformread` gives.
    representations : tuple of itk.VectorImage or Representation, optional
        Of `fixed` and of `moving`, made before.
    on_progress : callable, optional

    Returns
    -------
    ItkRegistration

    Raises
    ------
    DsirError
        As `dsir_metric.register.register`, and where something came that is no ITK object.
    """
    pair = None
    if representations is not None:
        pair = _representation(representations[0], "fixed"), _representation(representations[1], "moving")
    result = register_sitk(
        to_sitk(fixed, "fixed"),
        to_sitk(moving, "moving"),
        config,
        fixed_mask=mask_of(fixed_mask, "fixed mask"),
        moving_mask=mask_of(moving_mask, "moving mask"),
        initial_transform=None if initial_transform is None else transform_to_sitk(initial_transform),
        representations=pair,
        on_progress=on_progress,
    )
    inverse = None if result.inverse is None else transform_to_itk(result.inverse)
    return ItkRegistration(transform_to_itk(result.transform), inverse, result)


def _representation(image: Any, name: str) -> Representation:
    picture = picture_of(image, name)
    if not isinstance(picture, Representation):
        raise ShapeError(f"{name}: a representation has several components; an image with one came")
    return picture
