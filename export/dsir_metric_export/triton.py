"""A model repository for Triton, and the manifest with which KServe runs it."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx

from dsir_metric.bounds import Range, quoted
from dsir_metric.config import Settings
from dsir_metric.errors import ConfigError
from dsir_metric.io import atomic, check_apart, prepare_folder
from dsir_metric.represent import load_card
from dsir_metric.represent.wire import CROP, IMAGE, MODEL_NAME, STRIDE, WINDOW, Offer, Precision, Tensor
from dsir_metric_export.whole import whole_graph

__all__ = ["MAX_VOXELS", "Deployment", "export_triton"]

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # what Kubernetes takes as well
MAX_VOXELS = 8_000_000  # 200^3
_BYTES_PER_VOXEL = 1000  # on the CPU, about
_WARM_UP = 64  # voxels along an edge
_SERVED = 2  # versions
_TYPES = {"FP32": "TYPE_FP32", "FP16": "TYPE_FP16", "FP64": "TYPE_FP64", "INT64": "TYPE_INT64", "UINT8": "TYPE_UINT8"}


@dataclass(frozen=True)
class Deployment(Settings):
    """How a server runs the model.

    Parameters
    ----------
    name : str
        By which clients ask for it; lower-case letters, digits and hyphens.
    version : int
        Folder of the graph. The two latest are served.
    precision : {"fp16", "fp32"}
        Of the descriptors that are answered.
    max_voxels : int
        The largest image of one request; clients cut larger ones into tiles.
    instances : int
        Requests that a device works on at the same time.

    Raises
    ------
    ConfigError
        If one of these is out of range.
    """

    name: str = MODEL_NAME
    version: Annotated[int, Range(1, 1_000_000_000)] = 1
    precision: Precision = "fp16"
    max_voxels: Annotated[int, Range(1, 1_000_000_000)] = MAX_VOXELS
    instances: Annotated[int, Range(1, 1024)] = 1

    def check_together(self) -> None:
        """See that the name can be that of a server."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name {quoted(self.name)} is no name for a server; use lower-case letters, digits and hyphens"
            )


def export_triton(
    repository: str | Path, model: str | Path = "default", deployment: Deployment | None = None
) -> tuple[Path, Path]:
    """Write a model into a Triton model repository, which is made where there is none.

    Parameters
    ----------
    repository : str or Path
        Folder for NAME/config.pbtxt, NAME/VERSION/model.onnx, NAME/warmup/ and NAME.kserve.yaml. Other models and
        versions in it are left alone.
    model : str or Path
        Name of a shipped model, or an .onnx file made by `dsir-metric export`.
    deployment : Deployment, optional

    Returns
    -------
    tuple of Path
        The folder of the model, and the manifest.

    Raises
    ------
    ModelFileError, ParityError
        See `whole_graph`.
    ConfigError
        If a version that is there, and stays in use, answers with other tensors, or is the model itself.
    DataError
        If `repository` cannot be written.
    """
    deployment = deployment or Deployment()
    folder = Path(repository) / deployment.name
    manifest = folder.with_name(f"{deployment.name}.kserve.yaml")
    graph = folder / str(deployment.version) / "model.onnx"
    check_apart([("the model", Path(model))], [graph, manifest, folder / "config.pbtxt"])
    offer = Offer(load_card(model), deployment.max_voxels, deployment.precision)
    whole = whole_graph(model, offer)
    _check_versions(folder, deployment.version, whole)
    contents = {
        folder / "config.pbtxt": _config(deployment, offer).encode(),  # renamed last: Triton looks for it
        manifest: _manifest(deployment).encode(),
        **{folder / "warmup" / name: value for name, value in _warm_up().items()},
        graph: whole.SerializeToString(),
    }
    for parent in sorted({path.parent for path in contents}):
        prepare_folder(parent)
    with ExitStack() as together:
        for path, content in contents.items():
            together.enter_context(atomic(path)).write_bytes(content)
    return folder, manifest


def _check_versions(folder: Path, version: int, whole: onnx.ModelProto) -> None:
    """See that the versions that are served have the same outputs: config.pbtxt holds for all of them."""
    files = {int(path.parent.name): path for path in folder.glob("*/model.onnx") if path.parent.name.isdecimal()}
    for number in sorted({*files, version})[-_SERVED:]:
        if number != version and _outputs(found := onnx.load(files[number])) != _outputs(whole):
            raise ConfigError(
                f"{files[number]}: gives {_outputs(found)}, the new version {_outputs(whole)}, and a server has one "
                "configuration for both; choose the same precision, another name, or delete that version"
            )


def _outputs(model: onnx.ModelProto) -> str:
    told = []
    for entry in model.graph.output:
        tensor = entry.type.tensor_type
        sizes = [-1 if size.dim_param else size.dim_value for size in tensor.shape.dim]
        told.append(f"{entry.name} {onnx.TensorProto.DataType.Name(tensor.elem_type)} {sizes}")
    return ", ".join(told)


def _config(deployment: Deployment, offer: Offer) -> str:
    """Text of config.pbtxt, a `ModelConfig` in protobuf's text format."""
    tensors = [
        f"{kind} [\n{_separated(tensor)}\n]"
        for kind, group in (("input", offer.inputs), ("output", offer.outputs))
        for tensor in group
    ]
    return "\n".join(
        [
            f"# {offer.card.name}, weights {offer.card.weights_hash[:12]}, made by `dsir-metric export --triton`",
            f'name: "{deployment.name}"',
            'backend: "onnxruntime"',
            'default_model_filename: "model.onnx"',
            "max_batch_size: 0  # volumes differ in size: one a request",
            *tensors,
            f"instance_group [ {{ kind: KIND_AUTO count: {deployment.instances} }} ]",
            f"version_policy: {{ latest: {{ num_versions: {_SERVED} }} }}",
            "model_warmup [",
            "  {",
            '    name: "cube"',
            "    batch_size: 1",
            *(f"    {line}" for line in _warm_up_inputs()),
            "  }",
            "]",
            "",
        ]
    )


def _separated(tensor: Tensor) -> str:
    return f'  {{ name: "{tensor.name}" data_type: {_TYPES[tensor.datatype]} dims: {list(tensor.shape)} }}'


def _warm_up() -> dict[str, bytes]:
    """Content of the files of the warm-up request, little-endian as Triton reads them."""
    values = {
        WINDOW.name: np.array([0, 1], "<f8"),
        STRIDE.name: np.array([1], "<i8"),
        CROP.name: np.array([[0] * 3, [_WARM_UP] * 3], "<i8"),
    }
    return {name: value.tobytes() for name, value in values.items()}


def _warm_up_inputs() -> list[str]:
    """One request as a client would send it; the image is random, the rest comes from files."""
    lines = []
    for tensor in (IMAGE, WINDOW, STRIDE, CROP):
        sizes = [_WARM_UP if n < 0 else n for n in tensor.shape]
        data = "random_data: true" if tensor is IMAGE else f'input_data_file: "{tensor.name}"'
        lines.append(
            f'inputs {{ key: "{tensor.name}" value {{ data_type: {_TYPES[tensor.datatype]} dims: {sizes} {data} }} }}'
        )
    return lines


def _manifest(deployment: Deployment) -> str:
    """An InferenceService that runs this repository on KServe's Triton runtime."""
    gibibytes = 1 + -(-deployment.max_voxels * _BYTES_PER_VOXEL * deployment.instances >> 30)
    return f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {deployment.name}
spec:
  predictor:
    model:
      modelFormat:
        name: onnx
      runtime: kserve-tritonserver
      protocolVersion: v2 # grpc-v2, and the port below, for gRPC
      # ports:
      #   - {{ name: h2c, containerPort: 9000, protocol: TCP }}
      storageUri: pvc://models # where you copied the folder that holds {deployment.name}/
      resources:
        requests:
          cpu: "2"
          memory: {gibibytes}Gi
        limits: # both: the runtime's own are one core and 2Gi
          cpu: "2"
          memory: {gibibytes}Gi
"""
