import time

import numpy as np
import pytest
import SimpleITK as sitk

from dsir_metric.errors import ConfigError
from dsir_metric.evaluate import dice
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.phantom import LABELS, PhantomPair, make_pair

IDENTITY = sitk.Transform(3, sitk.sitkIdentity)


def warped_dice(pair: PhantomPair, transform: sitk.Transform) -> float:
    moved = sitk.Resample(pair.moving_labels, pair.fixed_labels, transform, sitk.sitkNearestNeighbor)
    return float(np.mean(list(dice(pair.fixed_labels, moved).values())))


def test_the_truth_brings_the_labels_together() -> None:
    began = time.perf_counter()
    pair = make_pair(96, 2.0)
    assert time.perf_counter() - began < 20  # about 2 s on a free core
    assert warped_dice(pair, pair.truth) > 0.9 > 0.6 > warped_dice(pair, IDENTITY)
    assert set(np.unique(sitk.GetArrayViewFromImage(pair.fixed_labels))) == {0, *LABELS.values()}


def test_the_truth_holds_between_any_two_grids() -> None:
    tilt = sitk.Euler3DTransform([0, 0, 0], 0.3, -0.2, 0.5).GetMatrix()
    other = Grid((70, 84, 30), (2.5, 2.2, 6.0), (-80.0, 85.0, -85.0), (1, 0, 0, 0, -1, 0, 0, 0, 1))
    pair = make_pair((80, 96, 90), (2.4, 2.0, 2.1), ("ct", "t2"), direction=tilt, moving_grid=other, seed=3)
    assert Grid.of(pair.moving).matches(other)
    assert Grid.of(pair.fixed).direction == pytest.approx(tilt)
    assert warped_dice(pair, pair.truth) > 0.75 > 0.6 > warped_dice(pair, IDENTITY)


def test_the_same_anatomy_looks_different(pair: PhantomPair) -> None:
    moved = sitk.Resample(pair.moving, pair.fixed, pair.truth)
    labels = sitk.GetArrayViewFromImage(pair.fixed_labels)
    fixed, moved = (sitk.GetArrayFromImage(i) for i in (pair.fixed, moved))  # a view would outlive its image
    white, grey = labels == LABELS["white"], labels == LABELS["grey"]
    assert fixed[white].mean() > fixed[grey].mean() + 50
    assert moved[white].mean() < moved[grey].mean() - 50
    noise = [i[white] - i[white].mean() for i in (fixed, moved)]
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.5


def test_ct_is_in_hounsfield_units() -> None:
    pair = make_pair(32, 6.0, ("ct", "t1"))
    values = sitk.GetArrayViewFromImage(pair.fixed)
    assert -1015 < values.min() < -990
    assert values.max() > 500


def test_the_deformation_is_as_large_as_asked_and_does_not_fold() -> None:
    pair = make_pair(48, 4.0, rotation_deg=(0, 0, 0), translation_mm=(0, 0, 0), amplitude_mm=7.0)
    field = DisplacementField.from_transform(pair.truth, Grid.of(pair.fixed))
    assert field.length_mm().max() == pytest.approx(7.0, rel=0.05)
    assert field.jacobian_statistics()["min"] > 0.1
    rigid = make_pair(32, 6.0, rotation_deg=(0, 0, 90), translation_mm=(1, 2, 3), amplitude_mm=0.0).truth
    assert rigid.TransformPoint((10.0, 0.0, 0.0)) == pytest.approx((1.0, 12.0, 3.0))


def test_the_seed_decides(pair: PhantomPair) -> None:
    again = make_pair(40, 4.5, ("t1", "flair"))
    assert sitk.Hash(again.moving) == sitk.Hash(pair.moving)
    assert again.truth.TransformPoint((1.0, 2.0, 3.0)) == pair.truth.TransformPoint((1.0, 2.0, 3.0))
    assert sitk.Hash(make_pair(40, 4.5, ("t1", "flair"), seed=1).moving) != sitk.Hash(pair.moving)


def test_the_error_is_the_distance_to_the_truth(pair: PhantomPair) -> None:
    assert pair.error_mm(pair.truth) == 0.0
    shifted = sitk.CompositeTransform([sitk.TranslationTransform(3, (3.0, 4.0, 0.0)), pair.truth])
    assert pair.error_mm(shifted) == pytest.approx(5.0)
    assert 5.0 < pair.error_mm(IDENTITY) < 15.0


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ConfigError, match="t1, t2, flair, ct; 'pet'"):
        make_pair(16, 12.0, ("t1", "pet"))
    with pytest.raises(ConfigError, match="folds"):
        make_pair(32, 6.0, amplitude_mm=80.0)


@pytest.mark.parametrize("spacing", [8, np.int64(8), np.float32(8), [8, 8, 8], (8, 8, 8), np.array([8, 8, 8])])
@pytest.mark.parametrize("size", [20, np.int64(20), [20, 20, 20], np.array([20, 20, 20])])
def test_whole_numbers_and_arrays_are_as_good_as_floats(size: object, spacing: object) -> None:
    expected, found = make_pair(20, 8.0), make_pair(size, spacing, rotation_deg=[4, -3, 5], translation_mm=(5, -4, 3))
    assert Grid.of(found.fixed) == Grid.of(expected.fixed)
    for one, other in ((found.fixed, expected.fixed), (found.moving, expected.moving)):
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(one), sitk.GetArrayViewFromImage(other))
