"""Checkpoint to model file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from dsir_metric_train.checkpoint import mixture_of, read_checkpoint
from dsir_metric_train.model import MasrNet

from dsir_metric.errors import ModelFileError
from dsir_metric.io import atomic, check_apart
from dsir_metric.represent.card import FORMAT, ModelCard
from dsir_metric.represent.probe import probe_volume
from dsir_metric.represent.weights import weights_hash
from dsir_metric_export.halves import INPUTS, OUTPUTS, Halves
from dsir_metric_export.parity import measure_parity

__all__ = ["export_model", "export_network", "reference", "to_onnx"]

OPSET = 18


def export_model(checkpoint: Path, out: Path, name: str | None = None) -> ModelCard:
    """Turn a checkpoint of the training into a model file.

    Parameters
    ----------
    checkpoint : Path
        As `dsir_metric_train.loop.train` leaves it.
    out : Path
        The .onnx file to write, whole or not at all.
    name : str or None
        Name in the card; None takes it from `out`.

    Returns
    -------
    ModelCard

    Raises
    ------
    DataError
        If the checkpoint cannot be read or `out` cannot be written.
    ModelFileError
        If the checkpoint is not one of this training.
    ParityError
        If torch and ONNX Runtime disagree.
    ConfigError
        If `out` is the checkpoint.
    """
    check_apart([("the checkpoint", Path(checkpoint))], [Path(out)])
    network, content = read_checkpoint(checkpoint)
    settings = content["hyper_parameters"]
    mixture = mixture_of(content)
    return export_network(network, out, name=name, recipe=settings["recipe"], data=settings["data"], mixture=mixture)


def export_network(
    network: MasrNet,
    out: Path,
    *,
    name: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    data: Iterable[Mapping[str, Any]] = (),
    mixture: Sequence[Sequence[float]] = (),
) -> ModelCard:
    """Write a network as a model file; see `export_model`."""
    out = Path(out)
    halves = Halves(network).eval()
    model = _to_onnx(halves)
    with atomic(out) as temporary:
        onnx.save(model, temporary)
        metadata = _card(halves, name or out.stem, recipe or {}, data, mixture, temporary).to_metadata()
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, temporary)
    return ModelCard.from_metadata(metadata, out)


def _to_onnx(halves: Halves) -> onnx.ModelProto:
    example = (torch.rand(1, 1, 24, 32, 40), torch.rand(1, halves.network.config.features, 17, 19, 21))
    return to_onnx(halves, example, INPUTS, OUTPUTS, OPSET)


def to_onnx(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    opset: int,
    multiple: int = 1,
) -> onnx.ModelProto:
    """Graph of a module that takes volumes (1, channels, z, y, x).

    Their sizes may be any, or, with a `multiple`, any multiples of it, the same ones for all volumes.

    Raises
    ------
    ModelFileError
        If torch makes none.
    """
    free = dict.fromkeys((2, 3, 4), torch.export.Dim.DYNAMIC)
    if multiple > 1:
        free = {axis: multiple * torch.export.Dim(name, min=1) for axis, name in zip((2, 3, 4), "zyx", strict=True)}
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=(free,) * len(example),
            verbose=False,
        )
    if program is None:
        raise ModelFileError("torch.onnx.export gave no program; use torch 2.5 or newer")
    model: onnx.ModelProto = program.model_proto
    _forget_the_machine(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model


def _forget_the_machine(graph: onnx.GraphProto) -> None:
    """Drop the exporter's notes on every part of the graph: they hold stack traces with the paths of this machine."""
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own deprecations and its word on packages that are not needed."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _card(
    halves: Halves,
    name: str,
    recipe: Mapping[str, Any],
    data: Iterable[Mapping[str, Any]],
    mixture: Sequence[Sequence[float]],
    file: Path,
) -> ModelCard:
    """Card of a network that lies, without a card, in `file`."""
    network = halves.network
    shape = network.config
    channels = max(network.count, shape.channels)
    return ModelCard(
        format=FORMAT,
        name=name,
        channels=shape.channels,
        features=shape.features,
        multiple=shape.multiple,
        receptive_field=shape.receptive_field,
        halo=-(-(shape.receptive_field - shape.head_reach) // shape.multiple) * shape.multiple,
        head_halo=shape.head_reach,
        bytes_per_voxel=4 * (4 * shape.widths[0] + 2 * shape.widths[1]),  # measured: 250 for widths 8, 16
        head_bytes_per_voxel=4 * (3 * channels + 8 * shape.features),  # measured: 420 for 24 channels, 4 features
        intensity="auto",
        config=shape.to_dict(),
        recipe=recipe,
        data=tuple(data),
        weights_hash=weights_hash(file),
        parity=measure_parity(halves, file),
        reference=reference(network),
        versions={"torch": str(torch.__version__), "onnx": onnx.__version__},
        mixture=tuple(map(tuple, mixture)),
    )


def reference(network: MasrNet) -> tuple[float, ...]:
    """Descriptor of the middle voxel of the probe volume."""
    volume = torch.from_numpy(probe_volume())
    with torch.inference_mode():
        descriptors = network(volume[None, None])[0]
    z, y, x = volume.shape
    return tuple(descriptors[:, z // 2, y // 2, x // 2].tolist())
