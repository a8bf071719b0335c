"""Losses of the torch path: derivatives, slow formulas, analytic fields, bad input, and a network that trains."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from dsir_metric.errors import ConfigError, DataError, DsirError, GeometryError, ShapeError  # noqa: E402
from dsir_metric.geometry import DisplacementField, Grid  # noqa: E402
from dsir_metric.metric import CosineMetric  # noqa: E402
from dsir_metric.represent.representation import Representation  # noqa: E402
from dsir_metric.torch.losses import (  # noqa: E402
    BendingLoss,
    DiffusionLoss,
    DNSCosineLoss,
    FoldLoss,
    LocalNCCLoss,
    MINDSSCLoss,
    NMILoss,
)
from dsir_metric.torch.mind import mind_ssc, mind_ssc_loss  # noqa: E402
from dsir_metric.torch.regularity import bending, diffusion, fold_penalty, jacobian_determinant  # noqa: E402
from dsir_metric.torch.similarity import dns_cosine, local_ncc, nmi  # noqa: E402
from dsir_metric.torch.warp import identity, warp  # noqa: E402

Floats = NDArray[np.float64]
SPACING = (1.5, 2.0, 3.5)
CHANNELS = {dns_cosine: 3, nmi: 1, mind_ssc_loss: 1, local_ncc: 1}
SIMILARITIES = list(CHANNELS)


def noise(*shape: int, seed: int = 0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return high * torch.rand(*shape, generator=generator, dtype=torch.float64)


def volumes(loss: Callable[..., Tensor], *shape: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    return noise(batch, CHANNELS[loss], *shape), noise(batch, CHANNELS[loss], *shape, seed=1)


# Every similarity.


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", SIMILARITIES)
def test_derivative_of_a_similarity(loss: Callable[..., Tensor], masked: bool) -> None:
    fixed, moved = (v.requires_grad_() for v in volumes(loss, 4, 3, 5))
    mask = noise(2, 1, 4, 3, 5, seed=2).requires_grad_() if masked else None
    assert torch.autograd.gradcheck(loss, (fixed, moved, mask))


@pytest.mark.parametrize("loss", SIMILARITIES)
def test_better_is_lower(loss: Callable[..., Tensor]) -> None:
    fixed, _ = volumes(loss, 8, 8, 8)
    values = [float(loss(fixed, (1 - w) * fixed + w * fixed.flip(2))) for w in (0.0, 0.3, 0.6)]
    assert values == sorted(values)
    assert values[0] < values[2] - 0.01


@pytest.mark.parametrize("loss", SIMILARITIES)
def test_a_batch_is_the_mean_of_its_pairs(loss: Callable[..., Tensor]) -> None:
    fixed, moved = volumes(loss, 5, 4, 6)
    mask = noise(2, 1, 5, 4, 6, seed=2) > torch.tensor([0.2, 0.8]).view(2, 1, 1, 1, 1)
    one, two = (float(loss(fixed[k : k + 1], moved[k : k + 1], mask[k : k + 1])) for k in (0, 1))
    assert float(loss(fixed, moved, mask)) == pytest.approx((one + two) / 2, rel=1e-12)
    assert one != pytest.approx(two, rel=1e-3)
    assert float(loss(fixed, moved, mask[:1])) == pytest.approx(float(loss(fixed, moved, mask[[0, 0]])), rel=1e-12)


@pytest.mark.parametrize("loss", SIMILARITIES)
def test_nothing_outside_the_mask_counts(loss: Callable[..., Tensor]) -> None:
    fixed, moved = volumes(loss, 4, 4, 24)
    mask = torch.zeros(1, 1, 4, 4, 24, dtype=torch.bool)
    mask[..., :6] = True
    inner = [v[..., :14] for v in (fixed, moved)]  # windows reach up to 4 voxels out of the mask
    whole = float(loss(fixed, moved, mask))
    assert whole == pytest.approx(float(loss(*inner, mask[..., :14])), abs=2e-2 if loss is mind_ssc_loss else 1e-5)
    assert whole == pytest.approx(float(loss(fixed, moved, mask.to(torch.float64))), rel=1e-12)
    assert whole != pytest.approx(float(loss(fixed, moved)), rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("loss", SIMILARITIES)
def test_flat_volumes_have_finite_derivatives(loss: Callable[..., Tensor], value: float) -> None:
    fixed, moved = (v.float() for v in volumes(loss, 6, 6, 6, batch=1))
    flat = torch.full_like(moved, value)
    half = torch.where(torch.arange(6) < 3, flat, moved)
    for a, b in product((fixed, flat), (flat, half)):
        b = b.clone().requires_grad_()
        found = loss(a, b)
        (slope,) = torch.autograd.grad(found, b)
        assert torch.isfinite(found)
        assert torch.isfinite(slope).all()


@pytest.mark.parametrize("loss", SIMILARITIES)
def test_half_precision_is_compared_in_single(loss: Callable[..., Tensor]) -> None:
    fixed, moved = (v.half() for v in volumes(loss, 5, 5, 5))
    found = loss(fixed, moved)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(loss(fixed.float(), moved.float())), rel=1e-6)


@pytest.mark.parametrize("loss", SIMILARITIES)
def test_bad_input_of_a_similarity(loss: Callable[..., Tensor]) -> None:
    fixed, moved = volumes(loss, 4, 3, 5)
    mask = torch.ones(2, 1, 4, 3, 5, dtype=torch.bool)
    none = mask.clone()
    none[1] = False
    bad: list[tuple[type[DsirError], str, tuple[Tensor | None, ...]]] = [
        (ShapeError, r"one shape", (fixed, moved[:1], None)),
        (ShapeError, r"one shape", (fixed, moved[..., :4], None)),
        (ShapeError, r"one shape", (fixed[0], moved[0], None)),
        (ShapeError, r"one shape", (fixed[..., :0], moved[..., :0], None)),
        (ShapeError, r"mask of shape \(2, 1, 4, 3, 5\)", (fixed, moved, mask[:, 0])),
        (ShapeError, r"mask of shape", (fixed, moved, mask[..., :1])),
        (DataError, r"mask leaves no voxel", (fixed, moved, none)),
        (DataError, r"mask leaves no voxel", (fixed, moved, 0 * mask[:1])),
    ]
    if loss is not dns_cosine:
        bad.append(
            (ShapeError, r"1 channel; 2 came", (fixed.expand(-1, 2, -1, -1, -1), moved.expand(-1, 2, -1, -1, -1)))
        )
    for error, message, arguments in bad:
        with pytest.raises(error, match=message) as caught:
            loss(*arguments)
        assert "\n" not in str(caught.value)


# DNS cosine.


@pytest.mark.parametrize("masked", [False, True])
def test_cosine_is_that_of_the_metric(masked: bool) -> None:
    grid = Grid((7, 6, 5), SPACING, (3.0, -2.0, 8.0))
    fixed, moving = (
        np.random.default_rng(seed).standard_normal((*grid.shape, 24)).astype(np.float32) for seed in (1, 2)
    )
    moving = moving + fixed
    fixed[2:4, :, 1] = 0.0
    moving[:, 3, 3:] = 0.0
    inside = np.random.default_rng(3).random(grid.shape) > 0.4
    mask = grid.stamp(sitk.GetImageFromArray(inside.astype(np.uint8))) if masked else None
    metric = CosineMetric(Representation(fixed, grid), Representation(moving, grid), fixed_mask=mask)
    wanted = metric.value(sitk.TranslationTransform(3))
    tensors = (torch.tensor(v).movedim(-1, 0)[None] for v in (fixed, moving))
    found = dns_cosine(*tensors, torch.tensor(inside)[None, None] if masked else None)
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    assert -0.8 < wanted < -0.4


def test_cosine_knows_no_length() -> None:
    fixed, moved = volumes(dns_cosine, 4, 4, 4)
    length = noise(2, 1, 4, 4, 4, seed=5) + 0.5
    assert float(dns_cosine(length * fixed, 3 * moved)) == pytest.approx(float(dns_cosine(fixed, moved)), rel=1e-12)
    assert float(dns_cosine(fixed, 2 * fixed)) == pytest.approx(-1)
    assert float(dns_cosine(fixed, -fixed)) == pytest.approx(1)


def test_a_descriptor_that_vanishes_pulls_nowhere() -> None:
    fixed, moved = volumes(dns_cosine, 3, 3, 3)
    moved[:, :, 1] = 0
    (slope,) = torch.autograd.grad(dns_cosine(fixed, moved.requires_grad_()), moved)
    assert (slope[:, :, 1] == 0).all()
    assert (slope[:, :, 0] != 0).all()


# Normalised mutual information.


def entropy(counts: Floats) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def test_nmi_of_narrow_windows_is_that_of_a_histogram() -> None:
    rng = np.random.default_rng(4)
    fixed = rng.integers(0, 50, (8, 9, 10))
    moved = (fixed // 7 + rng.integers(0, 3, fixed.shape)) * 5
    counts = np.histogram2d(fixed.ravel(), moved.ravel(), np.arange(51) - 0.5)[0]
    wanted = (entropy(counts.sum(1)) + entropy(counts.sum(0))) / entropy(counts)
    tensors = (torch.tensor(v / 49)[None, None] for v in (fixed, moved))
    assert float(nmi(*tensors, bins=50, sigma_bins=0.05)) == pytest.approx(-wanted, rel=1e-9)
    assert wanted > 1.2


def test_nmi_of_wide_windows_is_that_of_a_slow_sum() -> None:
    fixed, moved = volumes(nmi, 3, 4, 5, batch=1)
    fixed, moved = 140 * fixed - 20, 140 * moved - 20  # some lie outside the range
    weights = noise(1, 1, 3, 4, 5, seed=3)
    counts = np.zeros((6, 6))
    for a, b, w in zip(fixed.flatten().tolist(), moved.flatten().tolist(), weights.flatten().tolist(), strict=True):
        rows, columns = (np.exp(-((v / 100 * 5 - np.arange(6)) ** 2) / (2 * 0.8**2)) for v in (a, b))
        counts += w * np.outer(rows / rows.sum(), columns / columns.sum())
    wanted = (entropy(counts.sum(1)) + entropy(counts.sum(0))) / entropy(counts)
    found = nmi(fixed, moved, weights, bins=6, sigma_bins=0.8, range_=(0.0, 100.0))
    assert float(found) == pytest.approx(-wanted, rel=1e-9)


def test_nmi_in_pieces_is_nmi(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moved = (v.requires_grad_() for v in volumes(nmi, 5, 4, 6))
    mask = noise(2, 1, 5, 4, 6, seed=2) > 0.4
    whole = nmi(fixed, moved, mask)
    slopes = torch.autograd.grad(whole, (fixed, moved))
    monkeypatch.setattr("dsir_metric.torch.similarity._CHUNK", 14)
    pieces = nmi(fixed, moved, mask)
    assert pieces.item() == pytest.approx(whole.item(), rel=1e-12)
    for a, b in zip(slopes, torch.autograd.grad(pieces, (fixed, moved)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_nmi_sees_through_contrast_and_not_through_disorder() -> None:
    fixed, moved = volumes(nmi, 12, 12, 12, batch=1)
    mixed = 0.7 * fixed + 0.3 * moved
    order = torch.randperm(mixed.numel(), generator=torch.Generator().manual_seed(1))
    shuffled = mixed.flatten()[order].view_as(mixed)
    assert float(nmi(fixed, fixed)) < float(nmi(fixed, mixed)) - 0.1 < float(nmi(fixed, shuffled)) - 0.1
    assert float(nmi(fixed, shuffled)) == pytest.approx(-1, abs=0.05)
    assert float(nmi(fixed, 1 - mixed)) == pytest.approx(float(nmi(fixed, mixed)), rel=1e-9)
    assert float(nmi(mixed, fixed)) == pytest.approx(float(nmi(fixed, mixed)), rel=1e-9)


def test_nmi_of_constant_images_is_that_of_strangers() -> None:
    flat = torch.full((1, 1, 4, 4, 4), 7.0)
    assert float(nmi(flat, flat)) == pytest.approx(-1, abs=1e-5)
    assert float(nmi(flat, flat, sigma_bins=0.05)) == pytest.approx(-1, abs=1e-5)  # no entropy at all


# Local correlation.


def test_local_ncc_is_its_slow_formula() -> None:
    fixed, moved = volumes(local_ncc, 5, 4, 6, batch=1)
    moved = moved + fixed
    f, m = fixed[0, 0].numpy(), moved[0, 0].numpy()
    squares = []
    for place in np.ndindex(f.shape):
        box = tuple(slice(max(p - 1, 0), p + 2) for p in place)
        squares.append(np.corrcoef(f[box].ravel(), m[box].ravel())[0, 1] ** 2)
    assert float(local_ncc(fixed, moved, window_vox=3)) == pytest.approx(-np.mean(squares), rel=2e-3)


def test_local_ncc_of_linear_changes() -> None:
    fixed, moved = volumes(local_ncc, 9, 8, 7)
    changed = float(local_ncc(1000 - 300 * fixed, 1e-3 * moved + 5))
    assert changed == pytest.approx(float(local_ncc(fixed, moved)), rel=1e-9)
    assert float(local_ncc(fixed, 2 - 3 * fixed)) == pytest.approx(-1, abs=1e-3)


# MIND.


def slow_mind(volume: Floats, radius: int, dilation: int) -> Floats:
    """(12, z, y, x), voxel by voxel, straight from the definition."""

    def at(place: Floats) -> float:
        z, y, x = (min(max(int(p), 0), n - 1) for p, n in zip(place, volume.shape, strict=True))
        return float(volume[z, y, x])

    six = [np.array(p) for p in ((0, 0, -1), (0, 0, 1), (0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0))]
    layout = [(six[i], six[j]) for i in range(6) for j in range(i + 1, 6) if i // 2 != j // 2]
    box = [np.array(b) for b in product(range(-radius, radius + 1), repeat=3)]
    out = np.zeros((12, *volume.shape))
    for x in np.ndindex(volume.shape):
        centres = [np.clip(np.add(x, b), 0, np.subtract(volume.shape, 1)) for b in box]  # the box repeats its edge
        for k, (p, q) in enumerate(layout):
            out[(k, *x)] = np.mean([(at(c + dilation * p) - at(c + dilation * q)) ** 2 for c in centres])
    out -= out.min(axis=0)
    variance = out.mean(axis=0)
    return np.asarray(np.exp(-out / np.clip(variance, 0.001 * variance.mean(), 1000 * variance.mean())))


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (0, 1)])
def test_mind_is_what_its_definition_says(radius: int, dilation: int) -> None:
    image = noise(2, 1, 6, 4, 5)
    image[0, :, :3] *= 1e-3  # nearly flat: the clamp of the variance is at work
    found = mind_ssc(image, radius, dilation)
    wanted = [slow_mind(volume[0].numpy(), radius, dilation) for volume in image]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-9)


def test_mind_of_a_linear_change_of_intensity_is_the_same() -> None:
    fixed, moved = volumes(mind_ssc_loss, 8, 7, 6)
    torch.testing.assert_close(mind_ssc(300 - 200 * fixed), mind_ssc(fixed))
    assert (mind_ssc(torch.ones(1, 1, 5, 5, 5)) == 1).all()
    wanted = (mind_ssc(fixed) - mind_ssc(moved)).square().mean()
    assert float(mind_ssc_loss(fixed, moved)) == pytest.approx(float(wanted), rel=1e-12)
    assert float(mind_ssc_loss(fixed, 1 - fixed)) == pytest.approx(0, abs=1e-12)


# Regularity.


def polynomial(slope: Floats, curvature: Floats, shape: tuple[int, int, int] = (5, 6, 7)) -> Tensor:
    """u_k(i) = slope[k] . i + i . curvature[k] . i with i in voxels, x, y, z."""
    place = identity(shape, torch.zeros((), dtype=torch.float64))[0].numpy()
    values = np.einsum("kj,jzyx->kzyx", slope, place)
    values = values + np.einsum("izyx,kij,jzyx->kzyx", place, curvature, place) + np.ones((3, 1, 1, 1))
    return torch.tensor(values)[None]


SLOPE = np.random.default_rng(0).normal(0, 0.2, (3, 3))
CURVATURE = np.random.default_rng(1).normal(0, 0.02, (3, 3, 3))


@pytest.mark.parametrize("spacing", [None, SPACING])
def test_smoothness_of_polynomials(spacing: tuple[float, float, float] | None) -> None:
    s = np.array(spacing or (1.0, 1.0, 1.0))
    affine = polynomial(SLOPE, 0 * CURVATURE)
    wanted = ((SLOPE * s[:, None] / s) ** 2).sum()
    assert float(diffusion(affine, spacing)) == pytest.approx(wanted, rel=1e-9)
    assert float(bending(affine, spacing)) == pytest.approx(0, abs=1e-20)
    hessian = (CURVATURE + CURVATURE.transpose(0, 2, 1)) * s[:, None, None] / np.multiply.outer(s, s)
    assert float(bending(polynomial(SLOPE, CURVATURE), spacing)) == pytest.approx((hessian**2).sum(), rel=1e-9)


def test_a_shift_costs_nothing_and_an_alternation_something() -> None:
    shift = torch.ones(2, 3, 4, 4, 4)
    sign = (-1.0) ** torch.arange(4)
    for penalty in (diffusion, bending):
        assert float(penalty(shift)) == 0
        assert float(penalty(shift * sign)) >= 4


@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 4, 3), (2, 1, 1)])
def test_jacobian_is_that_of_the_displacement_field(shape: tuple[int, int, int]) -> None:
    grid = Grid((shape[2], shape[1], shape[0]), SPACING)
    displacement = noise(2, 3, *shape) - 0.5
    found = jacobian_determinant(displacement)
    assert found.shape == (2, *shape)
    for one, came in zip(displacement.numpy(), found.numpy(), strict=True):
        wanted = DisplacementField(np.moveaxis(one, 0, -1) * SPACING, grid).jacobian_determinant()
        np.testing.assert_allclose(came, wanted, atol=1e-12)


def test_jacobian_of_an_affine_displacement() -> None:
    found = jacobian_determinant(polynomial(SLOPE, 0 * CURVATURE))
    np.testing.assert_allclose(found, np.linalg.det(np.eye(3) + SLOPE), rtol=1e-9)


def test_folds_cost_what_they_lack() -> None:
    mirror = polynomial(np.diag([-1.5, 0.0, 0.0]), 0 * CURVATURE)  # det -0.5
    assert float(fold_penalty(mirror)) == pytest.approx(0.5)
    assert float(fold_penalty(mirror, 0.1)) == pytest.approx(0.6)
    assert float(fold_penalty(torch.zeros(1, 3, 4, 4, 4))) == 0
    assert float(fold_penalty(torch.zeros(1, 3, 4, 4, 4), 1.25)) == pytest.approx(0.25)


def test_an_axis_of_one_voxel_is_constant() -> None:
    flat = noise(1, 3, 1, 5, 6)
    deep = flat.expand(-1, -1, 4, -1, -1)
    for penalty in (diffusion, bending, fold_penalty):
        assert float(penalty(flat)) == pytest.approx(float(penalty(deep)), rel=1e-12)


@pytest.mark.parametrize(
    "penalty",
    [
        diffusion,
        lambda u: diffusion(u, SPACING),
        bending,
        lambda u: bending(u, SPACING),
        jacobian_determinant,
        lambda u: fold_penalty(u, 0.9),
    ],
)
def test_derivative_of_a_penalty(penalty: Callable[[Tensor], Tensor]) -> None:
    displacement = (noise(2, 3, 3, 4, 3) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(penalty, displacement)


@pytest.mark.parametrize("penalty", [diffusion, bending, jacobian_determinant, fold_penalty])
def test_bad_displacement(penalty: Callable[[Tensor], Tensor]) -> None:
    for shape in ((3, 4, 4, 4), (1, 2, 4, 4, 4), (1, 4, 4, 4, 3), (0, 3, 4, 4, 4)):
        with pytest.raises(ShapeError, match=r"shape \(batch, 3, z, y, x\) is expected"):
            penalty(torch.zeros(shape))


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ConfigError, lambda v: nmi(v, v, bins=1)),
        (ConfigError, lambda v: nmi(v, v, sigma_bins=0.0)),
        (ConfigError, lambda v: nmi(v, v, range_=(1.0, 1.0))),
        (ConfigError, lambda v: local_ncc(v, v, window_vox=4)),
        (ConfigError, lambda v: local_ncc(v, v, window_vox=1)),
        (ConfigError, lambda v: mind_ssc(v, radius=-1)),
        (ConfigError, lambda v: mind_ssc(v, dilation=0)),
        (ShapeError, lambda v: mind_ssc(v[0])),
        (ShapeError, lambda v: mind_ssc(v.expand(-1, 2, -1, -1, -1))),
        (GeometryError, lambda v: diffusion(v.expand(-1, 3, -1, -1, -1), (1.0, 0.0, 1.0))),
        (GeometryError, lambda v: bending(v.expand(-1, 3, -1, -1, -1), (1.0, float("nan"), 1.0))),
        (GeometryError, lambda v: bending(v.expand(-1, 3, -1, -1, -1), (1.0, 1.0))),
    ],
)
def test_bad_settings(error: type[DsirError], call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(error, match="came"):
        call(noise(1, 1, 4, 4, 4))


# Modules.


def test_modules_are_the_functions() -> None:
    fixed, moved = noise(1, 1, 6, 6, 6), noise(1, 1, 6, 6, 6, seed=1)
    mask = noise(1, 1, 6, 6, 6, seed=2) > 0.5
    displacement = noise(1, 3, 6, 6, 6) - 0.5
    for m in (None, mask):
        assert DNSCosineLoss()(fixed, moved, m) == dns_cosine(fixed, moved, m)
        assert NMILoss(8, 0.9, (0.1, 0.8))(fixed, moved, m) == nmi(fixed, moved, m, 8, 0.9, (0.1, 0.8))
        assert MINDSSCLoss(0, 1)(fixed, moved, m) == mind_ssc_loss(fixed, moved, m, 0, 1)
        assert LocalNCCLoss(5)(fixed, moved, m) == local_ncc(fixed, moved, m, 5)
    assert DiffusionLoss(SPACING)(displacement) == diffusion(displacement, SPACING)
    assert BendingLoss(SPACING)(displacement) == bending(displacement, SPACING)
    assert FoldLoss(0.9)(displacement) == fold_penalty(displacement, 0.9)


def waves(shift: tuple[float, float, float]) -> Tensor:
    """A smooth field of 8 descriptors, (1, 8, 14, 14, 14), seen `shift` voxels (x, y, z) away."""
    generator = torch.Generator().manual_seed(3)
    pace, phase = torch.randn(8, 3, generator=generator) * 0.4, 6 * torch.rand(8, 1, 1, 1, generator=generator)
    place = identity((14, 14, 14), phase)[0] + torch.tensor(shift).view(3, 1, 1, 1)
    return torch.sin(torch.einsum("cj,jzyx->czyx", pace, place) + phase)[None]


def test_a_network_of_two_layers_learns_a_translation() -> None:
    shift = torch.tensor([1.5, -1.0, 0.5])
    fixed, moving = waves((0.0, 0.0, 0.0)), waves(tuple(-shift))  # moving(i + shift) = fixed(i)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(16, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv3d(8, 3, 3, padding=1))
    loss, smoothness = DNSCosineLoss(), DiffusionLoss()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    both, values, errors = torch.cat([fixed, moving], dim=1), [], []
    for _ in range(40):
        displacement = network(both)
        similarity = loss(fixed, warp(moving, displacement))
        optimiser.zero_grad()
        (similarity + 0.5 * smoothness(displacement)).backward()
        optimiser.step()
        inner = displacement.detach()[..., 2:-2, 2:-2, 2:-2]
        values.append(float(similarity.detach()))
        errors.append(float((inner - shift.view(1, 3, 1, 1, 1)).norm(dim=1).mean()))
    assert values[-1] < values[0] - 0.2
    assert errors[-1] < 0.5 * errors[0]
