"""A representation as an ITK image."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dsir_metric.errors import MissingDependencyError
from dsir_metric.geometry import Grid
from dsir_metric.itk import to_itk
from dsir_metric.represent import Representation


@pytest.fixture
def dsir(volume: sitk.Image) -> Representation:
    grid = Grid.of(volume)
    return Representation(np.random.default_rng(0).random((*grid.shape, 24), np.float32), grid)


def test_itk_reads_what_simpleitk_writes(dsir: Representation, tmp_path: Path) -> None:
    itk = pytest.importorskip("itk")
    image = to_itk(dsir)
    path = tmp_path / "dsir.nrrd"
    itk.imwrite(image, str(path))
    again = Representation.from_sitk(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(again.values, dsir.values)
    assert again.grid.matches(dsir.grid, 1e-6)


def test_itk_image_keeps_its_own_copy(dsir: Representation) -> None:
    itk = pytest.importorskip("itk")
    image = to_itk(dsir)
    before = dsir.values[1, 2, 3, 4].item()
    dsir.values[:] = 0
    assert itk.array_view_from_image(image)[1, 2, 3, 4] == before


def test_without_itk(dsir: Representation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "itk", None)
    with pytest.raises(MissingDependencyError, match=r"dsir-metric\[itk\]"):
        to_itk(dsir)
