"""Checkpoint to model file: parity, card, and a clear word on what is no checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
from dsir_metric_export import export as exporting  # noqa: E402
from dsir_metric_export import export_model  # noqa: E402
from dsir_metric_export.halves import Halves  # noqa: E402
from dsir_metric_export.parity import TOLERANCE, measure_parity  # noqa: E402
from dsir_metric_train.model import MasrNet, ModelConfig  # noqa: E402

import dsir_metric  # noqa: E402
from dsir_metric.errors import DataError, ModelFileError, ParityError  # noqa: E402
from dsir_metric.represent import load_card  # noqa: E402
from dsir_metric.represent.loading import open_network  # noqa: E402

CONFIG = ModelConfig(widths=(4, 8), features=2)


@pytest.fixture
def checkpoint(network: MasrNet, tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    settings = {
        "model": CONFIG.to_dict(),
        "recipe": {"seed": 3},
        "data": [{"file": "a.nii.gz", "source": "x", "licence": "CC0"}],
    }
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"hyper_parameters": settings, "state_dict": {**weights, "loss.unused": torch.zeros(1)}}, path)
    return path


@pytest.fixture
def exporter(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow exporter replaced by what it made of the same network before."""
    made = onnx.load(model_file)
    monkeypatch.setattr(exporting, "_to_onnx", lambda _: onnx.ModelProto.FromString(made.SerializeToString()))


@pytest.mark.parametrize("size", [(1, 1, 1), (9, 13, 22), (31, 17, 8)])
def test_onnx_runtime_agrees_with_torch(network: MasrNet, model_file: Path, size: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).random(size, np.float32)
    model = open_network(model_file, "cpu")
    came = model.descriptors(model.features(image))
    with torch.inference_mode():
        expected = network(torch.from_numpy(image)[None, None])[0].permute(1, 2, 3, 0).numpy()
    assert np.abs(came - expected).max() < TOLERANCE
    np.testing.assert_allclose(np.linalg.norm(came, axis=-1), 1, atol=1e-6)


def test_file_is_sound_onnx_with_free_sizes(model_file: Path) -> None:
    model = onnx.load(model_file)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.name for entry in model.graph.input} == {"image", "features"}
    assert all(len({d.dim_param for d in e.type.tensor_type.shape.dim} - {""}) == 3 for e in model.graph.input)
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [18]


def test_model_files_tell_nothing_of_the_machine(model_file: Path) -> None:
    shipped = Path(dsir_metric.__file__).parent / "models" / "default.onnx"
    for file in (model_file, shipped):
        content = file.read_bytes()
        assert b"stack_trace" not in content
        assert b".py" not in content


@pytest.mark.usefixtures("exporter")
def test_checkpoint_becomes_a_model_with_its_card(checkpoint: Path, model_file: Path, tmp_path: Path) -> None:
    card = export_model(checkpoint, tmp_path / "liver.onnx")
    assert load_card(tmp_path / "liver.onnx") == card
    assert (card.name, card.channels, card.features, card.multiple) == ("liver", 24, 2, 2)
    assert (card.receptive_field, card.halo, card.head_halo) == (CONFIG.receptive_field, 8, 4)
    assert card.recipe == {"seed": 3}
    assert card.data[0]["licence"] == "CC0"
    assert max(found["largest"] for found in card.parity.values()) <= TOLERANCE
    assert card.weights_hash == load_card(model_file).weights_hash  # of the weights, not of the file
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "liver.onnx"]


def test_other_weights_fail_parity(model_file: Path) -> None:
    torch.manual_seed(6)
    with pytest.raises(ParityError, match="differ by"):
        measure_parity(Halves(MasrNet(CONFIG).eval()), model_file)


@pytest.mark.usefixtures("exporter")
def test_failed_parity_leaves_the_old_file(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["network.head.2.weight"] *= -1
    torch.save(content, checkpoint)
    out = tmp_path / "model.onnx"
    out.write_bytes(b"old")
    with pytest.raises(ParityError):
        export_model(checkpoint, out)
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "model.onnx"]


@pytest.mark.usefixtures("exporter")
def test_folder_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        export_model(checkpoint, tmp_path / "nowhere" / "model.onnx")


def test_exporter_without_a_program(network: MasrNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    with pytest.raises(ModelFileError, match="no program"):
        exporting._to_onnx(Halves(network))


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        export_model(tmp_path / "none.ckpt", tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "content", [{"state_dict": {}}, {"hyper_parameters": {"model": {"depth": 3}}, "state_dict": {}}, [1, 2]]
)
def test_foreign_checkpoint(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(ModelFileError, match="no checkpoint"):
        export_model(tmp_path / "foreign.ckpt", tmp_path / "model.onnx")


def test_damaged_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(ModelFileError, match="damaged"):
        export_model(checkpoint, tmp_path / "model.onnx")


def test_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save(SimpleNamespace(hyper_parameters={}), tmp_path / "pickle.ckpt")
    with pytest.raises(ModelFileError, match="no checkpoint"):
        export_model(tmp_path / "pickle.ckpt", tmp_path / "model.onnx")
