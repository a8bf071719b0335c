"""Equation 1, written out voxel by voxel, against the lean form."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from dsir_metric_train.dns import PAIRS, relations  # noqa: E402

STEPS = [(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)]  # x, y, z


def transcribed(h: np.ndarray, dilation: int, epsilon: float) -> np.ndarray:
    """exp(-d / sigma^2) of the twelve pairs of neighbours sqrt(2) apart, one channel, (12, z, y, x)."""
    shape = h.shape

    def at(voxel: tuple[int, int, int], step: tuple[int, int, int]) -> float:
        moved = [i + dilation * s for i, s in zip(voxel, reversed(step), strict=True)]
        return h[tuple(min(max(i, 0), n - 1) for i, n in zip(moved, shape, strict=True))]

    pairs = [
        (a, b)
        for i, a in enumerate(STEPS)
        for b in STEPS[i + 1 :]
        if sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) == 2
    ]
    out = np.empty((len(pairs), *shape))
    for voxel in np.ndindex(shape):
        distances = np.array([(at(voxel, a) - at(voxel, b)) ** 2 for a, b in pairs])
        out[(slice(None), *voxel)] = np.exp(-distances / (distances.mean() + epsilon))
    return out


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_lean_form_is_equation_one(dilation: int, epsilon: float) -> None:
    h = np.random.default_rng(0).standard_normal((2, 5, 6, 7))
    lean = relations(torch.from_numpy(h)[None], dilation, epsilon)
    for channel in range(2):
        expected = transcribed(h[channel], dilation, epsilon)
        came = np.stack([relation[0, channel].numpy() for relation in lean])
        np.testing.assert_allclose(came, expected, atol=1e-12)


def test_twelve_pairs_and_never_the_centre() -> None:
    assert len(PAIRS) == 12
    h = torch.randn(1, 1, 5, 5, 5, dtype=torch.float64)
    changed = h.clone()
    changed[0, 0, 2, 2, 2] += 10
    for before, after in zip(relations(h, 1, 1e-5), relations(changed, 1, 1e-5), strict=True):
        assert before[0, 0, 2, 2, 2] == after[0, 0, 2, 2, 2]


def test_blind_to_gain_and_offset() -> None:
    h = torch.randn(1, 1, 6, 6, 6, dtype=torch.float64)
    for a, b in zip(relations(h, 1, 0.0), relations(-3 * h + 7, 1, 0.0), strict=True):
        torch.testing.assert_close(a, b)


def test_flat_region_is_fully_self_similar() -> None:
    flat = relations(torch.full((1, 1, 4, 4, 4), 0.7), 2, 1e-5)
    assert all(torch.equal(relation, torch.ones_like(relation)) for relation in flat)
