"""A model file back to a trainable network: the inverse of the export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from dsir_metric_train.model import MasrNet, ModelConfig
from numpy.typing import NDArray

from dsir_metric.config import from_dict
from dsir_metric.errors import ConfigError, ModelFileError
from dsir_metric.represent import load_card
from dsir_metric.represent.zoo import model_path
from dsir_metric_export.export import reference

__all__ = ["read_network"]

_TOLERANCE = 1e-4  # of the reference descriptor; another network lies at 1


def read_network(model: str | Path, weights_hash: str = "") -> MasrNet:
    """The network inside a model file, with its weights.

    Parameters
    ----------
    model : str or Path
        Name of a shipped model, or an .onnx file made by `export_network`.
    weights_hash : str
        Of the weights that are expected; any will do by default.

    Returns
    -------
    MasrNet
        Exported again it gives the same weights hash and the same descriptors.

    Raises
    ------
    ModelFileError
        If there is no such model, its card does not fit it, it has other weights than expected, or its graph is not
        one that the export makes.
    """
    path, card = model_path(model), load_card(model)
    if weights_hash and weights_hash != card.weights_hash:
        raise ModelFileError(
            f"{path}: has the weights {card.weights_hash[:12]}; {weights_hash[:12]} are expected: give their model"
        )
    graph = onnx.load(path).graph
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    try:
        network = MasrNet(from_dict(ModelConfig, card.config)).eval()
        state = {name: constants.get(f"network.{name}") for name in network.state_dict()}
        state["squeeze"], state["squeeze_bias"] = _squeeze(graph, constants, network.config)
        network.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    except (ConfigError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFileError(f"{path}: its weights cannot be read back ({reason}); train from a checkpoint") from error
    if not np.abs(np.subtract(reference(network), card.reference)).max() <= _TOLERANCE:
        raise ModelFileError(f"{path}: read back, the weights do not give the descriptors in the card; export it again")
    return network


def _squeeze(
    graph: onnx.GraphProto, constants: dict[str, NDArray[np.float32]], config: ModelConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (features, relations or 1) and bias of the linear layer, which the exporter folds into the relations.

    Each relation is multiplied by weights (1, features, 1, 1, 1), summed, and added to a scalar unless that is 0.
    """
    follows = {name: node for node in graph.node for name in node.input}
    weights: list[NDArray[np.float32]] = []
    bias: list[float] = []
    for node in graph.node:
        folded = [c for c in node.input if c in constants and constants[c].shape == (1, config.features, 1, 1, 1)]
        if node.op_type == "Mul" and folded:
            added = follows[follows[node.output[0]].output[0]]
            weights.append(constants[folded[0]].reshape(-1))
            bias.append(
                next((float(constants[c]) for c in added.input if added.op_type == "Add" and c in constants), 0.0)
            )
    columns = min(1, len(weights)) if config.shared_squeeze else len(weights)
    return np.reshape(weights[:columns], (columns, config.features)).T, np.reshape(bias[:columns], columns)
