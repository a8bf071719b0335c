"""What a network does to a few small inputs: how far it sees, and a volume to compare implementations on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsir_metric.represent.network import Network

__all__ = ["feature_reach", "head_reach", "probe_volume", "repeats"]

_IMPULSE = 1e30  # so large that no rounding hides it, and small enough not to overflow on its way
_LONGEST = 1024  # voxels; a halo in a card may be nonsense


def probe_volume() -> NDArray[np.float32]:
    """The same 17 x 20 x 23 voxels (z, y, x) in [0, 1] everywhere: whole numbers of no visible order, over 255."""
    z, y, x = np.indices((17, 20, 23))
    return _scattered(z * 181 + y * 97 + x * 53)


def feature_reach(network: Network) -> int:
    """Voxels on one side that can change a feature: how far an impulse is seen, wherever in a coarse voxel it lies."""
    length, middle = _strip(network)
    resting = network.features(np.zeros((1, 1, length), np.float32))
    places = range(middle, middle + network.card.multiple)
    return max(_spread(_response(network, length, at), resting, at) for at in places)


def head_reach(network: Network) -> int:
    """Voxels on one side of the feature map that can change a descriptor."""
    middle = min(network.card.head_halo, _LONGEST) + 1
    channel, _, _, x = np.indices((network.card.features, 1, 1, 2 * middle + 1))
    features = _scattered(channel * 181 + x * 53)
    resting = network.descriptors(features)
    features[..., middle] += 1
    return _spread(np.moveaxis(network.descriptors(features), -1, 0), np.moveaxis(resting, -1, 0), middle)


def repeats(network: Network) -> bool:
    """Whether an image moved by the card's `multiple` has its features moved by as much."""
    length, middle = _strip(network)
    step, halo = network.card.multiple, min(network.card.halo, _LONGEST)
    one, other = (_response(network, length, at)[..., at - halo : at + halo + 1] for at in (middle, middle + step))
    return bool(np.allclose(one, other, rtol=1e-4))


def _strip(network: Network) -> tuple[int, int]:
    """Length of a row of voxels whose middle is not disturbed by its ends, and that middle."""
    half = 2 * min(network.card.halo, _LONGEST) + network.card.multiple
    return 2 * half + network.card.multiple, half


def _response(network: Network, length: int, at: int) -> NDArray[np.float32]:
    """Features (features, 1, 1, x) of an impulse in a dark row."""
    row = np.zeros((1, 1, length), np.float32)
    row[..., at] = _IMPULSE
    return network.features(row)


def _spread(values: NDArray[np.float32], resting: NDArray[np.float32], at: int) -> int:
    """How far from `at`, along x, the last axis, two maps differ."""
    changed = np.flatnonzero((values != resting).any(axis=(0, 1, 2)))
    return int(np.abs(changed - at).max(initial=0))


def _scattered(numbers: NDArray[np.int_]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = (numbers * numbers % 251 / 255).astype(np.float32)
    return values
