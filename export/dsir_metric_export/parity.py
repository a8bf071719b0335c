"""torch and ONNX Runtime must agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dsir_metric.errors import ParityError
from dsir_metric.represent.runtime import open_session
from dsir_metric_export.halves import Halves

__all__ = ["SIZES", "TOLERANCE", "measure_parity"]

TOLERANCE = 1e-5
SIZES = ((33, 41, 50), (17, 64, 29), (48, 40, 56), (7, 5, 9))


def measure_parity(halves: Halves, path: Path) -> dict[str, float]:
    """Largest difference between the descriptors of torch and of ONNX Runtime, by size "z x y x x".

    The images are such as the network is made for: a background of zero, objects of even intensity and noise. An even
    region is the hard case, for there equation 1 divides by a small number.

    Raises
    ------
    ParityError
        If a difference exceeds 1e-5.
    """
    session = open_session(path, "cpu")
    found = {}
    for size in SIZES:
        image = _phantom(size)[None, None]
        with torch.inference_mode():
            expected = halves.network(torch.from_numpy(image)).permute(0, 2, 3, 4, 1).numpy()
        idle = np.zeros((1, halves.network.config.features, 1, 1, 1), np.float32)
        features = session.run(["image_features"], {"image": image, "features": idle})[0]
        came = session.run(["descriptors"], {"image": image[..., :1, :1, :1], "features": features})[0]
        found[" x ".join(map(str, size))] = float(np.abs(came - expected).max())
    worst = max(found, key=lambda size: found[size])
    if not found[worst] <= TOLERANCE:
        raise ParityError(
            f"torch and ONNX Runtime differ by {found[worst]:.1e} at size {worst}, more than {TOLERANCE:.0e}; "
            "look for diverged weights, or try other versions of torch and onnxruntime"
        )
    return found


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
