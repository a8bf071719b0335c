"""Where there is something to compare: dark organs of a slab are inside, air is not."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from dsir_metric.geometry import Grid
from dsir_metric.represent.foreground import foreground


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_dark_organ_that_a_slab_cuts_open_is_inside(axis: int) -> None:
    across, along = np.mgrid[-40:41, -40:41]
    body = np.where(np.hypot(across, along) < 36, 100.0, 0.0)
    organ = np.hypot(across + 8, along) < 12
    body[organ] = 0.0
    body[(across > 15) & (np.abs(along) < 5)] = 0.0  # a cleft that the air reaches, of all planes too
    thick = 12
    values = np.moveaxis(np.repeat(body[None], thick, axis=0), 0, axis).astype(np.float32)
    values += np.random.default_rng(0).normal(0, 1, values.shape).astype(np.float32)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((2.0, 2.0, 2.0))
    found = np.moveaxis(sitk.GetArrayFromImage(foreground(image, Grid.of(image))) > 0, axis, 0)
    assert found[:, organ].all()
    assert not found[:, np.hypot(across, along) > 40].any()
    assert not found[:, (across > 30) & (np.abs(along) < 2)].any()
