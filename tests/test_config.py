import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from dsir_metric.bounds import Length, Range
from dsir_metric.config import Settings as Declared
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


@dataclass(frozen=True)
class Bounded(Declared):
    angle_deg: Annotated[float, Range(0, 180)] = 90.0
    share: Annotated[float, Range(0, 1, above=True, below=True)] = 0.5
    steps: Annotated[tuple[Annotated[int, Range(1, 9)], ...], Length(1, 3)] = (1,)
    free: Mapping[str, Any] = field(default_factory=dict)

    def check_together(self) -> None:
        if len(self.steps) > 2 and self.angle_deg == 0:
            raise ConfigError("three steps need an angle")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"angle_deg": -20.0}, "angle_deg must be a number from 0 to 180, got -20.0"),
        ({"angle_deg": float("nan")}, "angle_deg must be a number within +-1e+18, got nan"),
        ({"angle_deg": 10**400}, "angle_deg must be a number within +-1e+18, got a number of 1329 bits"),
        ({"share": 0}, "share must be a number above 0 to below 1, got 0.0"),
        ({"share": 1.0}, "share must be a number above 0 to below 1, got 1.0"),
        ({"steps": []}, "steps must have 1 to 3 entries, got 0: []"),
        ({"steps": [1] * 10**6}, "steps must have 1 to 3 entries, got 1000000: [1, 1, 1, 1, 1, 1, ...]"),
        ({"steps": [0]}, "steps[0] must be a whole number from 1 to 9, got 0"),
        ({"steps": [1, 2, 3], "angle_deg": 0}, "three steps need an angle"),
        ({"free": {"a\nb": float("inf")}}, "free.'a\\nb' must be a number within +-1e+18, got inf"),
        ({"free": {"a": [[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]}}, "free.a must be nested up to 16 deep, got more"),
        ({"free": {"a": "b\0"}}, "free.a must be a text in UTF-8 without NUL, got 'b\\x00'"),
    ],
)
def test_bounds_hold_however_settings_are_made(values: dict[str, Any], message: str) -> None:
    for make in (lambda: from_dict(Bounded, values), lambda: Bounded(**values)):
        with pytest.raises(ConfigError) as caught:
            make()
        assert str(caught.value) == message


def test_values_made_in_python_are_converted() -> None:
    made = Bounded(angle_deg=np.int64(3), steps=[np.int32(2), 3])  # type: ignore[arg-type]
    assert (made.angle_deg, made.steps) == (3.0, (2, 3))
    assert (type(made.angle_deg), type(made.steps[0])) == (float, int)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = " + b"[" * 5000, "nested too deep"),
        (b"a" + b".a" * 100_000 + b" = 1", "nested too deep"),
        (b'"," . ' * 1000 + b"a = 1", "nested too deep"),
        (b"a = 1\xff", "no valid TOML"),
        (b"a = " + b"9" * 5000, "no valid TOML"),
        (b"#" * 3_000_000, "more than 2000000 bytes"),
    ],
)
def test_a_hostile_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_toml(path, Bounded)
    assert len(str(caught.value).splitlines()) == 1


def test_dots_in_texts_and_numbers_are_not_depth(tmp_path: Path) -> None:
    path = tmp_path / "dots.toml"
    name = ".".join(["1"] * 40)
    path.write_text(f"# {name}\nfree = {{a = '{name}', b = \"{name}\", c = [{', '.join(['0.5'] * 40)}]}}\n")
    assert load_toml(path, Bounded).free["a"] == name


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "long", "nul"])
def test_only_a_regular_file_is_opened(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    path = {"device": "/dev/zero", "long": "a" * 5000, "nul": "a\0"}.get(kind, str(tmp_path / kind))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(path, Bounded)


@dataclass(frozen=True)
class Numbers:
    edge_mm: float
    count: int
    several: tuple[float, ...]
    flag: bool = True


def test_numbers_of_numpy_are_written_as_plain_ones() -> None:
    plain = to_dict(Numbers(np.float32(2), np.int64(3), (np.float32(0.5), np.int16(1))))  # type: ignore[arg-type]
    assert json.loads(json.dumps(plain)) == {"edge_mm": 2.0, "count": 3, "several": [0.5, 1], "flag": True}
    assert [type(value) for value in plain.values()] == [float, int, list, bool]
