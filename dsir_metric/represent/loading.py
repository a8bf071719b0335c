"""A model file is opened; one whose card does not fit it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dsir_metric.errors import ConfigError, ModelFileError
from dsir_metric.represent.card import ModelCard
from dsir_metric.represent.network import Network
from dsir_metric.represent.probe import feature_reach, head_reach, probe_volume, repeats
from dsir_metric.represent.remote import RemoteNetwork, is_remote
from dsir_metric.represent.runtime import metadata_of, open_or_fall_back, open_session
from dsir_metric.represent.weights import weights_hash
from dsir_metric.represent.zoo import model_path

__all__ = ["load_card", "open_network", "verify"]

Sizes = tuple[int | None, ...]
_TOLERANCE = 1e-4  # other processors round otherwise; another network lies at 1


def load_card(model: str | Path) -> ModelCard:
    """Card of a model, checked against its file.

    Parameters
    ----------
    model : str or Path
        "default", another name in the package's `models` folder, a file, or the address of a model on a server, whose
        card is taken as it is.

    Raises
    ------
    ModelFileError
        If there is no such model, the file is no ONNX, it has no card or one of another format, or the card has other
        entries, channels, weights or reach than the file.
    ConfigError, MissingDependencyError, RemoteError
        See `RemoteNetwork`.
    """
    if is_remote(model):
        return RemoteNetwork(str(model)).card
    path = model_path(model)
    network = _open(path)
    for _ in _fits(network, path):
        pass
    return network.card


def open_network(
    model: str | Path = "default",
    device: str = "auto",
    threads: int | None = None,
    gpu_memory_bytes: int | None = None,
) -> Network:
    """Open a model; its card is checked first.

    Parameters
    ----------
    model : str or Path
        Name of a shipped model, or a file.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    threads : int or None
        CPU threads; None for every core.
    gpu_memory_bytes : int or None
        The most that ONNX Runtime takes on the GPU.

    Raises
    ------
    ModelFileError, ConfigError, MissingDependencyError
        See `load_card` and `open_or_fall_back`.

    Notes
    -----
    A process that is forked later opens the file again when it first uses the network, and is refused if the file has
    another model by then, or if the GPU is out of its reach.
    """
    path = model_path(model).absolute()
    (session, obstacle), card = open_or_fall_back(path, device, threads, gpu_memory_bytes), load_card(path)
    provider = session.get_providers()[0]

    def again() -> Any:
        if load_card(path) != card:
            raise ModelFileError(f"{path}: has another model than when it was opened; start the workers again")
        session, _ = open_or_fall_back(path, device, threads, gpu_memory_bytes)
        if session.get_providers()[0] != provider:
            raise ConfigError(
                f"a forked process cannot use the GPU of its parent ({provider}): start workers with "
                "multiprocessing.get_context('spawn'), or choose device cpu"
            )
        return session

    return Network(session, card, again, obstacle)


def verify(model: str | Path) -> Iterator[str]:
    """Check a model file thoroughly, on the CPU; one line for each thing that was found in order.

    After what `load_card` checks, a small volume goes through the network.

    Raises
    ------
    ModelFileError
        At the first thing that is not in order.
    """
    path = model_path(model)
    network = _open(path)
    yield f"card: {network.card.name}, format {network.card.format}"
    yield from _fits(network, path)
    volume = probe_volume()
    descriptors = network.descriptors(network.features(volume))
    lengths = np.linalg.norm(descriptors, axis=-1)
    if not np.all(np.abs(lengths - 1) <= _TOLERANCE):
        raise ModelFileError(f"{path}: descriptors are no unit vectors; export or train the model again")
    size = " x ".join(map(str, volume.shape))
    yield f"descriptors: finite and of unit length on {size} voxels (within {np.abs(lengths - 1).max():.1e})"
    z, y, x = volume.shape
    off = float(np.abs(descriptors[z // 2, y // 2, x // 2] - np.array(network.card.reference)).max())
    if not off <= _TOLERANCE:
        raise ModelFileError(
            f"{path}: a descriptor differs by {off:.1e} from the reference in the card, more than {_TOLERANCE:.0e}; "
            "export the model again, or try another version of onnxruntime"
        )
    yield f"reference: the descriptor that torch made at export is met within {off:.1e}"
    largest = np.max([found.get("largest", np.nan) for found in network.card.parity.values()] or [np.nan])
    if not largest <= _TOLERANCE:
        raise ModelFileError(
            f"{path}: torch and ONNX Runtime differed by {largest:.1e} at export, more than {_TOLERANCE:.0e}; export "
            "the model again"
        )
    yield f"parity: torch and ONNX Runtime differed by {largest:.1e} at most at export"


def _open(path: Path) -> Network:
    """A model on one thread of the CPU, with its card as it stands."""
    session = open_session(path, "cpu", 1)
    card = ModelCard.from_metadata(metadata_of(session, path), path)
    any_size = (None, None, None)
    claimed: dict[str, Sizes] = {
        "image": (1, 1, *any_size),
        "features": (1, card.features, *any_size),
        "image_features": (1, card.features, *any_size),
        "descriptors": (1, *any_size, card.channels),
    }
    found = {entry.name: _sizes(entry) for entry in (*session.get_inputs(), *session.get_outputs())}
    for name in sorted(claimed | found):
        if claimed.get(name) != found.get(name):
            raise ModelFileError(
                f"{path}: {name} is {_told(claimed.get(name))} by the card and {_told(found.get(name))} in the graph; "
                "make the file with `dsir-metric export`"
            )
    return Network(session, card)


def _fits(network: Network, path: Path) -> Iterator[str]:
    """Compare the card with the file; a line for each thing that fits."""
    card = network.card
    yield f"graph: image to {card.features} features to {card.channels} channels, as the card says"
    found = weights_hash(path)
    if found != card.weights_hash:
        raise ModelFileError(
            f"{path}: the weights have the hash {found[:12]}, the card says {card.weights_hash[:12]}; the file was "
            "changed: fetch or export it again"
        )
    yield f"weights: hash {found} is that of the card"
    far, near = feature_reach(network), head_reach(network)
    claims = f"receptive field {card.receptive_field}, halo {card.halo} and {card.head_halo}, multiple {card.multiple}"
    exact = far <= card.halo and near == card.head_halo and far + near <= card.receptive_field
    tight = card.halo < far + 2 * card.multiple and card.receptive_field <= card.halo + near
    if not (exact and tight and card.halo % card.multiple == 0 and repeats(network)):
        raise ModelFileError(
            f"{path}: the card says {claims}; the two halves of the graph reach {far} and {near} voxels, or repeat "
            "otherwise: export the model again"
        )
    yield f"reach: {claims}; measured {far} and {near} voxels"


def _sizes(entry: Any) -> Sizes:
    """Sizes of an input or output; None where any will do."""
    return tuple(size if isinstance(size, int) else None for size in entry.shape)


def _told(sizes: Sizes | None) -> str:
    return "absent" if sizes is None else " x ".join("?" if size is None else str(size) for size in sizes)
