"""A checkpoint read back, and gone on from only by the recipe that made it. Needs no Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsir_metric.config import from_dict, to_dict
from dsir_metric.errors import ConfigError, DataError, ModelFileError
from dsir_metric.files import open_regular
from dsir_metric.io import atomic
from dsir_metric_train.model import MasrNet, ModelConfig
from dsir_metric_train.recipe import Recipe

__all__ = [
    "check_resumable",
    "keep_mixture",
    "load_network",
    "mixture_of",
    "network_weights",
    "read_checkpoint",
    "read_content",
    "refuse_other_recipe",
]

_PREFIX = "network."
_MIXTURE = "mixture"  # of channels, see `calibration`


def read_checkpoint(path: str | Path) -> tuple[MasrNet, dict[str, Any]]:
    """Network of a checkpoint, in evaluation mode on the CPU, and all of its content.

    Parameters
    ----------
    path : path
        Lightning checkpoint. `hyper_parameters` holds "model", "recipe" and "data", `state_dict` the weights under
        "network.", "mixture" what `keep_mixture` was given.

    Raises
    ------
    DataError
        If it cannot be read.
    ModelFileError
        If it is damaged or not one of this training.
    """
    content = read_content(path, "train")
    try:
        settings = content["hyper_parameters"]
        network = MasrNet(from_dict(ModelConfig, settings["model"]))
        network.load_state_dict(network_weights(content))
        if not {"recipe", "data"} <= set(settings):
            raise KeyError("recipe and data are absent")
        if not isinstance(settings["recipe"], dict) or not isinstance(settings["data"], list | tuple):
            raise TypeError("recipe is no table, or data no list")
        if not isinstance(content.get(_MIXTURE, torch.empty(0)), Tensor):
            raise TypeError("mixture is no tensor")
    except (ConfigError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error)[:300].split())
        raise ModelFileError(f"{path}: is no checkpoint of `dsir-metric train` ({reason})") from error
    return network.eval(), content


def read_content(path: str | Path, command: str) -> Any:
    """What a checkpoint holds, on the CPU; raises as `read_checkpoint`, and names the `command` that makes such."""
    try:
        with open_regular(path) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give one of `dsir-metric {command}`") from error
    except Exception as error:  # whatever unpickling damaged bytes raises
        raise ModelFileError(
            f"{path}: is no checkpoint, or a damaged one; give one of `dsir-metric {command}`"
        ) from error


def mixture_of(content: Mapping[str, Any]) -> list[list[float]]:
    """The mixture of channels, (channels, channels), in what a checkpoint holds; empty where no calibration ended it.

    Numbers are those of single precision.
    """
    found: list[list[float]] = content.get(_MIXTURE, torch.empty(0)).float().tolist()
    return found


def keep_mixture(path: str | Path, mixture: Tensor) -> None:
    """Put the mixture of channels that a run ends with into its checkpoint, beside the weights.

    Parameters
    ----------
    path : path
        The checkpoint, written anew, whole or not at all.
    mixture : Tensor of float64, shape (channels, channels)
        See `dsir_metric_train.calibration.calibration`.

    Raises
    ------
    DataError
        If the checkpoint cannot be read or written.
    """
    content = read_content(path, "train")
    with atomic(path) as temporary:
        torch.save({**content, _MIXTURE: mixture}, temporary)


def network_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """State of the network in what a checkpoint holds."""
    return {k.removeprefix(_PREFIX): v for k, v in content["state_dict"].items() if k.startswith(_PREFIX)}


def load_network(checkpoint: str | Path) -> MasrNet:
    """The trained network of a checkpoint; see `read_checkpoint`."""
    return read_checkpoint(checkpoint)[0]


def check_resumable(path: Path, recipe: Recipe) -> None:
    """Refuse to go on from a checkpoint, if there is one, of another recipe: no uninterrupted run would end so.

    Only a run without decay may be made longer or shorter, for there no step depends on their number.

    Raises
    ------
    ConfigError
        If the recipe is another one; it says in what.
    DataError, ModelFileError
        See `read_checkpoint`.
    """
    if not path.exists():
        return
    before = from_dict(Recipe, read_checkpoint(path)[1]["hyper_parameters"]["recipe"])
    if not recipe.optimisation.decay:
        before = replace(before, optimisation=replace(before.optimisation, steps=recipe.optimisation.steps))
    refuse_other_recipe(path, before, recipe)


def refuse_other_recipe(path: Path, before: object, recipe: object) -> None:
    """ConfigError unless two recipes, dataclasses of one kind, are the same; it says in what they differ."""
    if before != recipe:
        changes = "; ".join(_changes(to_dict(before), to_dict(recipe)))
        raise ConfigError(
            f"{path}: was made by another recipe ({changes}); give it again, or do not resume, or choose another folder"
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    for name, value in now.items():
        if isinstance(value, Mapping):
            yield from _changes(before[name], value, f"{within}{name}.")
        elif before[name] != value:
            plain = not isinstance(value, list | tuple)
            yield f"{within}{name} was {before[name]}, now {value}" if plain else f"other {within}{name}"
