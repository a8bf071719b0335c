"""The synthetic engine: laws of the modalities, what scanners add, bodies whose two views are one anatomy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

pytest.importorskip("torch")
from dsir_metric_train.views import Appearance, Bodies, Paint, Placement, Shapes
from dsir_metric_train.views.appearance import random_appearance
from dsir_metric_train.views.bodies import _body
from dsir_metric_train.views.paint import paint_both

from dsir_metric.errors import ConfigError

SIZE = 32
SAME = np.eye(3, 4)
CLEAN = Appearance(invert=0.0)
FLAT = (np.zeros((SIZE,) * 3, np.float32),) * 2
Volume = NDArray[np.float32]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def blocks() -> NDArray[np.int16]:
    """Eight cubes, the first of them background."""
    z, y, x = np.indices((SIZE,) * 3) >= SIZE // 2
    labels: NDArray[np.int16] = (4 * z + 2 * y + x).astype(np.int16)
    return labels


def roughness(image: Volume) -> list[float]:
    return [float(np.abs(np.diff(image, axis=k)).mean()) for k in range(3)]


def cores(image: Volume, labels: NDArray[np.int16]) -> Volume:
    """Mean of the image well inside each region but the background."""
    inner = ndimage.binary_erosion(np.isin(labels, 0) == 0, iterations=4)
    return np.array([image[inner & (labels == k)].mean() for k in range(1, 8)], np.float32)


def views(paint: Paint, seed: int, detail: tuple[Volume, Volume] = FLAT) -> tuple[Volume, Volume]:
    drawn = paint_both(rng(seed), (blocks(), blocks()), detail, paint, CLEAN, SAME)
    return drawn.first, drawn.second


def test_contrast_of_one_view_says_nothing_about_the_other() -> None:
    pairs = [views(Paint(texture=0, alike=0), seed) for seed in range(30)]
    same = [np.corrcoef(cores(a, blocks()), cores(b, blocks()))[0, 1] for a, b in pairs]
    assert abs(np.mean(same)) < 0.25
    assert np.std(same) > 0.2


def test_soft_tissues_of_ct_differ_little_and_those_of_mr_much() -> None:
    def middle_half(paint: Paint) -> float:
        spread = [np.subtract(*np.percentile(cores(views(paint, s)[0], blocks()), (75, 25))) for s in range(30)]
        return float(np.median(spread))

    assert middle_half(Paint(mr=0, ct=1, texture=0)) < 0.5 * middle_half(Paint(texture=0))


def test_ultrasound_has_speckle_where_mr_is_even() -> None:
    def grain(paint: Paint) -> float:
        core = (slice(20, 28),) * 3
        crops = [views(paint, seed)[0][core] for seed in range(20)]
        return float(np.median([c.std() / max(float(c.mean()), 1e-3) for c in crops]))

    assert grain(Paint(mr=0, us=1, texture=0)) > 5 * grain(Paint(texture=0))


def test_detail_is_the_same_structure_in_both_views() -> None:
    structure = ndimage.gaussian_filter(rng(5).standard_normal((SIZE,) * 3), 1).astype(np.float32)
    structure /= np.abs(structure).max()
    core = (slice(20, 28),) * 3
    found = []
    for seed in range(20):
        pair = views(Paint(texture=0, detail=0.4), seed, (structure, structure))
        found += [
            abs(np.corrcoef(v[core].ravel(), structure[core].ravel())[0, 1]) for v in pair if v[core].std() > 1e-4
        ]
    assert np.median(found) > 0.9


def test_alike_regions_share_a_mean() -> None:
    def means(alike: float) -> float:
        drawn = [cores(views(Paint(texture=0, alike=alike), seed)[0], blocks()).round(2) for seed in range(20)]
        return float(np.mean([len(np.unique(values)) for values in drawn]))

    assert means(1.0) < means(0.0) - 1


@pytest.mark.parametrize("shares", [{"mr": 0.0}, {"ct": -1.0}])
def test_shares_of_the_laws_are_checked(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"shares of the intensity laws|ct must be a number from 0"):
        Paint(**shares)


def noise_image() -> Volume:
    return rng(7).uniform(0.2, 0.8, (SIZE, SIZE, SIZE)).astype(np.float32)


def test_thick_slices_smooth_one_axis_alone() -> None:
    image = noise_image()
    before, axes = roughness(image), set()
    for seed in range(25):
        after = np.divide(
            roughness(random_appearance(rng(seed), image, Appearance(slices_vox=4.0, artefacts=1.0), curve=False)),
            before,
        )
        if after.min() < 0.7:
            axes.add(int(after.argmin()))
            assert after.min() < 0.75 * np.sort(after)[1]
    assert axes == {0, 1, 2}


def test_thick_slices_keep_a_ramp() -> None:
    ramp = np.broadcast_to(np.linspace(0.1, 0.9, SIZE, dtype=np.float32), (SIZE,) * 3)
    for seed in range(20):
        seen = random_appearance(rng(seed), ramp, Appearance(slices_vox=4.0, artefacts=1.0), curve=False)
        np.testing.assert_allclose(seen[4:-4, 4:-4, 6:-6], ramp[4:-4, 4:-4, 6:-6], atol=0.02)


def test_ghosts_are_displaced_copies_along_one_axis() -> None:
    image = np.zeros((SIZE,) * 3, np.float32)
    image[16, 16, 16] = 1.0
    ghosts = 0
    for seed in range(40):
        seen = random_appearance(rng(seed), image, Appearance(ghosting=0.5), curve=False)
        assert seen.sum() == pytest.approx(1.0, abs=1e-5)
        where = np.argwhere(seen > 0)
        if len(where) == 3:
            ghosts += 1
            assert (np.ptp(where, axis=0) > 0).sum() == 1
            assert seen[16, 16, 16] == seen.max()
    assert 4 <= ghosts <= 20


def test_gamma_keeps_the_order_and_bends_the_middle() -> None:
    image = np.broadcast_to(np.linspace(0, 1, SIZE, dtype=np.float32), (SIZE,) * 3)
    bent = [random_appearance(rng(s), image, Appearance(gamma=0.5), curve=False)[0, 0] for s in range(10)]
    assert all((np.diff(b) > 0).all() and b[0] == 0 and b[-1] == pytest.approx(1) for b in bent)
    assert min(b[SIZE // 2] for b in bent) < 0.45 < 0.55 < max(b[SIZE // 2] for b in bent)


def test_half_of_the_noise_is_rician() -> None:
    black = np.zeros((SIZE,) * 3, np.float32)
    dark = [(random_appearance(rng(s), black, Appearance(noise=0.2), curve=False) == 0).mean() for s in range(40)]
    assert {round(float(d), 1) for d in dark} == {0.0, 0.5}  # a magnitude is never 0, clipped noise half of the time


PLACES = Placement(SIZE, (1.0, 1.0), 10.0, 12.0, 0.08, 2.0)


def test_one_body_at_any_points() -> None:
    _, warp = PLACES.draw(rng(3))
    first, second = PLACES.coordinates(warp)
    index = np.argwhere(np.ones((SIZE,) * 3, bool))
    there = index @ warp[:, :3].T + warp[:, 3]
    inside = ((there >= 0) & (there <= SIZE - 1)).all(axis=1)
    for k in range(3):  # the second crop holds the places of the first where the warp says
        read = ndimage.map_coordinates(second[k], there[inside].T, order=1)
        np.testing.assert_allclose(read, first[k][tuple(index[inside].T)], atol=1e-5)
    whole = _body(rng(11), first, np.zeros_like(first[0]))
    part = _body(rng(11), first[:, 5:9, ::2, 3:], np.zeros_like(first[0][5:9, ::2, 3:]))
    np.testing.assert_array_equal(part, whole[5:9, ::2, 3:])


def test_bodies_have_layers_organs_bones_and_vessels() -> None:
    at, _ = PLACES.coordinates(SAME)
    seen: set[int] = set()
    regions = []
    for seed in range(30):
        labels = _body(rng(seed), at, rng(seed).uniform(-1, 1, at.shape[1:]).astype(np.float32))
        seen |= set(np.unique(labels).tolist())
        regions.append(len(np.unique(labels)))
    assert seen >= {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
    assert np.median(regions) >= 6


@pytest.mark.parametrize("finer", [1, 2])
@pytest.mark.parametrize("kind", [Bodies, Shapes])
def test_views_correspond_under_their_warp(kind: type[Bodies] | type[Shapes], finer: int) -> None:
    """Edges lie on edges: with everything random switched off, both views have their boundaries at the same places."""
    source = kind(PLACES, Paint(texture=0, alike=0, finer=finer), CLEAN)
    index = np.argwhere(np.ones((SIZE,) * 3, bool))
    right, wrong = [], []
    for seed in range(12):
        drawn = source.draw(rng(seed))
        there = index @ drawn.warp[:, :3].T + drawn.warp[:, 3]
        inside = ((there >= 1) & (there <= SIZE - 2)).all(axis=1)
        edges = [ndimage.gaussian_gradient_magnitude(v, 1.0) for v in (drawn.first, drawn.second)]
        read = ndimage.map_coordinates(edges[1], there[inside].T, order=1)
        right.append(np.corrcoef(edges[0][tuple(index[inside].T)], read)[0, 1])
        wrong.append(np.corrcoef(edges[0].ravel(), edges[1].ravel())[0, 1])
    assert np.nanmedian(right) > np.nanmedian(wrong) + 0.15


def test_finer_labels_tell_where_a_boundary_is_to_a_fraction_of_a_voxel() -> None:
    """A tilted plane: a least-squares edge position in every row, against the truth."""

    def errors(finer: int) -> NDArray[np.float64]:
        z, y, x = (np.indices((finer * SIZE,) * 3) + 0.5) / finer - 0.5
        labels = (x > 12 + 0.13 * y + 0.07 * z).astype(np.int16) + 1
        drawn = paint_both(rng(3), (labels, labels), FLAT, Paint(texture=0, alike=0, finer=finer), CLEAN, SAME).first
        low, high = drawn[..., 2], drawn[..., -3]
        ahead = ((drawn - low[..., None]) / (high - low)[..., None]).sum(axis=2)  # voxels behind the boundary
        z, y = np.indices((SIZE, SIZE))
        return (SIZE - 0.5 - ahead - (12 + 0.13 * y + 0.07 * z))[4:-4, 4:-4]

    assert np.abs(errors(2)).mean() < 0.7 * np.abs(errors(1)).mean()
    assert abs(errors(2).mean()) < 0.02


@pytest.mark.parametrize("finer", [1, 3])
def test_finer_crops_are_the_same_cube(finer: int) -> None:
    matrix, warp = PLACES.draw(rng(4))
    ramp = np.arange(60, dtype=np.float32)[:, None, None] * np.ones((60, 60, 60), np.float32)
    middle = np.full(3, 30.0)
    coarse = PLACES.cut_both(ramp, middle, 0.1 * matrix, warp, 1)
    for one, fine in zip(coarse, PLACES.cut_both(ramp, middle, 0.1 * matrix, warp, 1, finer), strict=True):
        means = fine.reshape([k for n in one.shape for k in (n, finer)]).mean(axis=(1, 3, 5))
        np.testing.assert_allclose(means, one, atol=1e-3)
    for one, fine in zip(PLACES.coordinates(warp), PLACES.coordinates(warp, finer), strict=True):
        means = fine.reshape(3, *[k for n in one.shape[1:] for k in (n, finer)]).mean(axis=(2, 4, 6))
        np.testing.assert_allclose(means, one, atol=1e-5)
