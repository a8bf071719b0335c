"""Model files, their cards, and the ONNX Runtime that opens them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsir_metric.errors import ConfigError, MissingDependencyError, ModelFileError
from dsir_metric.represent import ModelCard, Representer, load_card, runtime


def altered(model_file: Path, out: Path, change: Callable[[dict[str, str]], object]) -> Path:
    """A copy of a model file whose metadata went through `change`."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(model_file)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    change(properties)
    del model.metadata_props[:]
    if properties:
        onnx.helper.set_model_props(model, properties)
    onnx.save(model, out)
    return out


def test_card_survives_its_metadata(model_file: Path) -> None:
    card = load_card(model_file)
    assert ModelCard.from_metadata(card.to_metadata(), "copy") == card
    assert card.name == "tiny"
    assert len(card.weights_hash) == 64


def test_representer_shows_the_card(model_file: Path) -> None:
    representer = Representer(model_file, device="cpu")
    assert representer.card == load_card(model_file)
    assert representer.model_hash == representer.card.weights_hash
    assert representer.provider == "CPUExecutionProvider"


@pytest.mark.parametrize("model", ["no-such-model", Path("nowhere/model.onnx")])
def test_absent_model(model: str | Path) -> None:
    with pytest.raises(ModelFileError, match="there is no model"):
        load_card(model)


@pytest.mark.parametrize("content", [b"", b"not a protobuf at all"])
def test_file_that_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"text\.onnx: is no ONNX model") as caught:
        Representer(tmp_path / "text.onnx", device="cpu")
    assert "\n" not in str(caught.value)


def test_truncated_model(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "half.onnx").write_bytes(model_file.read_bytes()[:5000])
    with pytest.raises(ModelFileError, match="is no ONNX model"):
        load_card(tmp_path / "half.onnx")


def test_model_without_a_card(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="card lacks format, name"):
        load_card(altered(model_file, tmp_path / "bare.onnx", dict.clear))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"halo": "many"}, "damaged"),
        ({"data": "3"}, "damaged"),
        ({"channels": '"24"'}, "damaged"),
        ({"format": "99"}, "format 99"),
    ],
)
def test_unusable_card(model_file: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        load_card(altered(model_file, tmp_path / "odd.onnx", lambda card: card.update(change)))


def test_onnx_of_somebody_else_with_our_card(model_file: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(model, load_card(model_file).to_metadata())
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match="image, features"):
        Representer(tmp_path / "other.onnx", device="cpu")


@pytest.mark.parametrize("settings", [{"device": "tpu"}, {"threads": 0}, {"tile": 0}])
def test_setting_out_of_range(model_file: Path, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Representer(model_file, **settings)


def test_both_runtimes_installed(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.20.0")
    with pytest.raises(MissingDependencyError, match=r"both installed.*pip uninstall"):
        Representer(model_file)


def test_no_runtime_installed(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"dsir-metric\[cpu\].*dsir-metric\[gpu\]"):
        load_card(model_file)


def test_fallback_is_told_once(model_file: Path) -> None:
    runtime._tell_fallback.cache_clear()
    with pytest.warns(RuntimeWarning, match="CUDA did not start") as told:
        representer = Representer(model_file, device="cuda")
    assert told[0].filename == __file__
    assert representer.provider == "CPUExecutionProvider"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Representer(model_file, device="cuda")


@pytest.mark.parametrize(
    ("device", "listed", "started", "warns"),
    [
        ("auto", True, True, False),
        ("auto", True, False, True),  # the GPU build where no GPU is
        ("auto", False, False, False),
        ("cuda", True, True, False),
        ("cpu", True, False, False),
    ],
)
def test_provider_is_asked_for_and_checked(
    monkeypatch: pytest.MonkeyPatch, device: str, listed: bool, started: bool, warns: bool
) -> None:
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    asked: list[object] = []

    def session(path: str, sess_options: object, providers: list[object]) -> SimpleNamespace:
        asked.extend(p[0] if isinstance(p, tuple) else p for p in providers)
        return SimpleNamespace(get_providers=lambda: [cuda, cpu] if started else [cpu])

    fake = SimpleNamespace(
        SessionOptions=SimpleNamespace,
        InferenceSession=session,
        get_available_providers=lambda: [cuda, cpu] if listed else [cpu],
    )
    monkeypatch.setattr(runtime, "onnxruntime", lambda: fake)
    runtime._tell_fallback.cache_clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        runtime.open_session(Path("model.onnx"), device)
    assert asked == ([cuda, cpu] if listed and device != "cpu" else [cpu])
    assert bool(told) == warns


def test_import_does_not_need_onnx_runtime() -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; import dsir_metric.represent"
    subprocess.run([sys.executable, "-c", code], check=True)
