"""torch and ONNX Runtime must agree."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsir_metric.errors import ParityError
from dsir_metric.represent.runtime import open_session
from dsir_metric_export.halves import Halves

__all__ = ["SIZES", "TOLERANCE", "measure_parity"]

TOLERANCE = 1e-5
SIZES = ((33, 41, 50), (17, 64, 29), (48, 40, 56), (7, 5, 9))


def measure_parity(halves: Halves, path: Path) -> dict[str, dict[str, float]]:
    """How far the descriptors of torch and of ONNX Runtime lie apart, by size "z x y x x".

    The images are such as the network is made for: a background of zero, objects of even intensity and noise. An even
    region is the hard case, for there equation 1 divides by a small number and blows up the rounding of the layers
    before it: a trained network can differ from itself in float64 by more than 1e-5. So the bar is 1e-5 or, where it
    is higher, four times what torch in float32 differs from torch in float64.

    Returns
    -------
    dict
        For each size "largest" and "rms" of the differences of components, and "rounding", the largest difference of
        torch from its own float64.

    Raises
    ------
    ParityError
        If a difference is over the bar.
    """
    session = open_session(path, "cpu")
    exact = copy.deepcopy(halves.network).double()
    found = {}
    for size in SIZES:
        image = _phantom(size)[None, None]
        with torch.inference_mode():
            expected = _channel_last(halves.network(torch.from_numpy(image)))
            rounding = np.abs(expected - _channel_last(exact(torch.from_numpy(image).double()))).max()
        difference = _run(session, image, halves.network.config.features) - expected
        name = " x ".join(map(str, size))
        found[name] = {
            "largest": float(np.abs(difference).max()),
            "rms": float(np.sqrt(np.mean(difference**2))),
            "rounding": float(rounding),
        }
        bar = max(TOLERANCE, 4 * found[name]["rounding"])
        if not found[name]["largest"] <= bar:
            raise ParityError(
                f"torch and ONNX Runtime differ by {found[name]['largest']:.1e} at size {name}, more than {bar:.1e}; "
                "look for diverged weights, or try other versions of torch and onnxruntime"
            )
    return found


def _run(session: Any, image: NDArray[np.float32], features: int) -> NDArray[np.float32]:
    """Both entries of the model file, one after the other; (1, z, y, x, channels)."""
    idle = np.zeros((1, features, 1, 1, 1), np.float32)
    between = session.run(["image_features"], {"image": image, "features": idle})[0]
    out: NDArray[np.float32] = session.run(["descriptors"], {"image": image[..., :1, :1, :1], "features": between})[0]
    return out


def _channel_last(descriptors: torch.Tensor) -> NDArray[Any]:
    out: NDArray[Any] = descriptors.permute(0, 2, 3, 4, 1).numpy()
    return out


def _phantom(size: tuple[int, int, int]) -> NDArray[np.float32]:
    """Ellipsoids of even intensity on zero, noise in half of the volume, (z, y, x) in [0, 1]."""
    random = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij"))
    image = np.zeros(size)
    for radius in (0.9, 0.7, 0.5, 0.35, 0.2):
        centre = random.uniform(-0.3, 0.3, (3, 1, 1, 1))
        inside = np.sum(((places - centre) / (radius * random.uniform(0.7, 1.2, (3, 1, 1, 1)))) ** 2, axis=0) < 1
        image[inside] = random.uniform(0, 1)
    noise = random.normal(0, 0.03, size) * ((image > 0) & (places[2] > 0))
    out: NDArray[np.float32] = np.clip(image + noise, 0, 1).astype(np.float32)
    return out
