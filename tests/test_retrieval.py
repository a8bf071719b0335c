"""Point retrieval on fields whose true matches are known."""

import numpy as np
import pytest
import SimpleITK as sitk

from dsir_metric.errors import ConfigError, DataError, ShapeError
from dsir_metric.evaluate import retrieval
from dsir_metric.geometry import Grid
from dsir_metric.represent import Representation

GRID = Grid((14, 12, 11), (2.0, 2.0, 2.0), (5.0, -8.0, 3.0))
IDENTITY = sitk.Transform(3, sitk.sitkIdentity)


def field(grid: Grid = GRID, seed: int = 0) -> Representation:
    """Independent random descriptors: no two voxels are alike."""
    values = np.random.default_rng(seed).standard_normal((*grid.shape, 8)).astype(np.float32)
    return Representation(values, grid)


def smooth(grid: Grid) -> Representation:
    """A function of the place in space, the same whatever the grid."""
    waves = np.random.default_rng(1).normal(0, 0.12, (3, 16))
    return Representation(np.sin(grid.points_mm() @ waves + np.arange(16)).astype(np.float32), grid)


def test_every_point_finds_itself_in_the_same_representation() -> None:
    found = retrieval(field(), field(), IDENTITY, candidates=1000, queries=300)
    assert (found.rate, found.median_error_mm, found.candidates, found.queries) == (1.0, 0.0, 1000, 300)


def test_length_of_a_descriptor_does_not_count() -> None:
    scale = np.random.default_rng(3).uniform(0.1, 10, (*GRID.shape, 1)).astype(np.float32)
    scaled = Representation(field().values * scale, GRID)
    assert retrieval(field(), scaled, IDENTITY, candidates=1000).rate == 1.0


def test_unrelated_descriptors_are_found_by_chance() -> None:
    found = retrieval(field(), field(seed=1), IDENTITY, candidates=50, queries=50)
    rates = [retrieval(field(), field(seed=1), IDENTITY, candidates=50, seed=s).rate for s in range(40)]
    assert found.queries == 50
    assert np.mean(rates) == pytest.approx(1 / 50, abs=0.012)  # four standard errors


def test_equal_descriptors_find_nothing() -> None:
    even = Representation(np.ones((*GRID.shape, 8), np.float32), GRID)
    assert retrieval(even, even, IDENTITY, candidates=500).rate == 1 / 500


def test_the_transform_maps_fixed_to_moving_points() -> None:
    shifted = Grid(GRID.size, GRID.spacing_mm, (25.0, -38.0, 9.0))
    moving = Representation(field().values, shifted)
    truth = sitk.TranslationTransform(3, [20.0, -30.0, 6.0])
    assert retrieval(field(), moving, truth, candidates=1000).rate == 1.0
    with pytest.raises(DataError, match="only 0 of"):
        retrieval(field(), moving, truth.GetInverse(), candidates=1000)


def test_a_turned_grid_is_honoured_and_the_error_is_in_mm() -> None:
    turn = sitk.Euler3DTransform(GRID.centre_mm.tolist(), 0.2, -0.3, 0.4, (1.0, 2.0, -1.5))
    origin = np.array(turn.TransformPoint(GRID.origin_mm))
    turned = Grid(GRID.size, GRID.spacing_mm, tuple(origin), tuple(turn.GetMatrix()))
    moving = Representation(smooth(GRID).values, turned)  # the anatomy and its grid turned together
    assert retrieval(smooth(GRID), moving, turn, candidates=1000).rate == 1.0
    wrong = sitk.CompositeTransform([turn, sitk.TranslationTransform(3, [4.0, 0.0, 0.0])])  # two voxels off
    found = retrieval(smooth(GRID), moving, wrong, candidates=1400)
    assert found.rate < 0.05
    assert found.median_error_mm == pytest.approx(4.0, abs=0.01)


def test_moving_descriptors_are_read_between_voxels() -> None:
    fine = Grid((30, 28, 26), (1.0, 1.0, 1.0), (3.3, -9.6, 1.7))
    found = retrieval(smooth(GRID), smooth(fine), IDENTITY, candidates=1400)
    assert found.rate > 0.99


def test_the_mask_chooses_the_points() -> None:
    values = field().values.copy()
    values[:, :, 7:] = 1.0  # equal descriptors in one half
    half = np.zeros(GRID.shape, bool)
    half[:, :, :7] = True
    spoilt = Representation(values, GRID)
    assert retrieval(spoilt, spoilt, IDENTITY, half, candidates=900).rate == 1.0
    assert retrieval(spoilt, spoilt, IDENTITY, ~half, candidates=900).rate == 1 / 900


def test_the_draw_follows_the_seed() -> None:
    noisy = Representation(field().values + 1.2 * field(seed=2).values, GRID)
    rates = [retrieval(field(), noisy, IDENTITY, candidates=500, seed=s).rate for s in (0, 0, 1)]
    assert rates[0] == rates[1]
    assert rates[0] != rates[2]


def test_too_few_points() -> None:
    mask = np.zeros(GRID.shape, bool)
    mask[:2] = True
    with pytest.raises(DataError, match="only 336 of 336 voxels that may be drawn"):
        retrieval(field(), field(), IDENTITY, mask, candidates=337)
    with pytest.raises(DataError, match="only 924 of 1848 voxels"):
        retrieval(field(), field(), sitk.TranslationTransform(3, [14.0, 0.0, 0.0]), candidates=1000)


def test_what_does_not_fit_is_refused() -> None:
    narrow = Representation(field().values[..., :4].copy(), GRID)
    with pytest.raises(ShapeError, match="8 channels and moving 4"):
        retrieval(field(), narrow, IDENTITY)
    with pytest.raises(ShapeError, match="mask of shape"):
        retrieval(field(), field(), IDENTITY, np.ones((3, 3, 3), bool))
    for wrong in ({"candidates": 1}, {"queries": 0}):
        with pytest.raises(ConfigError, match="are no search"):
            retrieval(field(), field(), IDENTITY, **wrong)
