"""The compiled kernels against plain NumPy."""

import numpy as np
import pytest

from dsir_metric.metric.compiled import inlined
from dsir_metric.metric.kernel import cosine_and_gradient, interpolate, keep_inside_mask
from dsir_metric.metric.lattice import scatter
from dsir_metric.threads import at_most

SHAPE = (6, 7, 8)
MATRIX = np.array([[0.8, 0.1, 0.0], [-0.1, 0.7, 0.2], [0.05, 0.0, 0.9]])
OFFSET = np.array([0.5, -0.3, 0.2])


def field(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*SHAPE, channels)).astype(np.float32)


def points(count: int = 400) -> np.ndarray:
    """Points inside, in the outer half voxel, and outside."""
    index = np.random.default_rng(1).uniform(-1.2, np.array(SHAPE[::-1]) + 0.2, (count, 3))
    return (index - OFFSET) @ np.linalg.inv(MATRIX).T


def trilinear(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """One value of an image (z, y, x, channels) at a continuous index (x, y, z), edges held."""
    low = np.floor(at).astype(int)
    value = np.zeros(image.shape[3])
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod([w if c else 1 - w for c, w in zip(corner, at - low, strict=True)])
        x, y, z = np.clip(low + corner, 0, np.array(image.shape[2::-1]) - 1)
        value += weight * image[z, y, x].astype(float)
    return value


def cosine(f: np.ndarray, m: np.ndarray) -> float:
    return float(f @ m / np.linalg.norm(f) / np.linalg.norm(m))


def run(fixed: np.ndarray, moving: np.ndarray, where: np.ndarray, valid: np.ndarray | None = None):
    valid = np.ones(len(where), bool) if valid is None else valid
    out, gradient = np.full(len(where), np.nan), np.full((len(where), 3), np.nan)
    rows = np.arange(len(where)) % len(fixed)
    cosine_and_gradient(fixed, rows, moving, where, MATRIX, OFFSET, valid, out, gradient)
    return out, gradient, valid


@pytest.mark.parametrize("channels", [3, 5, 24, 33])
def test_value_and_gradient_are_those_of_the_plain_formula(channels):
    fixed, moving, where = field(channels, 2).reshape(-1, channels), field(channels, 3), points()
    value, gradient, valid = run(fixed, moving, where)
    index = where @ MATRIX.T + OFFSET
    inside = ((index >= -0.5) & (index < np.array(SHAPE[::-1]) - 0.5)).all(axis=1)
    assert 0 < inside.sum() < len(where)
    np.testing.assert_array_equal(valid, inside)
    step = 1e-6
    for i in np.flatnonzero(inside):
        f = fixed[i % len(fixed)].astype(float)
        assert value[i] == pytest.approx(cosine(f, trilinear(moving, index[i])), abs=2e-6)
        ahead = [MATRIX @ (where[i] + step * e) + OFFSET for e in np.eye(3)]
        back = [MATRIX @ (where[i] - step * e) + OFFSET for e in np.eye(3)]
        if any((np.floor(a) != np.floor(index[i])).any() for a in ahead + back):
            continue  # a step over a cell border: the derivative jumps there
        pairs = zip(ahead, back, strict=True)
        rises = [cosine(f, trilinear(moving, a)) - cosine(f, trilinear(moving, b)) for a, b in pairs]
        slope = np.array(rises) / (2 * step)
        scale = max(1.0, np.abs(slope).max())
        np.testing.assert_allclose(gradient[i] / scale, slope / scale, atol=2e-4)
    assert not value[~inside].any()
    assert not gradient[~inside].any()


def test_a_point_marked_invalid_is_left_out():
    fixed, moving = field(4).reshape(-1, 4), field(4, 1)
    where = np.linalg.solve(MATRIX, np.array([3.2, 3.1, 2.7]) - OFFSET)[None].repeat(2, axis=0)
    value, gradient, valid = run(fixed, moving, where, np.array([True, False]))
    assert valid.tolist() == [True, False]
    assert value[0] != 0
    assert value[1] == 0
    assert gradient[0].any()
    assert not gradient[1].any()


@pytest.mark.parametrize("empty", ["fixed", "moving"])
def test_a_zero_descriptor_counts_with_cosine_and_gradient_zero(empty):
    fixed, moving, where = field(24).reshape(-1, 24), field(24, 1), points()
    (fixed if empty == "fixed" else moving)[:] = 0
    value, gradient, valid = run(fixed, moving, where)
    assert valid.any()
    assert not value.any()
    assert not gradient.any()


def test_the_outer_half_voxel_is_flat_across_the_border():
    moving = field(24)
    index = np.array([[-0.3, 3.4, 2.2], [7.4, 3.4, 2.2]])
    where = (index - OFFSET) @ np.linalg.inv(MATRIX).T
    _, gradient, valid = run(field(24, 5).reshape(-1, 24), moving, where)
    assert valid.all()
    per_voxel = gradient @ np.linalg.inv(MATRIX)
    np.testing.assert_allclose(per_voxel[:, 0], 0, atol=1e-6)
    assert np.abs(per_voxel[:, 1:]).min() > 1e-3


def test_interpolation_is_trilinear_inside_and_zero_outside():
    image, where = field(5), points()
    values, valid = np.full((len(where), 5), np.nan, np.float32), np.ones(len(where), bool)
    interpolate(image, where, MATRIX, OFFSET, values, valid)
    index = where @ MATRIX.T + OFFSET
    expected = [trilinear(image, at) if ok else np.zeros(5) for at, ok in zip(index, valid, strict=True)]
    np.testing.assert_allclose(values, expected, atol=2e-6)
    assert 0 < valid.sum() < len(valid)


def test_mask_takes_the_nearest_voxel_and_rounds_halves_up():
    mask = np.zeros(SHAPE, bool)
    mask[2, 3, 4] = True
    where = np.array([[4, 3, 2], [3.5, 2.5, 1.5], [4.49, 3.49, 2.49], [4.5, 3, 2], [3.49, 3, 2], [-9, 3, 2]], float)
    valid = np.ones(len(where), bool)
    keep_inside_mask(mask, where, np.eye(3), np.zeros(3), valid)
    assert valid.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_scatter_gives_the_same_bits_for_any_number_of_threads(order, monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "8")
    rng = np.random.default_rng(4)
    where, gradients = rng.uniform(1, 6, (3000, 3)), rng.standard_normal((3000, 3))
    bounds = np.full(3, 1.0), np.full(3, 6.0)
    results = []
    for threads in (1, 2, 5, 8):
        out = np.zeros((8, 8, 8, 3))
        with at_most(threads):
            scatter(where, gradients, np.eye(3), np.zeros(3), order, *bounds, out)
        results.append(out)
    np.testing.assert_allclose(results[0].sum(axis=(0, 1, 2)), gradients.sum(axis=0), rtol=1e-9)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_the_kernel_gives_the_same_bits_for_any_number_of_threads(monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "4")
    fixed, moving, where, results = field(24, 2).reshape(-1, 24), field(24, 3), points(5000), []
    for threads in range(1, 5):
        with at_most(threads):
            results.append(run(fixed, moving, where))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_code_that_cannot_be_kept_on_disk_still_compiles():
    nowhere: dict = {}
    exec("def double(x):\n    return 2 * x", nowhere)  # a function without a file has no place for a cache
    assert inlined(nowhere["double"])(21) == 42
