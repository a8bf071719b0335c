"""With the DNS cosine metric no step of a descent is longer than a voxel.

That mean squares takes ITK's steps is what test_sitk_native.py is about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.represent import Representation, Representer, represent_pair
from dsir_metric.sitk import ImageRegistrationMethod
from dsir_metric.sitk.dns import ComparedPair
from dsir_metric.sitk.position import position_of
from dsir_metric.sitk.scales import ScaleEstimator
from dsir_metric.sitk.settings import ScalesChoice

NEVER, ONCE, EACH = (getattr(sitk.ImageRegistrationMethod, name) for name in ("Never", "Once", "EachIteration"))
GRID = Grid((20, 22, 24), (2.0, 2.2, 2.4), (-20.0, 10.0, 5.0))
CENTRE = tuple(GRID.centre_mm.tolist())
DESCENTS: dict[str, Callable[..., None]] = {
    "descent": lambda r, rate=ONCE, longest=0.0: r.SetOptimizerAsGradientDescent(1.0, 12, 1e-9, 13, rate, longest),
    "line search": lambda r, rate=ONCE, longest=0.0: r.SetOptimizerAsGradientDescentLineSearch(
        1.0, 6, 1e-9, 13, 0, 5, 0.01, 20, rate, longest
    ),
    "conjugate": lambda r, rate=ONCE, longest=0.0: r.SetOptimizerAsConjugateGradientLineSearch(
        1.0, 6, 1e-9, 13, 0, 5, 0.01, 20, rate, longest
    ),
}
TRANSFORMS: dict[str, Callable[[], Any]] = {
    "rigid": lambda: sitk.Euler3DTransform(CENTRE),
    "bspline": lambda: sitk.BSplineTransformInitializer(GRID.image(), [2, 2, 2]),
    "field": lambda: smoothed_field(1.5, 0.0),
    "smoothed field": lambda: smoothed_field(1.5, 0.5),
}


def smoothed_field(update: float, total: float) -> sitk.DisplacementFieldTransform:
    transform = sitk.DisplacementFieldTransform(GRID.image(sitk.sitkVectorFloat64, 3))
    transform.SetSmoothingGaussianOnUpdate(update, total)
    return transform


@pytest.fixture(scope="module")
def distant() -> tuple[Representation, Representation]:
    """Smooth random descriptors, and the same so far away that the first gradient says little."""
    noise = np.random.default_rng(3).normal(size=(*GRID.shape, 24))
    values = ndimage.gaussian_filter(noise, (1.5, 1.5, 1.5, 0))
    moving = Representation((values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32), GRID)
    away = sitk.Euler3DTransform(CENTRE, 0.15, -0.1, 0.2, (6.0, -5.0, 4.0))
    image = sitk.Resample(moving.to_sitk(), GRID.image(), away, sitk.sitkLinear, 0.0)
    return Representation.from_sitk(image), moving


def longest_steps(method: Any, images: Any, kind: str) -> list[float]:
    """How far each iteration moves the point that it moves furthest, mm."""
    fields, transform = [], TRANSFORMS[kind]()
    method.SetInitialTransform(transform)

    def note() -> None:
        if kind.endswith("field"):
            fields.append(np.reshape(method.GetOptimizerPosition(), (-1, 3)))
            return
        transform.SetParameters(method.GetOptimizerPosition())
        fields.append(DisplacementField.from_transform(transform, GRID).values.reshape(-1, 3))

    note_start = np.zeros((len(GRID.points_mm().reshape(-1, 3)), 3))
    method.AddCommand(sitk.sitkIterationEvent, note)
    method.Execute(*images)
    return np.linalg.norm(np.diff([note_start, *fields], axis=0), axis=-1).max(axis=1).tolist()


def dns() -> ImageRegistrationMethod:
    method = ImageRegistrationMethod()
    method.SetMetricAsDNSCosine()
    method.SetOptimizerScalesFromPhysicalShift()
    return method


@pytest.mark.parametrize("rate", [ONCE, EACH])
@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("optimizer", DESCENTS)
def test_no_step_is_longer_than_a_voxel(distant: Any, optimizer: str, kind: str, rate: int) -> None:
    method = dns()
    DESCENTS[optimizer](method, rate)
    steps = longest_steps(method, distant, kind)
    assert len(steps) >= 6
    # rotations turn and a smoothed sum shrinks: there ITK's estimate is that of a small step
    assert max(steps) <= 2.0 * {"rigid": 1.02, "smoothed field": 1.05}.get(kind, 1 + 1e-6)
    assert max(steps) > 0.3


@pytest.mark.parametrize("optimizer", DESCENTS)
def test_the_longest_step_can_be_given(distant: Any, optimizer: str) -> None:
    method = dns()
    DESCENTS[optimizer](method, ONCE, 0.4)
    assert 0.35 < max(longest_steps(method, distant, "rigid")) <= 0.41


def test_a_learning_rate_that_is_not_estimated_is_left_alone(distant: Any) -> None:
    method = dns()
    method.SetOptimizerAsGradientDescent(200.0, 3, 1e-9, 13, NEVER)
    rates: list[float] = []
    method.AddCommand(sitk.sitkIterationEvent, lambda: rates.append(method.GetOptimizerLearningRate()))
    assert max(longest_steps(method, distant, "rigid")) > 4
    assert set(rates) == {200.0}


def test_the_default_is_the_voxel_of_each_level(distant: Any) -> None:
    method = dns()
    DESCENTS["descent"](method)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2, 0])
    steps = longest_steps(method, distant, "rigid")
    assert 2.5 < max(steps[:12]) <= 4.1
    assert max(steps[12:]) <= 2.05


@pytest.mark.parametrize("scales", ["physical shift", "index shift", "jacobian"])
@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize(
    "after", [None, sitk.AffineTransform((1.2, 0.1, 0, 0, 0.9, 0, 0, 0.3, 1.4), (1, 2, 3), CENTRE)]
)
def test_the_quick_bound_is_one(scales: Any, kind: str, after: Any) -> None:
    moving = replace(GRID, spacing_mm=(0.3, 0.4, 0.5))
    position = position_of(TRANSFORMS[kind]())
    estimator = ScaleEstimator(ScalesChoice(scales), position, after, GRID, moving)
    for seed in range(3):
        step = np.random.default_rng(seed).normal(0, 0.1, position.parameters.size)
        scale, limit = estimator.step_scale(step), estimator.step_limit(step)
        quick = kind in ("bspline", "field")
        assert scale * (1 - 1e-9) <= limit
        assert (limit > scale * (1 + 1e-9)) == quick
        assert estimator.step_limit(2 * step) == pytest.approx(2 * limit, rel=1e-3)


def test_what_follows_a_bspline_and_is_not_linear_is_asked_point_by_point() -> None:
    after = sitk.BSplineTransformInitializer(GRID.image(), [2, 2, 2])
    position = position_of(TRANSFORMS["bspline"]())
    estimator = ScaleEstimator(ScalesChoice("physical shift"), position, after, GRID, GRID)
    step = np.random.default_rng(0).normal(0, 0.1, position.parameters.size)
    assert estimator.step_limit(step) == estimator.step_scale(step)


@pytest.fixture(scope="module")
def far() -> tuple[PhantomPair, tuple[Representation, Representation]]:
    """Two contrasts, 15 mm apart, represented by the default model."""
    turned = {"rotation_deg": (6.0, -5.0, 8.0), "translation_mm": (8.0, -7.0, 6.0)}
    pair = make_pair(48, 3.75, ("t1", "flair"), amplitude_mm=0.0, **turned)
    return pair, represent_pair(pair.fixed, pair.moving, Representer(device="cpu"))


@pytest.mark.parametrize("optimizer", ["descent", "line search", "conjugate"])
@pytest.mark.parametrize("bounded", [True, False])
def test_a_far_start_converges_with_the_notebooks_settings(
    far: Any, optimizer: str, bounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, dsirs = far
    if not bounded:
        unbounded = lambda *images: replace(ComparedPair(*dsirs, dsirs[0].grid, dsirs[1].grid), small_slopes=False)  # noqa: E731
        monkeypatch.setattr("dsir_metric.sitk.method.compared_pair", unbounded)
    method = dns()
    choices = {"learningRate": 1.0, "numberOfIterations": 100}
    {
        "descent": method.SetOptimizerAsGradientDescent,
        "line search": method.SetOptimizerAsGradientDescentLineSearch,
        "conjugate": method.SetOptimizerAsConjugateGradientLineSearch,
    }[optimizer](**choices)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.05, 1)
    method.SetMetricFixedMask(pair.fixed_labels > 0)
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    start = sitk.CenteredTransformInitializer(
        pair.fixed, pair.moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    assert pair.error_mm(start) > 14
    method.SetInitialTransform(start, inPlace=False)
    error = pair.error_mm(method.Execute(*dsirs))
    if bounded:
        assert error < 2.5
    elif optimizer == "descent":
        assert error > 2 * 2.5


@pytest.mark.parametrize(
    "choose",
    [
        lambda r, share: r.SetOptimizerAsLBFGS2(share, 200),
        lambda r, share: r.SetOptimizerAsLBFGSB(share, 200, costFunctionConvergenceFactor=0.0),
        lambda r, share: r.SetOptimizerAsRegularStepGradientDescent(0.02, 0.0, 400, 0.5, share),
    ],
)
def test_tolerances_of_gradients_are_shares_of_the_first(distant: Any, choose: Callable[..., None]) -> None:
    """In ITK they are absolute: larger than any gradient of a cosine, the notebooks' choices would end at once."""
    ends = []
    for share in (0.5, 0.05):
        method = dns()
        method.SetOptimizerScales([])
        choose(method, share)
        moved = sitk.TranslationTransform(3, (1.5, -1.5, 1.5))
        method.SetInitialTransform(moved)
        method.Execute(distant[1], distant[1])
        ends.append(float(np.linalg.norm(moved.GetOffset())))
    assert 1.3 > ends[0] > 2 * ends[1]
