"""ITK, where it is installed."""

from __future__ import annotations

from typing import Any

from dsir_metric.errors import MissingDependencyError

__all__ = ["load_itk"]


def load_itk() -> Any:
    """The module `itk`.

    Raises
    ------
    MissingDependencyError
        If it cannot be imported.
    """
    try:
        import itk
    except ImportError as error:
        raise MissingDependencyError(f"itk cannot be imported ({error}); install dsir-metric[itk]") from error
    return itk
