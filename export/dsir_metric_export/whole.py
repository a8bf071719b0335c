"""A model file to one graph with everything that a server needs inside. No torch: the weights come from the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from dsir_metric.errors import ParityError
from dsir_metric.represent.probe import probe_volume
from dsir_metric.represent.runtime import onnxruntime
from dsir_metric.represent.wire import CARD, CROP, DESCRIPTORS, IMAGE, STRIDE, WINDOW, Offer, Precision, Tensor
from dsir_metric.represent.zoo import model_path

__all__ = ["TOLERANCE", "whole_graph"]

TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-4 + 2**-12}  # of a component, against torch at export
_TYPES = {
    "FP32": TensorProto.FLOAT,
    "FP16": TensorProto.FLOAT16,
    "FP64": TensorProto.DOUBLE,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
}


def whole_graph(model: str | Path, offer: Offer) -> onnx.ModelProto:
    """Join the two entries of a model file, with what comes before and after them.

    Inside are: the intensity window, padding to the multiple, both halves, the crop (taken before the second half with
    the margin that half needs), the stride, the cast, and the offer as an output. Names and types are those of
    `dsir_metric.represent.wire`.

    Parameters
    ----------
    model : str or Path
        Name of a shipped model, or an .onnx file made by `dsir-metric export`.
    offer : Offer
        The model's card, the precision of the descriptors, and what clients are told is the largest image.

    Returns
    -------
    onnx.ModelProto
        With the offer in its metadata and the weights hash of the file.

    Raises
    ------
    ModelFileError
        If there is no such model.
    ParityError
        If the graph does not give the descriptor in the card.
    """
    whole = onnx.load(model_path(model))
    graph = whole.graph
    before, between, after = _before(), _between(offer.card.head_halo), _after(offer)
    _rename(graph, {IMAGE.name: "scaled", "features": "near", DESCRIPTORS: "all_descriptors"})
    inner = list(graph.node)
    for part in (graph.node, graph.input, graph.output, graph.value_info):
        del part[:]
    graph.node.extend([*before, *_sorted_halves(inner, between), *after])
    graph.input.extend(_value(tensor) for tensor in offer.inputs)
    graph.output.extend(_value(tensor) for tensor in offer.outputs)
    del whole.metadata_props[:]
    helper.set_model_props(whole, offer.to_metadata())
    onnx.checker.check_model(whole, full_check=True)
    _check(whole, offer)
    return whole


def _before() -> list[NodeProto]:
    """Raw intensities to [0, 1], in the order of operations of `IntensityRule.apply`, so that the bits are the same."""
    return [
        _constant("zero", np.array([0])),
        _constant("one", np.array([1])),
        _constant("two", np.array([2])),
        _constant("black", np.float32(0)),
        _constant("white", np.float32(1)),
        _node("Slice", [WINDOW.name, "zero", "one"], "low"),
        _node("Slice", [WINDOW.name, "one", "two"], "high"),
        _node("Sub", ["high", "low"], "width"),
        _node("Cast", ["low"], "low_single", to=TensorProto.FLOAT),
        _node("Cast", ["width"], "width_single", to=TensorProto.FLOAT),
        _node("Sub", [IMAGE.name, "low_single"], "above_low"),
        _node("Div", ["above_low", "width_single"], "unclipped"),
        _node("Clip", ["unclipped", "black", "white"], "scaled"),
    ]


def _between(halo: int) -> list[NodeProto]:
    """The crop and the margin that the second half needs, cut out of the feature map."""
    return [
        _constant("flat", np.array([3])),
        _constant("halo", np.array([halo] * 3)),
        _constant("feature_axes", np.array([2, 3, 4])),
        _node("Slice", [CROP.name, "zero", "one", "zero"], "first_row"),
        _node("Slice", [CROP.name, "one", "two", "zero"], "last_row"),
        _node("Reshape", ["first_row", "flat"], "first"),
        _node("Reshape", ["last_row", "flat"], "last"),
        _node("Sub", ["first", "halo"], "wanted_first"),
        _node("Max", ["wanted_first", "zero"], "near_first"),
        _node("Add", ["last", "halo"], "near_last"),  # a Slice ends where the data ends
        _node("Slice", ["image_features", "near_first", "near_last", "feature_axes"], "near"),
    ]


def _after(offer: Offer) -> list[NodeProto]:
    """Crop and stride of the descriptors, their precision, and the card."""
    kind = _TYPES[offer.precision.upper()]
    return [
        _constant("descriptor_axes", np.array([1, 2, 3])),
        _node("Concat", [STRIDE.name] * 3, "steps", axis=0),
        _node("Sub", ["first", "near_first"], "inner_first"),
        _node("Sub", ["last", "near_first"], "inner_last"),
        _node("Slice", ["all_descriptors", "inner_first", "inner_last", "descriptor_axes", "steps"], "cropped"),
        _node("Cast", ["cropped"], DESCRIPTORS, to=kind),
        _constant(CARD, offer.to_bytes()),
    ]


def _sorted_halves(nodes: Sequence[NodeProto], between: Sequence[NodeProto]) -> list[NodeProto]:
    """Nodes of the file with `between` after the first half; ONNX wants a node after those it reads."""
    late = {"near"}
    first, second = [], []
    for node in nodes:
        if late.intersection(node.input):
            late.update(node.output)
            second.append(node)
        else:
            first.append(node)
    return [*first, *between, *second]


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


def _constant(name: str, value: NDArray[np.generic] | np.generic) -> NodeProto:
    """A constant in a node of its own: an initialiser would count as a weight."""
    return helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.asarray(value)))


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    sizes = [f"{tensor.name}_{axis}" if n < 0 else n for axis, n in enumerate(tensor.shape)]
    return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.datatype], sizes)


def _check(whole: onnx.ModelProto, offer: Offer) -> None:
    """See that the graph gives the reference in the card, of one voxel alone and with a margin that is cut off."""
    image = probe_volume()
    middle = [n // 2 for n in image.shape]
    feed = {
        IMAGE.name: image[None, None] * np.float32(3) - np.float32(1),
        WINDOW.name: np.array([-1.0, 2.0]),
        STRIDE.name: np.array([1]),
        CROP.name: np.array([middle, [n + 1 for n in middle]]),
    }
    session = onnxruntime().InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    came = session.run([DESCRIPTORS], feed)[0].ravel().astype(np.float64)
    off = float(np.abs(came - np.array(offer.card.reference)).max())
    if not off <= TOLERANCE[offer.precision]:
        raise ParityError(
            f"the graph for servers differs by {off:.1e} from the descriptor in the card of {offer.card.name!r}, more "
            f"than {TOLERANCE[offer.precision]:.1e}; try other versions of onnx and onnxruntime"
        )
