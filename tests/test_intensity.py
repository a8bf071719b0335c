"""Raw intensities to [0, 1]."""

import numpy as np
import pytest

from dsir_metric.errors import ConfigError, DataError
from dsir_metric.represent import IntensityRule, resolve_intensity

MR = np.random.default_rng(0).gamma(2.0, 100.0, (12, 12, 12)).astype(np.float32)
CT = np.where(np.arange(1000) < 300, -1000, 40).astype(np.float32).reshape(10, 10, 10)


def test_rule_is_linear_and_clips() -> None:
    rule = IntensityRule("window", 100.0, 300.0)
    scaled = rule.apply(np.array([0, 100, 150, 300, 1e6], np.float32))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0, 0.25, 1, 1])


def test_raw_values_are_left_alone() -> None:
    raw = MR.copy()
    IntensityRule("window", 0.0, 1.0).apply(raw)
    np.testing.assert_array_equal(raw, MR)


@pytest.mark.parametrize(("values", "kind"), [(MR, "mr"), (CT, "ct")])
def test_kind_is_detected_by_air(values: np.ndarray, kind: str) -> None:
    rule = resolve_intensity(values)
    assert (rule.kind, rule.detected) == (kind, True)
    chosen = resolve_intensity(values, kind)
    assert (chosen.low, chosen.high, chosen.detected) == (rule.low, rule.high, False)


def test_choice_beats_detection() -> None:
    assert resolve_intensity(CT, "mr").kind == "mr"
    assert resolve_intensity(MR, "ct") == IntensityRule("ct", -200.0, 1024.0)


@pytest.mark.parametrize("text", ["ct:-900,1024", "window:-900,1024"])
def test_window_of_the_user(text: str) -> None:
    assert resolve_intensity(MR, text) == IntensityRule(text.split(":")[0], -900.0, 1024.0)


def test_percentiles_shrug_off_outliers_and_margins() -> None:
    plain = resolve_intensity(MR, "mr")
    spoiled = MR.copy()
    spoiled[0, 0, 0] = 20 * MR.max()
    assert resolve_intensity(spoiled, "mr").high < 1.2 * plain.high
    padded = resolve_intensity(np.pad(MR, 4), "mr")
    assert padded.high == pytest.approx(plain.high, rel=0.1)


def test_rule_scales_with_the_image() -> None:
    plain, scaled = resolve_intensity(MR, "mr"), resolve_intensity(8 * MR, "mr")
    np.testing.assert_allclose([scaled.low, scaled.high], [8 * plain.low, 8 * plain.high], rtol=1e-6)


@pytest.mark.parametrize("text", ["CT", "ct:5", "ct:a,b", "window:1,2,3", ""])
def test_unknown_rule(text: str) -> None:
    with pytest.raises(ConfigError, match="is unknown; use auto"):
        resolve_intensity(MR, text)


@pytest.mark.parametrize("text", ["ct:300,100", "window:5,5"])
def test_empty_window(text: str) -> None:
    with pytest.raises(ConfigError, match="must have low below high"):
        resolve_intensity(MR, text)


@pytest.mark.parametrize("text", ["window:1.2.3,4", "ct:--,5"])
def test_window_of_no_number(text: str) -> None:
    with pytest.raises(ConfigError):
        resolve_intensity(MR, text)


def test_no_contrast() -> None:
    with pytest.raises(DataError, match="no contrast"):
        resolve_intensity(np.full((4, 4, 4), 7, np.float32))
