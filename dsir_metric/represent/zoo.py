"""The models that come with the package, by name."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from dsir_metric.bounds import quoted
from dsir_metric.errors import ModelFileError
from dsir_metric.represent.transport import is_remote

__all__ = ["model_path", "shipped_models"]

_FOLDER = Path(__file__).parent.parent / "models"


def shipped_models() -> dict[str, Path]:
    """Files of the models in the package, by name, sorted."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.onnx"))}


def model_path(model: str | Path) -> Path:
    """File of a model.

    Parameters
    ----------
    model : str or Path
        A name of `shipped_models`, or a file. The name of a model in the package goes before a file of that name.

    Raises
    ------
    ModelFileError
        If it is neither, or the address of a server.
    """
    shipped = shipped_models()
    if isinstance(model, str) and model in shipped:
        return shipped[model]
    if is_remote(model):
        raise ModelFileError(f"{model} is on a server; a file or one of the names {', '.join(shipped)} is needed here")
    path = Path(model)
    if not os.path.isfile(path):  # also of a name that is too long for a file
        close = difflib.get_close_matches(str(model)[:80], shipped, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ModelFileError(
            f"there is no model {quoted(str(model))}; {hint}give an .onnx file or one of the names {', '.join(shipped)}"
        )
    return path
