"""The network as ONNX Runtime runs it: one file, two entries."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from dsir_metric.represent.card import ModelCard

__all__ = ["Memory", "Network"]


@dataclass(frozen=True)
class Memory:
    """Contiguous float32 numbers of somebody else, on the device that runs the network.

    Parameters
    ----------
    address : int
        Pointer to the first number; its owner keeps it alive.
    shape : tuple of int
    device : str
        "cpu" or "cuda".
    index : int
        Which GPU.
    """

    address: int
    shape: tuple[int, ...]
    device: str
    index: int = 0


class Network:
    """An open model.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    card : ModelCard
    again : callable, optional
        Opens the session again in a process that was forked from this one: the threads of a session, and its GPU, are
        not copied with it. Without it, such a process must not use the network.
    obstacle : str
        See `open_or_fall_back`.

    Attributes
    ----------
    card : ModelCard
    obstacle : str
    provider : str
        ONNX Runtime's name of what runs the network, such as "CPUExecutionProvider".
    """

    def __init__(
        self, session: Any, card: ModelCard, again: Callable[[], Any] | None = None, obstacle: str = ""
    ) -> None:
        self._opened, self._process, self._again = session, os.getpid(), again
        _networks.add(self)
        self.card, self.obstacle = card, obstacle
        self.provider: str = session.get_providers()[0]
        # ONNX Runtime wants every input fed: the entry that is not asked gets one voxel.
        self._idle = {
            "image": np.zeros((1, 1, 1, 1, 1), np.float32),
            "features": np.zeros((1, card.features, 1, 1, 1), np.float32),
        }

    @property
    def _session(self) -> Any:
        """The session of this process."""
        if self._again is not None and self._process != os.getpid():
            self._opened, self._process = self._again(), os.getpid()
        return self._opened

    @property
    def gpu(self) -> int | None:
        """Number of the GPU that runs the network; None on the CPU."""
        options = self._session.get_provider_options().get("CUDAExecutionProvider")
        return None if options is None else int(options.get("device_id", 0))

    def features(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Feature map (features, z, y, x) of intensities (z, y, x) in [0, 1]."""
        return self._run("image_features", image=image[None, None])

    def descriptors(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit vectors (z, y, x, channels) of a feature map (features, z, y, x)."""
        return self._run("descriptors", features=features[None])

    def features_into(self, image: Memory, features: Memory) -> None:
        """As `features`, of memory (1, 1, z, y, x), written into memory (1, features, z, y, x) on the same device."""
        self._run_bound("image", image, "image_features", features)

    def descriptors_into(self, features: Memory, descriptors: Memory) -> None:
        """As `descriptors`, of memory (1, features, z, y, x), into memory (1, z, y, x, channels) on the same device."""
        self._run_bound("features", features, "descriptors", descriptors)

    def _run_bound(self, entry: str, given: Memory, output: str, result: Memory) -> None:
        """Run without a copy. Both memories must be ready; the result is, when this returns."""
        binding = self._session.io_binding()
        for name, idle in self._idle.items():
            if name != entry:
                binding.bind_cpu_input(name, idle)
        binding.bind_input(entry, given.device, given.index, np.float32, given.shape, given.address)
        binding.bind_output(output, result.device, result.index, np.float32, result.shape, result.address)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def _run(self, output: str, **feed: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = self._session.run([output], {**self._idle, **feed})[0][0]
        return result


_networks: WeakSet[Network] = WeakSet()


def _abandon_sessions() -> None:
    """Keep the sessions of the parent for good: one that is destroyed waits for its threads, which are not here."""
    for network in _networks:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(network._opened))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_sessions)
