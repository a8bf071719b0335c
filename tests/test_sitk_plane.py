"""2-D images: our loop against the native class, and the DNS cosine metric under 2-D transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from sitk_scalar import OurLoop, both, identity_field, native, scalar_plane

NEVER, ONCE, EACH = (getattr(sitk.ImageRegistrationMethod, name) for name in ("Never", "Once", "EachIteration"))
PAIR = FIXED, MOVING = scalar_plane()
STRAIGHT = scalar_plane(
    (1.0, 0.0, 0.0, 1.0)
)  # ITK lays the mesh of a level from the first to the last pixel: on turned
# axes the last bit decides whether those pixels move
CENTRE = FIXED.TransformContinuousIndexToPhysicalPoint((19.5, 16.5))

TRANSFORMS: dict[str, Callable[[], Any]] = {
    "translation": lambda: sitk.TranslationTransform(2),
    "euler": lambda: sitk.Euler2DTransform(CENTRE),
    "similarity": lambda: sitk.Similarity2DTransform(1.0, 0.0, (0.0, 0.0), CENTRE),
    "affine": lambda: sitk.AffineTransform((1.0, 0.0, 0.0, 1.0), (0.0, 0.0), CENTRE),
    "bspline": lambda: sitk.BSplineTransformInitializer(FIXED, [2, 2]),
    "bspline of a level": lambda: sitk.BSplineTransformInitializer(STRAIGHT[0], [3, 2]),
    "field": lambda: identity_field(FIXED),
}
OPTIMIZERS: dict[str, Callable[[Any], None]] = {
    "descent": lambda r: r.SetOptimizerAsGradientDescent(1.0, 8, 1e-6, 10, ONCE),
    "descent convergence": lambda r: r.SetOptimizerAsGradientDescent(1.0, 60, 1e-2, 4, ONCE),
    "regular": lambda r: r.SetOptimizerAsRegularStepGradientDescent(1.0, 0.1, 30),
    "line search": lambda r: r.SetOptimizerAsGradientDescentLineSearch(1.0, 4),
    "conjugate": lambda r: r.SetOptimizerAsConjugateGradientLineSearch(1.0, 5, 1e-6, 10, 0, 4.0, 0.02, 15),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["translation", "euler", "similarity", "affine"])
def test_descents_go_the_native_way(optimizer: str, kind: str) -> None:
    def setup(method: Any) -> None:
        OPTIMIZERS[optimizer](method)
        method.SetOptimizerScalesFromPhysicalShift()

    both(setup, TRANSFORMS[kind], PAIR)


@pytest.mark.parametrize("scales", ["PhysicalShift", "IndexShift", "Jacobian"])
@pytest.mark.parametrize("kind", ["translation", "euler", "similarity", "affine", "bspline", "field"])
def test_scales_and_learning_rate_are_the_native_ones(scales: str, kind: str) -> None:
    def setup(method: Any) -> None:
        method.SetOptimizerAsGradientDescent(1.0, 2, 1e-6, 10, EACH)
        getattr(method, f"SetOptimizerScalesFrom{scales}")()

    both(setup, TRANSFORMS[kind], PAIR, rtol=1e-4, in_place=False)


@pytest.mark.parametrize("kind", ["euler", "bspline of a level", "field"])
def test_levels_go_the_native_way(kind: str) -> None:
    def setup(method: Any) -> None:
        method.SetOptimizerAsGradientDescent(1.0, 3, 1e-6, 10, ONCE)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([2, 1])
        method.SetSmoothingSigmasPerLevel([1.5, 0.5])
        method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(kind != "euler")

    both(setup, TRANSFORMS[kind], STRAIGHT if "level" in kind else PAIR, rtol=1e-4)


@pytest.mark.parametrize("variances", [(1.75, 0.0), (0.4, 1.0)])
def test_field_is_smoothed_as_natively(variances: tuple[float, float]) -> None:
    def transform() -> Any:
        field = identity_field(FIXED)
        field.SetSmoothingGaussianOnUpdate(*variances)
        return field

    def setup(method: Any) -> None:
        method.SetOptimizerAsGradientDescent(1.0, 3, 1e-6, 10, EACH)
        method.SetOptimizerScalesFromPhysicalShift()

    both(setup, transform, PAIR, rtol=1e-4)


@pytest.mark.parametrize("kind", ["euler", "affine", "translation"])
def test_moving_initial_transform_is_applied_after(kind: str) -> None:
    def setup(method: Any) -> None:
        method.SetOptimizerAsGradientDescent(1.0, 3, 1e-6, 10, EACH)
        method.SetOptimizerScalesFromIndexShift()
        before = sitk.Euler2DTransform((1.0, 2.0), 0.02, (0.5, -0.5))
        method.SetMovingInitialTransform(sitk.CompositeTransform([before, sitk.TranslationTransform(2, (0.3, 0.0))]))

    both(setup, TRANSFORMS[kind], PAIR)


def test_last_transform_of_a_composite_is_optimised() -> None:
    ends = []
    for method in (native(), OurLoop()):
        first = sitk.AffineTransform((1.01, 0.0, 0.0, 0.99), (0.1, 0.0), CENTRE)
        start = sitk.CompositeTransform([first, sitk.Euler2DTransform(CENTRE)])
        OPTIMIZERS["descent"](method)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(start)
        method.Execute(*PAIR)
        ends.append([start.TransformPoint(point) for point in ((0.0, 0.0), (5.0, 20.0))])
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-5)
    assert np.abs(np.subtract(ends[0], [(0.0, 0.0), (5.0, 20.0)])).max() > 0.3


def test_virtual_domain_can_be_set() -> None:
    def setup(method: Any) -> None:
        OPTIMIZERS["descent"](method)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetVirtualDomain([12, 13], [CENTRE[0] - 6, CENTRE[1] - 7], [1.1, 1.2], [1.0, 0.0, 0.0, 1.0])
        method.SetShrinkFactorsPerLevel([2])

    both(setup, TRANSFORMS["euler"], PAIR)


def test_exhaustive_walk_is_the_native_one() -> None:
    def setup(method: Any) -> None:
        method.SetOptimizerAsExhaustive([1, 2], 0.7)
        method.SetOptimizerScales([0.5, 1.0])

    both(setup, TRANSFORMS["translation"], PAIR)


@pytest.mark.parametrize(
    "choose",
    [
        lambda r: r.SetOptimizerAsLBFGSB(),
        lambda r: r.SetOptimizerAsLBFGS2(),
        lambda r: r.SetOptimizerAsPowell(),
        lambda r: r.SetOptimizerAsAmoeba(0.5, 300),
        lambda r: r.SetOptimizerAsOnePlusOneEvolutionary(300, seed=3),
    ],
)
def test_other_optimisers_end_where_the_native_amoeba_does(choose: Callable[[Any], None]) -> None:
    ends = []
    for method, setup in ((native(), lambda r: r.SetOptimizerAsAmoeba(0.5, 300)), (OurLoop(), choose)):
        setup(method)
        method.SetInitialTransform(TRANSFORMS["translation"]())
        ends.append(np.array(method.Execute(*PAIR).GetParameters()))
    assert np.linalg.norm(ends[1] - ends[0]) < 0.2 < 1.5 < np.linalg.norm(ends[0])
