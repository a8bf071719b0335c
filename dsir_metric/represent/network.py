"""The network as ONNX Runtime runs it: one file, two entries."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsir_metric.represent.card import ModelCard

__all__ = ["Network"]


class Network:
    """An open model.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    card : ModelCard

    Attributes
    ----------
    card : ModelCard
    provider : str
        ONNX Runtime's name of what runs the network, such as "CPUExecutionProvider".
    """

    def __init__(self, session: Any, card: ModelCard) -> None:
        self._session = session
        self.card = card
        self.provider: str = session.get_providers()[0]
        # ONNX Runtime wants every input fed: the entry that is not asked gets one voxel.
        self._idle = {
            "image": np.zeros((1, 1, 1, 1, 1), np.float32),
            "features": np.zeros((1, card.features, 1, 1, 1), np.float32),
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
