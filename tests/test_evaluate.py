import numpy as np
import pytest
import SimpleITK as sitk

from dsir_metric.errors import GeometryError
from dsir_metric.evaluate import dice


def image(values: list[int], spacing: float = 1.0) -> sitk.Image:
    labels = sitk.GetImageFromArray(np.reshape(np.array(values, np.int32), (1, 2, -1)))
    labels.SetSpacing((spacing, 1, 1))
    return labels


def test_dice_of_each_label_of_either_image() -> None:
    scores = dice(image([0, 1, 1, 2, 2, 2]), image([0, 1, 2, 2, 2, 5]))
    assert scores == pytest.approx({1: 2 / 3, 2: 4 / 6, 5: 0.0})


def test_background_alone_has_no_score() -> None:
    assert dice(image([0, 0]), image([0, 0])) == {}


def test_dice_needs_one_grid() -> None:
    with pytest.raises(GeometryError):
        dice(image([0, 1]), image([0, 1], spacing=2.0))
