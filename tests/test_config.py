from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from dsir_metric.config import from_dict, load_toml, to_dict
from dsir_metric.errors import ConfigError


@dataclass(frozen=True)
class Optimiser:
    rate: float = 0.1
    name: Literal["adam", "sgd"] = "adam"


@dataclass(frozen=True)
class Settings:
    data: Path
    steps: int = 10
    spacing: float | tuple[float, float, float] | None = None
    stages: tuple[str, ...] = ("rigid",)
    fast: bool = False
    weights: dict[str, float] = field(default_factory=dict)
    optimiser: Optimiser = Optimiser()
    levels: tuple[Optimiser, ...] = ()


TOML = """
data = "scans"
spacing = [1, 2.5, 3]
stages = ["rigid", "affine"]
fast = true
weights = {dns = 2}
[optimiser]
rate = 1
[[levels]]
name = "sgd"
"""


def test_toml_fills_nested_frozen_dataclasses(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(TOML)
    assert load_toml(path, Settings) == Settings(
        data=Path("scans"),
        spacing=(1.0, 2.5, 3.0),
        stages=("rigid", "affine"),
        fast=True,
        weights={"dns": 2.0},
        optimiser=Optimiser(rate=1.0),
        levels=(Optimiser(name="sgd"),),
    )


def test_to_dict_is_the_inverse_of_from_dict() -> None:
    settings = Settings(Path("a"), spacing=2.0, levels=(Optimiser(0.5),))
    assert from_dict(Settings, to_dict(settings)) == settings
    assert to_dict(settings)["levels"] == [{"rate": 0.5, "name": "adam"}]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"data": "a", "step": 3}, "unknown setting step; did you mean steps?"),
        ({"data": "a", "optimiser": {"rat": 3}}, "unknown setting optimiser.rat; did you mean rate?"),
        ({"data": "a", "xyz": 3}, "unknown setting xyz; known are data, steps"),
        ({"steps": 3}, "data is missing"),
        ({"data": "a", "steps": 3.5}, "steps must be a whole number, got 3.5"),
        ({"data": "a", "steps": True}, "steps must be a whole number, got True"),
        ({"data": "a", "fast": 1}, "fast must be true or false, got 1"),
        ({"data": "a", "spacing": [1, 2]}, "spacing must have 3 entries, got 2: [1, 2]"),
        ({"data": "a", "stages": "rigid"}, "stages must be a list, got 'rigid'"),
        ({"data": "a", "stages": ["rigid", 3]}, "stages[1] must be a text, got 3"),
        ({"data": "a", "weights": {"dns": "x"}}, "weights.dns must be a number, got 'x'"),
        ({"data": "a", "weights": 4}, "weights must be a table, got 4"),
        ({"data": "a", "optimiser": 4}, "optimiser must be a table of settings, got 4"),
        ({"data": "a", "optimiser": {"name": "lbfgs"}}, "optimiser.name must be one of 'adam', 'sgd', got 'lbfgs'"),
    ],
)
def test_a_wrong_setting_is_named(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Settings, mapping)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a = [", "no valid TOML"), ("steps = 'x'", "steps must be a whole number")]
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_toml(path, Settings)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        load_toml(tmp_path / "none.toml", Settings)
