"""Model repositories for servers: the graph equals the local representation, the configuration fits Triton's schema."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from dsir_metric_cli.main import app
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, DataError, ModelFileError, ParityError
from dsir_metric.represent import Representer, load_card
from dsir_metric.represent.intensity import IntensityRule
from dsir_metric.represent.weights import weights_hash
from dsir_metric.represent.wire import Offer

onnx = pytest.importorskip("onnx")
from dsir_metric_export import Deployment, export_triton  # noqa: E402
from dsir_metric_export import triton as writing  # noqa: E402
from dsir_metric_export.whole import whole_graph  # noqa: E402

MODEL = "default"
SHAPE = (21, 30, 19)
LOW, HIGH = -37.3, 812.9


def run(graph: Any, image: NDArray[np.float32], crop: list[list[int]], stride: int = 1) -> NDArray[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {
        "image": image[None, None],
        "window": np.array([LOW, HIGH]),
        "stride": np.array([stride]),
        "crop": np.array(crop),
    }
    out: NDArray[Any] = session.run(["descriptors"], feed)[0]
    return out


@pytest.fixture(scope="module")
def image() -> NDArray[np.float32]:
    """Blocks and noise, some of it outside of the window."""
    random = np.random.default_rng(1)
    blocks = random.random((4, 5, 4)).repeat(6, 0).repeat(6, 1).repeat(6, 2)[:21, :30, :19]
    return (1000 * blocks - 100 + 20 * random.standard_normal(SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def local(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the Representer makes of it."""
    representer = Representer(MODEL, device="cpu", threads=1)
    return representer(sitk.GetImageFromArray(image), IntensityRule("window", LOW, HIGH)).values


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 2**-12 + 1e-6)])
@pytest.mark.parametrize("stride", [1, 3])
def test_graph_equals_the_representer(
    image: NDArray[np.float32],
    local: NDArray[np.float32],
    precision: Any,
    tolerance: float,
    stride: int,
) -> None:
    graph = whole_graph(MODEL, Offer(load_card(MODEL), 1000, precision))
    for crop in ([[0, 0, 0], list(SHAPE)], [[5, 0, 9], [13, 30, 18]]):
        came = run(graph, image, crop, stride)
        box = tuple(slice(a, b, stride) for a, b in zip(*crop, strict=True))
        assert came.dtype == ("float16" if precision == "fp16" else "float32")
        assert came.shape == (1, *local[box].shape)
        assert np.abs(came[0].astype(np.float32) - local[box]).max() <= tolerance


def test_padded_tile_gives_its_core() -> None:
    card = load_card(MODEL)
    graph = whole_graph(MODEL, Offer(card, 10000, "fp32"))
    halo = -(-(card.halo + card.head_halo) // card.multiple) * card.multiple
    image = np.random.default_rng(0).normal(300, 200, (9, halo + 40, 10)).astype(np.float32)
    whole = run(graph, image, [[0] * 3, [9, halo + 40, 10]])[0, :, halo + 24 :]
    came = run(graph, np.ascontiguousarray(image[:, 24:]), [[0, halo, 0], [9, halo + 16, 10]])[0]
    assert np.abs(came - whole).max() <= 1e-6
    less = run(graph, np.ascontiguousarray(image[:, halo + 16 :]), [[0, 8, 0], [9, 24, 10]])[0]
    assert np.abs(less - whole).max() > 1e-4  # so the halo matters


def test_graph_carries_the_card_and_the_same_weights(tmp_path: Path) -> None:
    card = load_card(MODEL)
    folder, _ = export_triton(tmp_path, MODEL, Deployment(max_voxels=12345, precision="fp32"))
    file = folder / "1" / "model.onnx"
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert weights_hash(file) == card.weights_hash
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert type(card).from_metadata(metadata, "graph") == card
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feed = {
        "image": np.zeros((1, 1, 1, 1, 1), np.float32),
        "window": np.array([0.0, 1.0]),
        "stride": np.array([1]),
        "crop": np.array([[0] * 3, [1] * 3]),
    }
    told = Offer.from_bytes(session.run(["card"], feed)[0].tobytes(), "server")
    assert told == Offer(card, 12345, "fp32")


def test_configuration_fits_the_schema_of_triton(tmp_path: Path) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    folder, _ = export_triton(tmp_path, MODEL, Deployment("liver-mr", 3, instances=2))
    config = text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("liver-mr", "onnxruntime", 0)
    assert config.instance_group[0].count == 2
    assert config.version_policy.latest.num_versions == 2
    types = {onnx.TensorProto.FLOAT: "FP32", 10: "FP16", 11: "FP64", 7: "INT64", 2: "UINT8"}
    graph = onnx.load(folder / "3" / config.default_model_filename).graph
    for told, found in ((config.input, graph.input), (config.output, graph.output)):
        assert [(t.name, schema.DataType.Name(t.data_type), list(t.dims)) for t in told] == [
            (
                f.name,
                f"TYPE_{types[f.type.tensor_type.elem_type]}",
                [-1 if d.dim_param else d.dim_value for d in f.type.tensor_type.shape.dim],
            )
            for f in found
        ]


def test_warm_up_is_a_request_that_the_graph_answers(tmp_path: Path) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    folder, _ = export_triton(tmp_path, MODEL)
    config = text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())
    (request,) = config.model_warmup
    assert request.batch_size == 1  # of a model without batches, says the schema
    assert set(request.inputs) == {entry.name for entry in config.input}
    kinds = {"TYPE_FP32": np.float32, "TYPE_FP64": np.float64, "TYPE_INT64": np.int64}
    feed = {}
    for name, entry in request.inputs.items():
        kind, size = kinds[schema.DataType.Name(entry.data_type)], tuple(entry.dims)
        if entry.WhichOneof("input_data_type") == "random_data":
            feed[name] = np.random.default_rng(0).random(size).astype(kind)
        else:
            content = (folder / "warmup" / entry.input_data_file).read_bytes()
            feed[name] = np.frombuffer(content, kind).reshape(size)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    descriptors = session.run(["descriptors"], feed)[0]
    np.testing.assert_allclose(np.linalg.norm(descriptors.astype(np.float32), axis=-1), 1, atol=2e-3)


def test_manifest_is_an_inference_service(tmp_path: Path) -> None:
    if find_spec("kserve") is None:  # not imported here: its protobuf messages and tritonclient's have the same names
        pytest.skip("kserve is not installed")
    _, manifest = export_triton(tmp_path, MODEL, Deployment("liver-mr", max_voxels=8_000_000))
    code = """
import json, sys, yaml, kserve, kubernetes.client
given = yaml.safe_load(open(sys.argv[1]))

def walk(content, kind):  # every field is one that KServe's own classes, or Kubernetes', have
    known = {key: kind.openapi_types[name] for name, key in kind.attribute_map.items()}
    for key, value in content.items():
        inner = known[key]
        if isinstance(value, dict) and "ict[" not in inner and "ict(" not in inner:
            walk(value, getattr(kserve, inner, None) or getattr(kubernetes.client, inner))

walk(given, kserve.V1beta1InferenceService)
print(json.dumps(given))
"""
    answer = subprocess.run([sys.executable, "-c", code, str(manifest)], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    given = json.loads(answer.stdout.splitlines()[-1])
    assert (given["apiVersion"], given["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert given["metadata"]["name"] == "liver-mr"
    resources = given["spec"]["predictor"]["model"]["resources"]
    assert resources["limits"] == resources["requests"] == {"cpu": "2", "memory": "9Gi"}


def test_a_version_joins_those_that_are_there(tmp_path: Path) -> None:
    export_triton(tmp_path, MODEL)
    first = (tmp_path / "masrnet" / "1" / "model.onnx").read_bytes()
    export_triton(tmp_path, MODEL, Deployment(version=2, max_voxels=1_000_000_000))  # a longer card
    assert (tmp_path / "masrnet" / "1" / "model.onnx").read_bytes() == first
    assert (tmp_path / "masrnet" / "2" / "model.onnx").is_file()
    assert not list(tmp_path.rglob(".*"))


def test_versions_that_are_served_have_one_configuration(tmp_path: Path) -> None:
    """Triton would refuse to load the older one."""
    export_triton(tmp_path, MODEL)
    before = (tmp_path / "masrnet" / "config.pbtxt").read_bytes()
    with pytest.raises(ConfigError, match=r"1.model.onnx: gives descriptors FLOAT16 .* new version descriptors FLOAT "):
        export_triton(tmp_path, MODEL, Deployment(version=2, precision="fp32"))
    assert (tmp_path / "masrnet" / "config.pbtxt").read_bytes() == before
    assert not (tmp_path / "masrnet" / "2").exists()
    export_triton(tmp_path, MODEL, Deployment(version=2))
    with pytest.raises(ConfigError, match=r"2.model.onnx: gives"):
        export_triton(tmp_path, MODEL, Deployment(version=3, precision="fp32"))
    export_triton(tmp_path, MODEL, Deployment("other", precision="fp32"))


@pytest.mark.parametrize(
    "values", [{"name": "Liver"}, {"name": "a/b"}, {"name": ""}, {"version": 0}, {"max_voxels": 0}, {"instances": -1}]
)
def test_deployment_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no name for a server|must be a whole number from 1"):
        Deployment(**values)


def test_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_card(MODEL)
    spoilt = type(card)(**{**card.__dict__, "reference": tuple(-r for r in card.reference)})
    monkeypatch.setattr(writing, "load_card", lambda _: spoilt)
    with pytest.raises(ParityError, match="graph for servers differs"):
        export_triton(tmp_path / "repository", MODEL)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[3]", b'{"max_voxels": "0", "precision": "\\"fp16\\""}', b"\xff"])
def test_damaged_offer(content: bytes) -> None:
    with pytest.raises(ModelFileError, match="grpc://x: the model card is damaged") as caught:
        Offer.from_bytes(content, "grpc://x")
    assert "\n" not in str(caught.value)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *(str(a) for a in arguments)])


def test_command_writes_a_repository(tmp_path: Path) -> None:
    result = call("--triton", tmp_path / "r", "--model", MODEL, "--fp32", "--name", "tiny", "--version", 4)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "r" / "tiny" / "4" / "model.onnx").is_file()
    assert "TYPE_FP32 dims: [1, -1, -1, -1, 24]" in (tmp_path / "r" / "tiny" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a CHECKPOINT"),
        (["a.ckpt"], "give a CHECKPOINT"),
        (["a.ckpt", "--triton", "r"], "takes a model"),
        (["a.ckpt", "-o", "b.onnx", "--fp32"], "came without --triton"),
        (["--triton", "r", "--model", "nothing"], "there is no model"),
        (["--triton", "r", "--name", "A"], "no name for a server"),
    ],
)
def test_command_refuses(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert not list(tmp_path.iterdir())
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        export_triton(tmp_path / "file", MODEL)


def test_command_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys\nfor name in ('torch', 'onnxscript', 'tritonclient', 'kserve'): sys.modules[name] = None\n"
    code += f"from dsir_metric_cli.main import app; app(['export', '--triton', {str(tmp_path / 'r')!r}])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
