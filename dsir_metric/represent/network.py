"""The network as ONNX Runtime runs it: one file, two entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import ModelFileError
from dsir_metric.represent.card import card_of, model_path
from dsir_metric.represent.runtime import open_session

__all__ = ["Network"]


class Network:
    """An open model.

    Parameters
    ----------
    model : str or Path
        Name of a shipped model, or a file.
    device : str
        "auto", "cpu" or "cuda".
    threads : int or None
        CPU threads; None for every core.

    Attributes
    ----------
    card : ModelCard
    provider : str
        ONNX Runtime's name of what runs the network, such as "CPUExecutionProvider".

    Raises
    ------
    ModelFileError, ConfigError, MissingDependencyError
        See `model_path`, `card_of` and `open_session`.
    """

    def __init__(self, model: str | Path = "default", device: str = "auto", threads: int | None = None) -> None:
        path = model_path(model)
        self._session: Any = open_session(path, device, threads)
        self.card = card_of(self._session, path)
        entries = {entry.name for entry in self._session.get_inputs()}
        if entries != {"image", "features"}:
            raise ModelFileError(
                f"{path}: a model with the inputs image, features is expected; it has {', '.join(sorted(entries))}: "
                "make the file with `dsir-metric export`"
            )
        self.provider: str = self._session.get_providers()[0]
        # ONNX Runtime wants every input fed: the entry that is not asked gets one voxel.
        self._idle = {
            "image": np.zeros((1, 1, 1, 1, 1), np.float32),
            "features": np.zeros((1, self.card.features, 1, 1, 1), np.float32),
        }

    def features(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Feature map (features, z, y, x) of intensities (z, y, x) in [0, 1]."""
        return self._run("image_features", image=image[None, None])

    def descriptors(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit vectors (z, y, x, channels) of a feature map (features, z, y, x)."""
        return self._run("descriptors", features=features[None])

    def _run(self, output: str, **feed: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = self._session.run([output], {**self._idle, **feed})[0][0]
        return result
