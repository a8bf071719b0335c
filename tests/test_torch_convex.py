"""Coupled-convex search: shifts and deformations far beyond the reach of a gradient, masks, empty places, bad input."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from dsir_metric.errors import ConfigError, DataError, ShapeError  # noqa: E402
from dsir_metric.torch.convex import ConvexConfig, _correlated, _Side, _solve, coupled_convex  # noqa: E402
from dsir_metric.torch.warp import exponential, warp  # noqa: E402

SMALL = ConvexConfig(half_width_vox=(16, 4))
SHAPE = (38, 34, 37)  # no multiple of a cell


def noise(channels: int, shape: tuple[int, int, int], width: int, seed: int = 0) -> Tensor:
    """Noise with details about `width` voxels wide, no larger than about 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [n // width + 3 for n in shape]
    values = torch.randn(1, channels, *coarse, generator=generator)
    large = F.interpolate(values, size=[n * width for n in coarse], mode="trilinear")
    return large[..., : shape[0], : shape[1], : shape[2]].contiguous()


def features(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return F.normalize(noise(8, shape, 4, seed), dim=1)


def constant(x: float, y: float, z: float, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.tensor([x, y, z]).view(1, 3, 1, 1, 1).expand(1, 3, *shape).contiguous()


def middle(margin: int) -> Tensor:
    box = torch.zeros(1, 1, *SHAPE)
    box[..., margin:-margin, margin:-margin, margin:-margin] = 1
    return box


def error(found: Tensor, true: Tensor, where: Tensor) -> Tensor:
    return (found - true).norm(dim=1)[where[:, 0] > 0]


@pytest.mark.parametrize("metric", ["cosine", "ssd"])
@pytest.mark.parametrize("consistency", [0, 3])
def test_a_shift_of_many_details(metric: Any, consistency: int) -> None:
    moving, true = features(), constant(11.0, -7.0, 5.0)
    fixed, mask = warp(moving, true), middle(12)
    config = ConvexConfig(half_width_vox=(16, 4), metric=metric, consistency=consistency)
    left = error(coupled_convex(fixed, moving, mask, config), true, mask)
    assert left.mean() < 1.2
    assert left.max() < 3.0


def test_a_smooth_deformation() -> None:
    velocity = 4.0 * noise(3, SHAPE, 20, 3) + constant(6.0, -5.0, 4.0)
    true, mask, moving = exponential(velocity), middle(10), features()
    assert true.norm(dim=1)[mask[:, 0] > 0].mean() > 7
    left = error(coupled_convex(warp(moving, true), moving, mask, SMALL), true, mask)
    assert left.mean() < 1.0


def test_ssd_takes_features_of_any_length() -> None:
    moving, true, mask = 20.0 * features().abs(), constant(8.0, 6.0, -8.0), middle(12)
    config = ConvexConfig(half_width_vox=(16, 4), metric="ssd")
    left = error(coupled_convex(warp(moving, true), moving, mask, config), true, mask)
    assert left.mean() < 0.7


def test_the_second_level_refines() -> None:
    moving, true, mask = features(), constant(9.0, -6.0, 3.0), middle(12)
    fixed = warp(moving, true)
    coarse = ConvexConfig(spacing_vox=(8,), step_vox=(4,), half_width_vox=(12,))
    one, two = (error(coupled_convex(fixed, moving, mask, c), true, mask).mean() for c in (coarse, SMALL))
    assert two < 0.7 * one


def test_what_the_mask_leaves_out_does_not_count() -> None:
    moving = features()
    mask = middle(8)
    mask[..., 20:] = 0
    true, other = constant(8.0, 0.0, -4.0), constant(-8.0, 8.0, 4.0)
    fixed = torch.where(mask > 0, warp(moving, true), warp(moving, other))
    found = coupled_convex(fixed, moving, mask, SMALL)
    assert error(found, true, mask).mean() < 0.7
    assert error(found, true, 1 - mask).mean() < 2.0  # and takes the field of its neighbours
    assert error(coupled_convex(fixed, moving, None, SMALL), other, 1 - mask).mean() < 4.0


def test_bool_masks_are_weights() -> None:
    fixed, moving, mask = features(), features(1), middle(9)
    found = [coupled_convex(fixed, moving, m, SMALL, m) for m in (mask, mask > 0, mask.double())]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_places_without_contrast_follow_their_neighbours() -> None:
    moving = features()
    moving[..., :20] = F.normalize(torch.ones(1, 8, 1, 1, 1), dim=1)  # nothing to see for x < 20
    true, mask = constant(0.0, 8.0, -4.0), middle(9)
    found = coupled_convex(warp(moving, true), moving, mask, SMALL)
    empty = mask.clone()
    empty[..., 18:] = 0
    assert error(found, true, empty).mean() < 1.5


def test_nothing_to_see_moves_nothing() -> None:
    flat = F.normalize(torch.ones(1, 8, *SHAPE), dim=1)
    assert coupled_convex(flat, flat, None, SMALL).norm(dim=1).max() < 1e-3


def test_where_moving_has_no_values_nothing_is_matched() -> None:
    moving, true, mask = features(), constant(8.0, 4.0, -4.0), middle(4)
    fixed = warp(moving, true)
    inside = torch.ones(1, 1, *SHAPE)
    inside[..., 30:] = 0
    lure = torch.where(inside > 0, moving, fixed)  # without the mask, staying where it is would be perfect there
    found = coupled_convex(fixed, lure, mask, SMALL, inside)
    blind = mask.clone()
    blind[..., :28] = 0
    misled = coupled_convex(fixed, lure, mask, SMALL)
    assert error(found, true, blind).mean() < 0.75 * error(misled, true, blind).mean()


def test_consistency_brings_the_two_ways_together() -> None:
    fixed = features()
    moving = warp(fixed, 4.0 * noise(3, SHAPE, 14, 5)) + 0.6 * features(9)
    gaps = []
    for consistency in (0, 4):
        config = ConvexConfig(half_width_vox=(16, 4), consistency=consistency)
        there, back = coupled_convex(fixed, moving, None, config), coupled_convex(moving, fixed, None, config)
        gaps.append((there + warp(back, there)).norm(dim=1).mean())
    assert gaps[1] < 0.8 * gaps[0]


def test_costs_are_inner_products_of_shifted_cubes() -> None:
    query, key = (noise(5, (4, 6, 8), 1, s)[0].movedim(0, -1).contiguous() for s in (1, 2))
    cost = _correlated(query, key, (1, 2, 3), 2).view(2, 3, 4, 3, 5, 7)
    z, y, x = torch.meshgrid(*[torch.arange(2, 4), torch.arange(2, 4), torch.arange(4, 6)], indexing="ij")
    products = (query[z, y, x] * key[z - 1, y + 2, x - 3]).sum(-1)  # cell 1, 1, 2 at shift -1, 2, -3
    assert cost[1, 1, 2, 0, 4, 0].item() == pytest.approx(products.mean().item(), rel=1e-5)
    assert cost[0, 0, 0, 0, 2, 3].item() == pytest.approx(
        (query[1, :2, :2] * key[0, :2, :2]).sum().item() / 8, rel=1e-4
    )


def test_a_heavier_coupling_makes_a_smoother_field() -> None:
    sides = [_Side(features(s)[0].movedim(0, -1)[:36, :32, :36], torch.ones(36, 32, 36, 1)) for s in (0, 1)]
    rough, smooth = (_solve(*sides, (2, 2, 2), 4, ConvexConfig(coupling=(w,) * 4)) for w in (1e-3, 1.0))
    assert smooth.diff(dim=2).abs().mean() < 0.75 * rough.diff(dim=2).abs().mean()


def test_the_same_pair_gives_the_same_field() -> None:
    fixed, moving = features(), features(1)
    assert torch.equal(coupled_convex(fixed, moving, None, SMALL), coupled_convex(fixed, moving, None, SMALL))


def test_a_search_wider_than_the_image_stops_at_half_of_it() -> None:
    fixed, moving = features(0, (24, 24, 8)), features(1, (24, 24, 8))
    wide, clamped = (
        coupled_convex(fixed, moving, None, ConvexConfig((4,), (4,), (half,), consistency=0)) for half in (64, 12)
    )
    assert torch.equal(wide, clamped)


def test_half_precision_features_give_a_float_field() -> None:
    moving, true, mask = features(), constant(8.0, -4.0, 8.0), middle(12)
    found = coupled_convex(warp(moving, true).half(), moving.half(), mask, SMALL)
    assert found.dtype == torch.float32
    assert error(found, true, mask).mean() < 0.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spacing_vox": (8,)}, "every level"),
        ({"spacing_vox": (), "step_vox": (), "half_width_vox": ()}, "1 to 8 entries, got 0"),
        ({"spacing_vox": (6, 4)}, "multiple"),
        ({"step_vox": (4, 0)}, "step_vox"),
        ({"half_width_vox": (2, 6)}, "at least one step"),
        ({"coupling": ()}, "coupling"),
        ({"coupling": (0.0, 1.0)}, "coupling"),
        ({"coupling": (1.0, 0.1)}, "coupling"),
        ({"smoothing": -1}, "smoothing"),
        ({"consistency": -1}, "consistency"),
        ({"metric": "nmi"}, "nmi"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConvexConfig(**settings)


def test_bad_input_is_refused() -> None:
    fixed = features()
    with pytest.raises(ShapeError, match="one shape"):
        coupled_convex(fixed, features()[:, :4])
    with pytest.raises(ShapeError, match="one shape"):
        coupled_convex(fixed[0], fixed[0])
    with pytest.raises(ShapeError, match="mask"):
        coupled_convex(fixed, fixed, torch.ones(1, 1, 4, 4, 4))
    with pytest.raises(DataError, match="inside leaves no voxel"):
        coupled_convex(fixed, fixed, None, SMALL, torch.zeros(1, 1, *SHAPE))
    with pytest.raises(DataError, match="in common"):
        coupled_convex(fixed, fixed, middle(12), SMALL, 1 - middle(12))
    with pytest.raises(DataError, match="moving features"):
        coupled_convex(fixed, fixed / 0)
    with pytest.raises(ConfigError, match="too long"):
        coupled_convex(features(0, (6, 6, 6)), features(0, (6, 6, 6)))
