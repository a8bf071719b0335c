"""Units of length: the defaults suit an adult patient, so other bodies are measured in units of their own.

All lengths in the code and in the default settings (lattices, reach, margins, weights in mm^2) are those of an adult. A
mouse is registered as if it were as large as a patient, and its transform is brought back to mm. The factor is a power
of two, so nothing is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK as sitk

from dsir_metric.geometry import Grid
from dsir_metric.register.config import DeformableConfig, RegisterConfig, SearchConfig
from dsir_metric.register.linear import affine_matrix, as_affine, composite
from dsir_metric.register.result import RegistrationResult
from dsir_metric.represent import PairRepresenter, Representation

__all__ = ["Units"]


@dataclass(frozen=True)
class Units:
    """Conversion of the inputs and the result of a registration.

    Parameters
    ----------
    mm : float
        Length of a unit in mm.
    """

    mm: float

    def image(self, image: sitk.Image) -> sitk.Image:
        """Return the same voxels with a header in units; the image itself where a unit is a mm."""
        return image if self.mm == 1 else Grid.of(image).scaled(1 / self.mm).stamp(sitk.Image(image))

    def representations(
        self, made: tuple[Representation, Representation] | PairRepresenter
    ) -> tuple[Representation, Representation] | PairRepresenter:
        """Return representations, or what makes them, in units."""
        if isinstance(made, tuple):
            first, second = (replace(side, grid=side.grid.scaled(1 / self.mm)) for side in made)
            return first, second
        return made if made.spacing_mm is None else replace(made, spacing_mm=made.spacing_mm / self.mm)

    def config(self, config: RegisterConfig) -> RegisterConfig:
        """Return settings in units. Defaults are in units as they are; what a user gave in mm is converted."""
        search, deformable = config.search, config.deformable
        if search.translation_mm != SearchConfig.translation_mm:
            search = replace(search, translation_mm=search.translation_mm / self.mm)
        if deformable.lattice_mm != DeformableConfig.lattice_mm:
            deformable = replace(deformable, lattice_mm=tuple(step / self.mm for step in deformable.lattice_mm))
        if deformable.bending_mm2 != DeformableConfig.bending_mm2:
            deformable = replace(deformable, bending_mm2=deformable.bending_mm2 / self.mm**2)
        spacing = None if config.spacing_mm is None else config.spacing_mm / self.mm
        return replace(config, spacing_mm=spacing, search=search, deformable=deformable)

    def start(self, transform: sitk.Transform | None) -> sitk.Transform | None:
        """Return an initial transform in units."""
        return transform if transform is None or self.mm == 1 else scaled(transform, 1 / self.mm)

    def result(self, result: RegistrationResult) -> RegistrationResult:
        """Return a result in mm; `scale` is added to its details."""
        details = result.details | {"scale": self.mm}
        if self.mm == 1:
            return replace(result, details=details)
        for name, power in (("working_spacing_mm", 1), ("bending_mm2", 2)):
            value = details[name]
            if isinstance(value, float):
                details[name] = value * self.mm**power
        return replace(
            result,
            transform=scaled(result.transform, self.mm),
            inverse=None if result.inverse is None else scaled(result.inverse, self.mm),
            fixed_grid=result.fixed_grid.scaled(self.mm),
            details=details,
        )


def scaled(transform: sitk.Transform, factor: float) -> sitk.CompositeTransform:
    """Return x -> factor * transform(x / factor): the transform between spaces in which all is `factor` times as long.

    Linear transforms, B-splines, displacement fields and composites of them stay of their kind.
    """
    return composite(*(_scaled(part, factor) for part in _parts(transform)))


def _parts(transform: sitk.Transform) -> list[sitk.Transform]:
    """Return the transforms of a composite, those inside others too, the last applied first."""
    if transform.GetTransformEnum() != sitk.sitkComposite:
        return [transform.Downcast()]
    whole = sitk.CompositeTransform(transform)
    return [part for k in range(whole.GetNumberOfTransforms()) for part in _parts(whole.GetNthTransform(k))]


def _scaled(part: Any, factor: float) -> sitk.Transform:
    kind = part.GetTransformEnum()
    if part.IsLinear():
        matrix = affine_matrix(part)
        matrix[:3, 3] *= factor
        centre = np.array(part.GetCenter()) if hasattr(part, "GetCenter") else np.zeros(3)
        return as_affine(matrix, factor * centre)
    if kind == sitk.sitkBSplineTransform:
        images = [_scaled_image(image, factor) for image in part.GetCoefficientImages()]
        return sitk.BSplineTransform(images, part.GetOrder())
    if kind == sitk.sitkDisplacementField:
        return sitk.DisplacementFieldTransform(_scaled_image(part.GetDisplacementField(), factor))
    to_there, back = (as_affine(np.diag([s, s, s, 1.0]), np.zeros(3)) for s in (factor, 1 / factor))
    return composite(to_there, part, back)


def _scaled_image(image: sitk.Image, factor: float) -> sitk.Image:
    """Return displacements, or their coefficients, with lengths `factor` times as long."""
    values = sitk.GetArrayFromImage(image) * factor
    vector = image.GetNumberOfComponentsPerPixel() > 1
    return Grid.of(image).scaled(factor).stamp(sitk.GetImageFromArray(values, isVector=vector))
