"""Everything that ships works with everything else that ships: models, registration networks, backends, settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from dsir_metric_cli.main import app

from dsir_metric import io
from dsir_metric.errors import ModelFileError
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.register import RegisterConfig, register
from dsir_metric.register import lapirn as networks
from dsir_metric.register.backends import BACKENDS
from dsir_metric.register.config import EngineConfig, LapirnConfig
from dsir_metric.register.lapirn import RegistrationCard, network_path, shipped_networks
from dsir_metric.register.presets import load_settings, presets
from dsir_metric.represent import load_card
from dsir_metric.represent.runtime import open_session
from dsir_metric.represent.zoo import shipped_models

onnx = pytest.importorskip("onnx")


def is_installed(name: str) -> bool:
    package = BACKENDS[name].package
    if name == "itk":
        from dsir_metric.itk.impact import check_impact

        try:
            check_impact()
        except ImportError:
            return False
    return package is None or package.obstacle is None


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return make_pair(16, 11.0, amplitude_mm=3.0)


def settings(**given: Any) -> RegisterConfig:
    few = {"stages": ("centre", "rigid", "deformable"), "engine": EngineConfig(channels=1)}
    return RegisterConfig(**({"device": "cpu", "threads": 1} | few | given))


def network_card(path: Path) -> RegistrationCard:
    return RegistrationCard.from_metadata(open_session(path, "cpu", 1).get_modelmeta().custom_metadata_map, path)


def test_something_ships() -> None:
    assert "default" in shipped_models()
    assert RegisterConfig().model in shipped_models()
    assert LapirnConfig().model in shipped_networks()


@pytest.mark.parametrize("model", shipped_models())
@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_takes_every_model(name: str, model: str, pair: PhantomPair) -> None:
    if not is_installed(name):
        pytest.skip(f"{name} is not installed")
    result = register(pair.fixed, pair.moving, settings(backend=name, model=model))
    assert "deformable" in [stage.name for stage in result.stages]
    assert result.details["fixed_representation"]["model"] == load_card(model).name  # type: ignore[index]


@pytest.mark.parametrize("model", shipped_models())
@pytest.mark.parametrize("network", shipped_networks())
@pytest.mark.parametrize("refined", [0, 5])
def test_every_network_takes_every_model(network: str, model: str, refined: int, pair: PhantomPair) -> None:
    config = settings(backend="lapirn", model=model, lapirn=LapirnConfig(network, refined))
    result = register(pair.fixed, pair.moving, config)
    deformed = next(stage for stage in result.stages if stage.name == "deformable")
    assert deformed.remark.startswith(network_card(network_path(network)).name) or not deformed.kept


@pytest.mark.parametrize("name", presets())
def test_all_settings_run(name: str, pair: PhantomPair) -> None:
    config = load_settings(name)
    if not is_installed(config.backend):
        pytest.skip(f"{config.backend} is not installed")
    assert register(pair.fixed, pair.moving, replace(config, device="cpu", threads=1)).stages


def test_backends_says_ready_of_what_register_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = CliRunner().invoke(app, ["backends"]).stdout
    for name in BACKENDS:
        line = next(line.rstrip() for line in shown.splitlines() if line.split()[:1] == [name])
        assert line.endswith(" ready")
        assert line.endswith("not ready") != is_installed(name), line


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose registration network was trained on a model that does not ship."""
    folder = tmp_path / "registration"
    folder.mkdir()
    path = folder / f"{LapirnConfig().model}.onnx"
    model = onnx.load(network_path(LapirnConfig().model))
    card = replace(network_card(network_path(LapirnConfig().model)), representation="e" * 64)
    onnx.helper.set_model_props(model, card.to_metadata())
    onnx.save(model, path)
    monkeypatch.setattr(networks, "_FOLDER", folder)
    return path


def test_a_network_of_a_model_that_does_not_ship_is_not_ready(
    strange: Path, monkeypatch: pytest.MonkeyPatch, pair: PhantomPair, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = CliRunner().invoke(app, ["backends"]).stdout
    line = next(line.rstrip() for line in shown.splitlines() if line.split()[:1] == ["lapirn"])
    assert line.endswith("not ready")
    assert "trained on representations of the model eeeeeeeeeeee" in shown
    for name in ("fixed", "moving"):
        io.write_image(getattr(pair, name), tmp_path / f"{name}.nii.gz")
    files = [str(tmp_path / f"{name}.nii.gz") for name in ("fixed", "moving")]
    answer = CliRunner().invoke(app, ["register", *files, "-o", str(tmp_path / "out"), "--backend", "lapirn"])
    assert answer.exit_code == 2
    said = [line for line in shown.splitlines() if line.startswith("lapirn: ")]
    assert answer.stderr == f"error: {said[0].removeprefix('lapirn: ')}\n"  # word for word
    assert "--model" not in answer.stderr  # nobody has that model
    assert not list((tmp_path / "out").glob("*"))


def test_the_advice_names_the_shipped_model_that_fits(tmp_path: Path) -> None:
    """A model of another hash with a shipped network: the model that ships is the remedy."""
    config = settings(backend="lapirn")
    card = network_card(network_path(config.lapirn.model))
    with pytest.raises(ModelFileError, match=r"use --model default, or train"):
        networks._check_representation(card, "f" * 64, card.channels, "the fixed representation", Path("n.onnx"))


def test_a_misfit_is_told_before_the_long_part(strange: Path, pair: PhantomPair) -> None:
    told: list[object] = []
    with pytest.raises(ModelFileError, match="train a network for this model"):
        register(pair.fixed, pair.moving, settings(backend="lapirn"), on_progress=told.append)
    assert not told
