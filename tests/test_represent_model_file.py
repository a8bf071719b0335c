"""Model files, their cards, and the ONNX Runtime that opens them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from dsir_metric.errors import ConfigError, MissingDependencyError, ModelFileError
from dsir_metric.represent import ModelCard, Representer, load_card, zoo
from dsir_metric.represent.loading import verify
from dsir_metric.represent.weights import weights_hash


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
    with pytest.raises(ModelFileError, match="card is damaged \\(format is missing\\)"):
        load_card(altered(model_file, tmp_path / "bare.onnx", dict.clear))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"halo": "many"}, "damaged"),
        ({"data": "3"}, "damaged"),
        ({"channels": '"24"'}, "damaged"),
        ({"mixture": "[[1.0, 0.0], [0.0, 1.0]]"}, r"damaged \(mixture must be a square of 24 channels, got 2 rows\)"),
        (
            {"mixture": json.dumps([[float("nan")] * 24] * 24)},
            r"damaged \(mixture\[0\]\[0\] must be a number .*got nan\)",
        ),
        ({"format": "99"}, "format '99'"),
    ],
)
def test_unusable_card(model_file: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        load_card(altered(model_file, tmp_path / "odd.onnx", lambda card: card.update(change)))


def test_a_card_may_lack_a_mixture(model_file: Path, tmp_path: Path) -> None:
    """Models of before have none."""
    card = load_card(altered(model_file, tmp_path / "before.onnx", lambda card: card.pop("mixture")))
    assert card == load_card(model_file)
    assert card.mixture == ()


def other_graph(out: Path) -> Path:
    """A sound ONNX file that is no model of ours and has no card."""
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, out)
    return out


def test_onnx_of_somebody_else_with_our_card(model_file: Path, tmp_path: Path) -> None:
    ours = load_card(model_file).to_metadata()
    other = altered(other_graph(tmp_path / "other.onnx"), tmp_path / "card.onnx", lambda card: card.update(ours))
    with pytest.raises(ModelFileError, match="by the card and absent in the graph"):
        Representer(other, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": 3}, r"features is 1 x 3 x \? x \? x \? by the card and 1 x 2 x"),
        ({"channels": 12, "reference": [0.1] * 12}, r"descriptors is .* x 12 by the card and .* x 24 in the graph"),
        ({"weights_hash": 64 * "0"}, "the card says 000000000000"),
        ({"halo": 6}, "halo 6 and 4"),
        ({"halo": 16}, "halo 16 and 4"),
        ({"head_halo": 3}, "halo 8 and 3"),
        ({"head_halo": 5}, "halo 8 and 5"),
        ({"receptive_field": 9}, "receptive field 9"),
        ({"receptive_field": 48}, "receptive field 48"),
        ({"multiple": 1}, "multiple 1"),
        ({"multiple": 3}, "multiple 3"),
    ],
)
def test_card_that_does_not_fit(model_file: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    text = {name: json.dumps(value) for name, value in change.items()}
    odd = altered(model_file, tmp_path / "odd.onnx", lambda card: card.update(text))
    for door in (load_card, Representer, lambda path: list(verify(path))):
        with pytest.raises(ModelFileError, match=message) as caught:
            door(odd)
        assert "\n" not in str(caught.value)


def test_changed_weights_are_told(model_file: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(model_file)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("head.2.weight"))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0, 0, 0, 0] *= 1.000001
    tensor.raw_data = values.tobytes()
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError, match="the weights have the hash"):
        load_card(tmp_path / "changed.onnx")


def test_hash_is_of_the_weights_not_of_the_file(model_file: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(model_file)
    model.producer_name = "somebody else"
    model.graph.name = "renamed"
    onnx.save(model, tmp_path / "same.onnx")
    assert weights_hash(tmp_path / "same.onnx") == load_card(model_file).weights_hash
    shape = next(t for t in model.graph.initializer if t.name.endswith("head.2.bias"))
    shape.dims.append(1)
    onnx.save(model, tmp_path / "shaped.onnx")
    assert weights_hash(tmp_path / "shaped.onnx") != load_card(model_file).weights_hash


def test_verify_tells_what_it_checked(model_file: Path) -> None:
    lines = list(verify(model_file))
    told = [line.split(":")[0] for line in lines]
    assert told == ["card", "graph", "weights", "reach", "descriptors", "reference", "parity"]
    assert "measured 8 and 4 voxels" in lines[3]


def test_verify_compares_with_the_reference(model_file: Path, tmp_path: Path) -> None:
    near, far = ([v + by for v in load_card(model_file).reference] for by in (1e-5, 1e-3))
    for name, values in (("near", near), ("far", far)):
        text = json.dumps(values)
        altered(model_file, tmp_path / f"{name}.onnx", lambda card, text=text: card.update(reference=text))
    assert len(list(verify(tmp_path / "near.onnx"))) == 7
    with pytest.raises(ModelFileError, match=r"differs by 1\.0e-03 from the reference"):
        list(verify(tmp_path / "far.onnx"))


@pytest.mark.parametrize("parity", [{"9 x 9 x 9": {"largest": 2e-4}}, {"9 x 9 x 9": {}}, {}])
def test_verify_looks_at_the_parity(model_file: Path, tmp_path: Path, parity: dict[str, object]) -> None:
    odd = altered(model_file, tmp_path / "odd.onnx", lambda card: card.update(parity=json.dumps(parity)))
    with pytest.raises(ModelFileError, match=r"differed by .* at export, more than 1e-04"):
        list(verify(odd))


def test_models_are_found_by_name(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "_FOLDER", tmp_path)
    for name in ("small", "base"):
        (tmp_path / f"{name}.onnx").write_bytes(model_file.read_bytes())
    assert list(zoo.shipped_models()) == ["base", "small"]
    assert zoo.model_path("small") == tmp_path / "small.onnx"
    assert zoo.model_path(model_file) == model_file
    assert Representer("base", device="cpu").card == load_card(model_file)
    with pytest.raises(
        ModelFileError, match=r"no model 'smal'; did you mean small\? give .* one of the names base, small"
    ):
        Representer("smal")
    with pytest.raises(ModelFileError, match=r"no model 'x'; give an \.onnx file or one of the names base, small"):
        Representer("x")


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


def test_import_does_not_need_onnx_runtime() -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; import dsir_metric.represent"
    subprocess.run([sys.executable, "-c", code], check=True)
