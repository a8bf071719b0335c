"""The representations of the benchmarks: MIND-SSC against a slow one written straight from the definition."""

from __future__ import annotations

from itertools import product
from math import exp

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from representations import mind_centred, mind_ssc, patches, represent, representer

from dsir_metric.phantom import PhantomPair
from dsir_metric.represent.foreground import foreground

Floats = NDArray[np.float64]


def at(volume: Floats, place: Floats) -> float:
    """The voxel at z, y, x, or the nearest one where that lies outside."""
    z, y, x = (min(max(int(p), 0), n - 1) for p, n in zip(place, volume.shape, strict=True))
    return float(volume[z, y, x])


def slow_mind(volume: Floats, radius: int, dilation: int) -> list[Floats]:
    """The twelve similarities as volumes, voxel by voxel, in no particular order."""
    six = [np.array(p) for p in product((-1, 0, 1), repeat=3) if np.abs(p).sum() == 1]
    layout = [(p, q) for i, p in enumerate(six) for q in six[:i] if ((p - q) ** 2).sum() == 2]
    assert len(layout) == 12
    box = [np.array(b) for b in product(range(-radius, radius + 1), repeat=3)]
    distance = np.zeros((*volume.shape, 12))
    for x in np.ndindex(volume.shape):
        for k, (p, q) in enumerate(layout):
            for b in box:
                centre = np.clip(np.add(x, b), 0, np.subtract(volume.shape, 1))  # the box repeats its edge
                pair = at(volume, centre + dilation * p), at(volume, centre + dilation * q)
                distance[(*x, k)] += (pair[0] - pair[1]) ** 2 / len(box)
        distance[x] -= distance[x].min()
    mean = distance.mean()
    out = np.zeros_like(distance)
    for x in np.ndindex(volume.shape):
        variance = min(max(distance[x].mean(), 0.001 * mean), 1000 * mean)
        out[x] = [exp(-d / variance) for d in distance[x]]
    return [out[..., k] for k in range(12)]


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (0, 1)])
def test_mind_is_what_its_definition_says(radius: int, dilation: int) -> None:
    volume = np.random.default_rng(3).random((9, 5, 6))
    volume[:5] *= 1e-3  # nearly flat: the clamp of the variance is at work
    found = mind_ssc(volume.astype(np.float32), radius, dilation)
    assert found.shape == (9, 5, 6, 12)
    used = set()
    for wanted in slow_mind(volume, radius, dilation):
        apart = np.abs(found - wanted[..., None]).max(axis=(0, 1, 2))
        used.add(int(apart.argmin()))
        assert apart.min() < 2e-3
    assert len(used) == 12


def test_mind_of_a_linear_change_of_intensity_is_the_same() -> None:
    volume = np.random.default_rng(4).random((9, 8, 7), np.float32)
    np.testing.assert_allclose(mind_ssc(3 - 2 * volume), mind_ssc(volume), atol=1e-3)
    assert (mind_ssc(np.ones((5, 5, 5), np.float32)) == 1).all()


def test_centred_mind_is_what_stands_out() -> None:
    volume = np.random.default_rng(6).random((6, 6, 6), np.float32)
    found, raw = mind_centred(volume)[2, 3, 4], mind_ssc(volume)[2, 3, 4]
    np.testing.assert_allclose(found, (raw - raw.mean()) / np.linalg.norm(raw - raw.mean()), rtol=1e-4)


def test_patches_know_no_brightness() -> None:
    volume = np.random.default_rng(5).random((6, 6, 6), np.float32)
    found = patches(volume)
    assert found.shape == (6, 6, 6, 27)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(patches(2 * volume + 1), found, atol=1e-4)
    block = volume[1:4, 2:5, 3:6]
    expected = (block - block.mean()).ravel()
    np.testing.assert_allclose(found[2, 3, 4], expected / np.linalg.norm(expected), atol=1e-5)
    assert (patches(np.ones((4, 4, 4), np.float32)) == 0).all()


def test_mixed_mind_has_no_mean_and_is_mixed_by_what_the_pair_says(pair: PhantomPair) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("lightning")
    from dsir_metric_train.calibration import mixture_for

    scans = pair.fixed, pair.moving
    plain, mixed = (represent(name, *scans, spacing_mm=6.0) for name in ("mind", "mind-mixed"))
    centred, bodies, steps = [], [], []
    for scan, side in zip(scans, plain, strict=True):
        inside = sitk.GetArrayFromImage(foreground(scan, side.grid, "scan")) != 0
        centred.append(side.values - side.values[inside].mean(axis=0))
        bodies.append(centred[-1][inside])
        steps += [np.diff(side.values, axis=k)[np.delete(inside, -1, axis=k)] for k in range(3)]
    spread, change = (np.cov(np.concatenate(rows).T, bias=True) for rows in (bodies, steps))
    whole = np.concatenate(steps).mean(axis=0)
    change += np.outer(whole, whole)  # differences have no mean to be taken away
    mixture = mixture_for(torch.from_numpy(spread), torch.from_numpy(change)).numpy()
    for side, values in zip(mixed, centred, strict=True):
        wanted = values @ mixture.T
        wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
        np.testing.assert_allclose(side.values, wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["mind", "mind-centred", "patch"])
def test_a_pair_shares_grid_and_intensity_rule_with_the_models(name: str, pair: PhantomPair) -> None:
    fixed, moving = represent(name, pair.fixed, sitk.Flip(pair.fixed, [True, False, False]), spacing_mm=6.0)
    assert fixed.grid.spacing_mm == moving.grid.spacing_mm == (6.0, 6.0, 6.0)
    assert fixed.values.dtype == np.float32
    np.testing.assert_allclose(fixed.values, moving.values, atol=1e-3)  # a place in space keeps its descriptor


def test_a_crop_sees_the_rest(pair: PhantomPair) -> None:
    describer = representer("mind").representer
    rule = describer.rule(sitk.GetArrayViewFromImage(pair.fixed))
    whole, box = describer(pair.fixed, rule), (slice(3, 9), slice(2, 11), slice(5, 12))
    part = describer(pair.fixed, rule, crop=box)
    assert part.grid == whole.grid.cropped(box)
    np.testing.assert_array_equal(part.values, whole.values[box])
