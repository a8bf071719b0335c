"""What a server does with a request: the meaning of `dsir_metric.represent.wire`, on the network of this machine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, DataError, ShapeError
from dsir_metric.represent.intensity import IntensityRule
from dsir_metric.represent.tiled import TiledNetwork
from dsir_metric.represent.tiling import Box
from dsir_metric.represent.wire import CROP, IMAGE, STRIDE, WINDOW, Offer
from dsir_metric.serve.config import LEAST_COST
from dsir_metric.serve.request import quoted

__all__ = ["Abandoned", "Answerer", "Task"]

_log = logging.getLogger("dsir_metric.serve")
_COST_PER_VOXEL = 6  # a single slice costs 5 (the network pads its 1 voxel to 8), a column 32, a cube 1 to 2


class Abandoned(Exception):  # noqa: N818  # nothing is wrong
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Task:
    """A request that makes sense.

    Parameters
    ----------
    image : ndarray of float32, shape (z, y, x)
        Raw intensities, finite.
    rule : IntensityRule
    stride : int
    crop : tuple of slice
        z, y, x, within the image.
    cost : int
        Computed voxels, see `dsir_metric.represent.plan.computed_voxels`.
    """

    image: NDArray[np.float32]
    rule: IntensityRule
    stride: int
    crop: Box
    cost: int


class Answerer:
    """Answers requests, one at a time or many: it keeps nothing of them.

    Parameters
    ----------
    network : TiledNetwork
    offer : Offer
    most_cost : int, optional
        Computed voxels that one request may cost; no limit by default.
    """

    def __init__(self, network: TiledNetwork, offer: Offer, most_cost: int | None = None) -> None:
        self._network = network
        self.offer = offer
        self._most_cost = most_cost

    def __call__(self, given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Descriptors of a request: `check`, then `describe`."""
        return self.describe(self.check(given))

    def check(self, given: Mapping[str, NDArray[Any]]) -> Task:
        """What a request asks for.

        Parameters
        ----------
        given : mapping
            The arrays `image` (1, 1, z, y, x), `window`, `stride` and `crop`, of the types in `wire`.

        Raises
        ------
        ShapeError, DataError, ConfigError
            If an input is missing, unknown, has another type or shape, has values that make no sense, or if the request
            would cost too much.
        """
        self._check_tensors(given)
        image = given[IMAGE.name][0, 0]
        rule, stride, crop = self._settings(given)
        if not np.isfinite(image).all():
            raise DataError("image has voxels that are NaN or infinite; replace them")
        return Task(image, rule, stride, crop, self._cost(image.shape, crop))

    def describe(self, task: Task, abandoned: threading.Event | None = None) -> NDArray[Any]:
        """Descriptors that a request asks for.

        Parameters
        ----------
        task : Task
        abandoned : threading.Event, optional
            Once it is set, the computation ends before the next tile.

        Returns
        -------
        ndarray of float16 or float32, shape (1, z, y, x, channels)
            Of every `stride`-th voxel of the crop.

        Raises
        ------
        ModelFileError
            If the network answers with NaN or infinity.
        Abandoned
            If `abandoned` was set meanwhile.
        """

        def on_tile() -> None:
            if abandoned is not None and abandoned.is_set():
                _log.info("stopped: nobody waits for the answer any more")
                raise Abandoned

        on_tile()
        out = np.empty((*(s.stop - s.start for s in task.crop), self.offer.card.channels), np.float32)
        self._network.describe(task.rule.apply(task.image), out, task.crop, on_tile=on_tile)
        kind = np.float16 if self.offer.precision == "fp16" else np.float32
        return np.ascontiguousarray(out[:: task.stride, :: task.stride, :: task.stride], kind)[None]

    def _check_tensors(self, given: Mapping[str, NDArray[Any]]) -> None:
        kinds = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64}
        unknown = sorted(given.keys() - {tensor.name for tensor in self.offer.inputs})
        if unknown:
            known = ", ".join(tensor.name for tensor in self.offer.inputs)
            raise ShapeError(f"input {quoted(unknown[0])} is unknown; give {known}")
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
        stride = int(given[STRIDE.name][0])
        if stride < 1:
            raise ConfigError(f"stride is {stride}; 1 or more is expected")
        first, last = given[CROP.name].tolist()
        size = given[IMAGE.name].shape[2:]
        if not all(0 <= a < b <= n for a, b, n in zip(first, last, size, strict=True)):
            raise ShapeError(f"crop is {first} to {last}; a box within the image of {list(size)} voxels is expected")
        z, y, x = (slice(a, b) for a, b in zip(first, last, strict=True))
        return IntensityRule("window", low, high), stride, (z, y, x)

    def _cost(self, shape: tuple[int, ...], crop: Box) -> int:
        """What a request costs.

        Raises
        ------
        ShapeError
            If that is more than the server takes, or far more than the voxels of a compact image cost.
        """
        z, y, x = shape
        most = max(LEAST_COST, _COST_PER_VOXEL * prod(shape))
        most = most if self._most_cost is None else min(most, self._most_cost)
        cost = self._network.least_cost((z, y, x))
        if cost <= most:  # else it takes long even to plan the tiles
            cost = self._network.cost((z, y, x), crop)
        if cost > most:
            raise ShapeError(
                f"the request costs {cost} computed voxels for an image of {list(shape)}, halos and padding included; "
                f"this server takes {most} for it: send smaller or more compact tiles"
            )
        return cost
