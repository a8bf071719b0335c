"""Representations as ITK images."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsir_metric.errors import MissingDependencyError
from dsir_metric.represent.representation import Representation

__all__ = ["to_itk"]


def to_itk(representation: Representation) -> Any:
    """A representation as an `itk.VectorImage[itk.F, 3]`.

    Parameters
    ----------
    representation : Representation

    Returns
    -------
    itk.VectorImage
        float32, one component a channel, with spacing, origin and direction (LPS mm). It owns a copy of the values.

    Raises
    ------
    MissingDependencyError
        If the Python package `itk` is not installed.
    """
    try:
        import itk
    except ImportError as error:
        raise MissingDependencyError(f"itk cannot be imported ({error}); install dsir-metric[itk]") from error
    grid = representation.grid
    image = itk.image_from_array(representation.values, ttype=itk.VectorImage[itk.F, 3])
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(itk.matrix_from_array(np.reshape(grid.direction, (3, 3))))
    return image
