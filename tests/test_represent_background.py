"""The value of a scan where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from dsir_metric.errors import ConfigError
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.represent.background import background, check_fill


@pytest.fixture(scope="module")
def ct() -> PhantomPair:
    return make_pair(40, 5.0, ("ct", "t1"))


def test_dark_air_with_noise(ct: PhantomPair) -> None:
    assert background(ct.fixed) == pytest.approx(-1000.0, abs=3.0)
    spread = float(sitk.GetArrayViewFromImage(ct.moving).max())
    assert background(ct.moving) == pytest.approx(0.0, abs=0.03 * spread)


def test_bright_background(ct: PhantomPair) -> None:
    inverted = 4000.0 - ct.moving
    assert background(inverted) == pytest.approx(4000.0, abs=100.0)


@pytest.mark.parametrize("outside", [0.0, 0.25])
def test_between_signed_values(ct: PhantomPair, outside: float) -> None:
    values = sitk.GetArrayFromImage(ct.moving)
    head = sitk.GetArrayViewFromImage(ct.moving_labels) > 0
    signed = np.where(head, 400 * (values - values[head].mean()) / values[head].std(), outside)  # much below -500
    assert background(sitk.GetImageFromArray(signed)) == outside


def test_ct_within_the_body_is_filled_with_air() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(40.0, 8.0, (20, 20, 20))
    values[5:12, 5:12, 5:12] = rng.normal(-990.0, 5.0, (7, 7, 7))  # bowel
    assert background(sitk.GetImageFromArray(values)) < -950.0


def test_lowest_where_tissue_is_all_over_the_faces() -> None:
    values = np.random.default_rng(0).uniform(10.0, 1000.0, (16, 16, 16))
    assert background(sitk.GetImageFromArray(values)) == values.min()


def test_whole_numbers_for_whole_numbers(ct: PhantomPair) -> None:
    value = background(sitk.Cast(ct.fixed, sitk.sitkInt16))
    assert value == round(value)
    assert background(ct.moving_labels) == 0.0


@pytest.mark.parametrize("fill", [-1.0, 256.0, 0.5, np.nan, np.inf])
def test_a_fill_that_bytes_cannot_hold(ct: PhantomPair, fill: float) -> None:
    with pytest.raises(ConfigError, match="fill must be a whole number from 0 to 255, as the pixels"):
        check_fill(fill, ct.moving_labels)
    assert check_fill(255.0, ct.moving_labels) == 255.0


@pytest.mark.filterwarnings("error")
def test_a_fill_beyond_single_precision_is_refused_without_a_warning(ct: PhantomPair) -> None:
    with pytest.raises(ConfigError, match="as the pixels of the moving scan are float32; got 1e\\+300"):
        check_fill(1e300, sitk.Cast(ct.moving, sitk.sitkFloat32))
