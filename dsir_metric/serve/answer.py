"""What a server does with a request: the meaning of `dsir_metric.represent.wire`, on the network of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, DataError, ShapeError
from dsir_metric.represent.intensity import IntensityRule
from dsir_metric.represent.tiled import TiledNetwork
from dsir_metric.represent.tiling import Box
from dsir_metric.represent.wire import CROP, IMAGE, STRIDE, WINDOW, Offer

__all__ = ["Answerer"]


class Answerer:
    """Answers requests, one at a time or many: it keeps nothing of them.

    Parameters
    ----------
    network : TiledNetwork
    offer : Offer
    """

    def __init__(self, network: TiledNetwork, offer: Offer) -> None:
        self._network = network
        self.offer = offer

    def __call__(self, given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Descriptors of a request.

        Parameters
        ----------
        given : mapping
            The arrays `image` (1, 1, z, y, x), `window`, `stride` and `crop`, of the types in `wire`.

        Returns
        -------
        ndarray of float16 or float32, shape (1, z, y, x, channels)
            Of every `stride`-th voxel of the crop.

        Raises
        ------
        ShapeError, DataError, ConfigError
            If an input is missing, has another type or shape, or values that make no sense.
        ModelFileError
            If the network answers with NaN or infinity.
        """
        self._check_tensors(given)
        image = given[IMAGE.name][0, 0]
        if not np.isfinite(image).all():
            raise DataError("image has voxels that are NaN or infinite; replace them")
        rule, stride, crop = self._settings(given)
        out = np.empty((*(s.stop - s.start for s in crop), self.offer.card.channels), np.float32)
        self._network.describe(rule.apply(image), out, crop)
        kind = np.float16 if self.offer.precision == "fp16" else np.float32
        return np.ascontiguousarray(out[::stride, ::stride, ::stride], kind)[None]

    def _check_tensors(self, given: Mapping[str, NDArray[Any]]) -> None:
        kinds = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64}
        for tensor in self.offer.inputs:
            value = given.get(tensor.name)
            fits = value is not None and value.ndim == len(tensor.shape) and value.dtype == kinds[tensor.datatype]
            if (
                value is None
                or not fits
                or any(n not in (-1, m) for n, m in zip(tensor.shape, value.shape, strict=True))
            ):
                came = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
                raise ShapeError(f"{tensor.name} must be {tensor.datatype} {list(tensor.shape)}; {came} came")
        voxels = prod(given[IMAGE.name].shape)
        if not 1 <= voxels <= self.offer.max_voxels:
            raise ShapeError(
                f"image has {voxels} voxels; this server takes 1 to {self.offer.max_voxels} in a request: send tiles"
            )

    def _settings(self, given: Mapping[str, NDArray[Any]]) -> tuple[IntensityRule, int, Box]:
        """The window, the stride and the box of a request."""
        low, high = given[WINDOW.name].tolist()
        if not (np.isfinite([low, high]).all() and low < high):
            raise ConfigError(f"window is {low} to {high}; two numbers are expected, the lower one first")
        stride = int(given[STRIDE.name][0])
        if stride < 1:
            raise ConfigError(f"stride is {stride}; 1 or more is expected")
        first, last = given[CROP.name].tolist()
        size = given[IMAGE.name].shape[2:]
        if not all(0 <= a < b <= n for a, b, n in zip(first, last, size, strict=True)):
            raise ShapeError(f"crop is {first} to {last}; a box within the image of {list(size)} voxels is expected")
        z, y, x = (slice(a, b) for a, b in zip(first, last, strict=True))
        return IntensityRule("window", low, high), stride, (z, y, x)
