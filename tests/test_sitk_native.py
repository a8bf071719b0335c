"""Our loop against the native class, in space and in the plane: same settings on scalar mean squares, same steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from sitk_scalar import OurLoop, both, identity_field, native, scalar_pair, scalar_plane, trace

NEVER, ONCE, EACH = (getattr(sitk.ImageRegistrationMethod, name) for name in ("Never", "Once", "EachIteration"))
CENTRE = (0.0, 16.0, 15.0)
PAIR = FIXED, MOVING = scalar_pair()
PLANE = scalar_plane()
# ITK lays the mesh of a level from the first to the last pixel: on turned axes the last bit decides whether those move.
STRAIGHT = scalar_plane((1.0, 0.0, 0.0, 1.0))
MIDDLE = PLANE[0].TransformContinuousIndexToPhysicalPoint((19.5, 16.5))

TRANSFORMS: dict[str, Callable[[], Any]] = {
    "translation": lambda: sitk.TranslationTransform(3),
    "euler": lambda: sitk.Euler3DTransform(CENTRE),
    "affine": lambda: sitk.AffineTransform(np.eye(3).ravel().tolist(), (0, 0, 0), CENTRE),
    "versor": lambda: sitk.VersorRigid3DTransform((0, 0, 0, 1), (0, 0, 0), CENTRE),
    "similarity": lambda: sitk.Similarity3DTransform(1.0, (0, 0, 1), 0.0, (0, 0, 0), CENTRE),
    "bspline": lambda: sitk.BSplineTransformInitializer(FIXED, [2, 2, 2]),
    "bspline of order 2": lambda: sitk.BSplineTransformInitializer(FIXED, [2, 2, 2], 2),
    "bspline of order 1": lambda: sitk.BSplineTransformInitializer(FIXED, [2, 2, 2], 1),
    "field": lambda: identity_field(FIXED),
    "2-D translation": lambda: sitk.TranslationTransform(2),
    "2-D euler": lambda: sitk.Euler2DTransform(MIDDLE),
    "2-D similarity": lambda: sitk.Similarity2DTransform(1.0, 0.0, (0.0, 0.0), MIDDLE),
    "2-D affine": lambda: sitk.AffineTransform((1.0, 0.0, 0.0, 1.0), (0.0, 0.0), MIDDLE),
    "2-D bspline": lambda: sitk.BSplineTransformInitializer(PLANE[0], [2, 2]),
    "2-D bspline of a level": lambda: sitk.BSplineTransformInitializer(STRAIGHT[0], [3, 2]),
    "2-D field": lambda: identity_field(PLANE[0]),
}
OPTIMIZERS: dict[str, Callable[[Any], None]] = {
    "descent": lambda r: r.SetOptimizerAsGradientDescent(1.0, 6, 1e-6, 10, ONCE),
    "descent each": lambda r: r.SetOptimizerAsGradientDescent(1.0, 6, 1e-6, 10, EACH, 0.3),
    "descent convergence": lambda r: r.SetOptimizerAsGradientDescent(1.0, 60, 1e-2, 4, ONCE),
    "descent never": lambda r: r.SetOptimizerAsGradientDescent(0.02, 6, 1e-6, 10, NEVER),
    "regular": lambda r: r.SetOptimizerAsRegularStepGradientDescent(1.0, 0.2, 20),
    "regular once": lambda r: r.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 8, 0.5, 1e-4, ONCE),
    "regular tolerance": lambda r: r.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 50, 0.5, 2.0),
    "line search": lambda r: r.SetOptimizerAsGradientDescentLineSearch(1.0, 4),
    "line search each": lambda r: r.SetOptimizerAsGradientDescentLineSearch(
        1.0, 4, 1e-6, 10, 0.1, 3.0, 0.02, 12, EACH, 0.5
    ),
    "conjugate never": lambda r: r.SetOptimizerAsConjugateGradientLineSearch(
        0.02, 5, 1e-6, 10, 0, 4.0, 0.02, 15, NEVER
    ),
    "conjugate": lambda r: r.SetOptimizerAsConjugateGradientLineSearch(1.0, 5, 1e-6, 10, 0, 4.0, 0.02, 15),
}


def pair_for(kind: str) -> tuple[sitk.Image, sitk.Image]:
    """Images for a kind of transform."""
    if kind == "2-D bspline of a level":
        return STRAIGHT
    return PLANE if kind.startswith("2-D") else PAIR


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "kind",
    ["translation", "euler", "affine", "2-D translation", "2-D euler", "2-D similarity", "2-D affine"],
)
def test_descents_go_the_native_way(optimizer: str, kind: str) -> None:
    def setup(method: Any) -> None:
        OPTIMIZERS[optimizer](method)
        method.SetOptimizerScalesFromPhysicalShift()

    both(setup, TRANSFORMS[kind], pair_for(kind))


@pytest.mark.parametrize("scales", ["PhysicalShift", "IndexShift", "Jacobian"])
@pytest.mark.parametrize("kind", [kind for kind in TRANSFORMS if "level" not in kind])
def test_scales_and_learning_rate_are_the_native_ones(scales: str, kind: str) -> None:
    def setup(method: Any) -> None:
        method.SetOptimizerAsGradientDescent(1.0, 2, 1e-6, 10, EACH)
        getattr(method, f"SetOptimizerScalesFrom{scales}")()

    both(setup, TRANSFORMS[kind], pair_for(kind), rtol=1e-4, in_place=False)


@pytest.mark.parametrize("optimizer", ["descent", "regular", "line search", "conjugate"])
@pytest.mark.parametrize("kind", ["versor", "similarity"])
def test_versor_steps_are_rotations(optimizer: str, kind: str) -> None:
    def setup(method: Any) -> None:
        OPTIMIZERS[optimizer](method)
        method.SetOptimizerScalesFromPhysicalShift()

    both(setup, TRANSFORMS[kind], pair_for(kind), rtol=1e-4)


@pytest.mark.parametrize(
    "choose",
    [
        lambda r: r.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 4),
        lambda r: r.SetOptimizerAsGradientDescentLineSearch(1.0, 2, 1e-6, 10, 0, 5, 0.1, 6),
        lambda r: r.SetOptimizerAsConjugateGradientLineSearch(1.0, 2, 1e-6, 10, 0, 5, 0.1, 6),
    ],
)
def test_bspline_goes_the_native_way_with_every_descent(choose: Callable[[Any], None]) -> None:
    def setup(method: Any) -> None:
        choose(method)
        method.SetOptimizerScalesFromJacobian()

    both(setup, TRANSFORMS["bspline"], PAIR, rtol=1e-3, in_place=False)


@pytest.mark.parametrize("optimizer", ["descent", "descent each", "line search", "conjugate"])
def test_learning_rate_is_not_estimated_with_scales_by_hand(optimizer: str) -> None:
    def setup(method: Any) -> None:
        OPTIMIZERS[optimizer](method)
        method.SetOptimizerScales([9e4, 8e4, 7e4, 1e3, 1e3, 1.2e3])

    both(setup, TRANSFORMS["euler"], PAIR)


@pytest.mark.parametrize(
    "kind",
    [
        "euler",
        "bspline",
        "bspline of order 2",
        "bspline of order 1",
        "field",
        "2-D euler",
        "2-D bspline of a level",
        "2-D field",
    ],
)
def test_levels_go_the_native_way(kind: str) -> None:
    def setup(method: Any) -> None:
        method.SetOptimizerAsGradientDescent(1.0, 3, 1e-6, 10, ONCE)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([2, 1])
        method.SetSmoothingSigmasPerLevel([1.5, 0.5])
        method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits("euler" not in kind)

    both(setup, TRANSFORMS[kind], pair_for(kind), rtol=1e-4)


@pytest.mark.parametrize("learning_rate", [ONCE, EACH])
@pytest.mark.parametrize("variances", [(1.75, 0.0), (3.0, 0.3), (0.4, 1.0)])
@pytest.mark.parametrize("kind", ["field", "2-D field"])
def test_field_is_smoothed_as_natively(kind: str, variances: tuple[float, float], learning_rate: int) -> None:
    def transform() -> Any:
        field = TRANSFORMS[kind]()
        field.SetSmoothingGaussianOnUpdate(*variances)
        return field

    def setup(method: Any) -> None:
        method.SetOptimizerAsGradientDescent(1.0, 3, 1e-6, 10, learning_rate)
        method.SetOptimizerScalesFromPhysicalShift()

    both(setup, transform, pair_for(kind), rtol=1e-4)


@pytest.mark.parametrize("window", [0, 1])
def test_a_window_too_short_for_a_slope_ends_the_descent_at_once(window: int) -> None:
    ends = []
    for method in (native(), OurLoop()):
        method.SetOptimizerAsGradientDescent(1.0, 6, 1e-6, window)
        ends.append(trace(method, TRANSFORMS["euler"](), PAIR))
    assert [rows for rows, _, _ in ends] == [[], []]
    assert ends[0][2] == ends[1][2] == "GradientDescentOptimizerv4Template: Convergence checker passed at iteration 0."


def test_a_transform_that_simpleitk_cannot_downcast_is_registered() -> None:
    for in_place in (False, True):
        transform, method = sitk.ComposeScaleSkewVersor3DTransform(), OurLoop()
        method.SetOptimizerAsGradientDescent(1.0, 2)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, in_place)
        start = method.MetricEvaluate(*PAIR)
        method.Execute(*PAIR)
        assert method.GetMetricValue() < start
        assert (transform.GetParameters() != sitk.ComposeScaleSkewVersor3DTransform().GetParameters()) == in_place


@pytest.mark.parametrize("optimizer", ["line search", "conjugate"])
def test_field_is_searched_along_lines_as_natively(optimizer: str) -> None:
    def transform() -> Any:
        field = identity_field(FIXED)
        field.SetSmoothingGaussianOnUpdate(1.75, 0.5)
        return field

    def setup(method: Any) -> None:
        OPTIMIZERS[optimizer](method)
        method.SetOptimizerScalesFromPhysicalShift()

    both(setup, transform, PAIR, rtol=1e-3)


@pytest.mark.parametrize("kind", ["euler", "affine", "translation", "2-D euler", "2-D affine", "2-D translation"])
def test_moving_initial_transform_is_applied_after(kind: str) -> None:
    def setup(method: Any) -> None:
        method.SetOptimizerAsGradientDescent(1.0, 3, 1e-6, 10, EACH)
        method.SetOptimizerScalesFromIndexShift()
        before, shift = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.02, 0.0, -0.03, (0.5, 0.0, -0.5)), (0.3, 0.0, 0.0)
        if kind.startswith("2-D"):
            before, shift = sitk.Euler2DTransform((1.0, 2.0), 0.02, (0.5, -0.5)), (0.3, 0.0)
        method.SetMovingInitialTransform(
            sitk.CompositeTransform([before, sitk.TranslationTransform(len(shift), shift)])
        )

    both(setup, TRANSFORMS[kind], pair_for(kind))


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (sitk.AffineTransform((1.01, 0, 0, 0, 1, 0, 0, 0, 0.99), (0.1, 0, 0), CENTRE), "euler"),
        (sitk.AffineTransform((1.01, 0.0, 0.0, 0.99), (0.1, 0.0), MIDDLE), "2-D euler"),
    ],
)
def test_last_transform_of_a_composite_is_optimised(first: sitk.Transform, kind: str) -> None:
    points = np.array([(0.0, 0.0, 0.0), (5.0, 20.0, 11.0)])[:, : first.GetDimension()].tolist()
    ends = []
    for method in (native(), OurLoop()):
        start = sitk.CompositeTransform([first, TRANSFORMS[kind]()])
        OPTIMIZERS["descent"](method)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(start)
        method.Execute(*pair_for(kind))
        ends.append([start.TransformPoint(point) for point in points])
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-5)
    assert np.abs(np.subtract(ends[0], points)).max() > 0.3


def test_manual_scales_and_weights_shape_the_step() -> None:
    def setup(method: Any) -> None:
        method.SetOptimizerAsRegularStepGradientDescent(0.5, 1e-3, 8)
        method.SetOptimizerScales([900.0, 800.0, 700.0, 1.0, 1.0, 2.0])
        method.SetOptimizerWeights([1.0, 0.0, 1.0, 1.0, 0.5, 1.0])

    result, _ = both(setup, TRANSFORMS["euler"], PAIR)
    assert result.GetParameters()[1] == 0.0


@pytest.mark.parametrize(
    ("kind", "domain"),
    [
        ("euler", ([8, 9, 10], [-5.0, 8.0, 6.0], [1.1, 1.2, 1.3], np.eye(3).ravel().tolist())),
        ("2-D euler", ([12, 13], [MIDDLE[0] - 6, MIDDLE[1] - 7], [1.1, 1.2], [1.0, 0.0, 0.0, 1.0])),
    ],
)
def test_virtual_domain_can_be_set(kind: str, domain: tuple[Any, ...]) -> None:
    def setup(method: Any) -> None:
        method.SetOptimizerAsGradientDescent(1.0, 3, 1e-6, 10, ONCE)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetVirtualDomain(*domain)
        method.SetShrinkFactorsPerLevel([2])

    both(setup, TRANSFORMS[kind], pair_for(kind))


@pytest.mark.parametrize(
    ("kind", "steps", "scales"),
    [
        ("translation", [1, 2, 0], []),
        ("translation", [1, 2, 0], [0.5, 1.0, 2.0]),
        ("2-D translation", [1, 2], [0.5, 1.0]),
    ],
)
def test_exhaustive_walk_is_the_native_one(kind: str, steps: list[int], scales: list[float]) -> None:
    def setup(method: Any) -> None:
        method.SetOptimizerAsExhaustive(steps, 0.7)
        method.SetOptimizerScales(scales)

    both(setup, TRANSFORMS[kind], pair_for(kind))


@pytest.mark.parametrize("kind", ["euler", "field"])
@pytest.mark.parametrize("in_place", [True, False])
def test_initial_transform_is_changed_in_place_or_not(kind: str, in_place: bool) -> None:
    seen = []
    for method in (native(), OurLoop()):
        method.SetOptimizerAsGradientDescent(1.0, 2, 1e-6, 10, ONCE)
        method.SetOptimizerScalesFromPhysicalShift()
        start = TRANSFORMS[kind]()
        _, result, _ = trace(method, start, PAIR, in_place)
        outer = result.GetNthTransform(0) if isinstance(result, sitk.CompositeTransform) else result
        kept = outer.GetParameters()
        held = method.GetInitialTransform()
        seen.append(
            [
                type(result),
                type(outer),
                np.allclose(start.GetParameters(), kept),
                np.allclose(held.GetParameters(), kept),
                method.GetInitialTransformInPlace(),
            ]
        )
        outer.SetParameters([0.0] * len(kept))
        assert np.allclose(start.GetParameters(), kept) == in_place
    assert seen[0] == seen[1]


def test_transform_without_a_class_of_its_own_is_changed_in_place_too() -> None:
    seen = []
    for method in (native(), OurLoop()):
        method.SetOptimizerAsGradientDescent(1.0, 2, 1e-6, 10, ONCE)
        method.SetOptimizerScalesFromPhysicalShift()
        start = sitk.Transform(TRANSFORMS["bspline"]())
        method.SetInitialTransform(start)
        method.Execute(FIXED, MOVING)
        seen.append(start.GetParameters())
    np.testing.assert_allclose(seen[1], seen[0], rtol=1e-4, atol=1e-6)


def test_one_plus_one_is_native_in_distribution() -> None:
    ends = []
    for make in (native, OurLoop):
        values = []
        for seed in range(1, 11):
            method = make()
            method.SetOptimizerAsOnePlusOneEvolutionary(60, 1e-6, 1.0, -1.0, -1.0, seed)
            method.SetInitialTransform(TRANSFORMS["translation"]())
            method.Execute(FIXED, MOVING)
            values.append(method.GetMetricValue())
        ends.append(np.log(values))
    assert abs(ends[0].mean() - ends[1].mean()) < ends[0].std() + ends[1].std()


def test_one_plus_one_stops_with_the_native_words() -> None:
    for settings in ((3, 1e-9, 1.0, -1.0, -1.0, 5), (50, 5.0, 1.0, -1.0, -1.0, 5)):
        words = []
        for method in (native(), OurLoop()):
            method.SetOptimizerAsOnePlusOneEvolutionary(*settings)
            method.SetInitialTransform(TRANSFORMS["translation"]())
            method.Execute(FIXED, MOVING)
            words.append((method.GetOptimizerStopConditionDescription(), method.GetOptimizerIteration()))
        assert words[1] == words[0]


def test_one_plus_one_repeats_with_its_seed_and_says_why_it_stops() -> None:
    ends = []
    for _ in range(2):
        method = OurLoop()
        method.SetOptimizerAsOnePlusOneEvolutionary(400, 1.0, 1.01, -1.0, -1.0, 7)
        method.SetInitialTransform(TRANSFORMS["translation"]())
        ends.append(method.Execute(FIXED, MOVING).GetParameters())
    assert ends[0] == ends[1]
    assert method.GetOptimizerStopConditionDescription().startswith("OnePlusOneEvolutionaryOptimizerv4: Fnorm (")


@pytest.mark.parametrize(
    "choose",
    [
        lambda r: r.SetOptimizerAsLBFGSB(),
        lambda r: r.SetOptimizerAsLBFGS2(),
        lambda r: r.SetOptimizerAsPowell(),
        lambda r: r.SetOptimizerAsAmoeba(0.5, 300, 1e-6, 1e-8, True),
        lambda r: r.SetOptimizerAsOnePlusOneEvolutionary(300, seed=3),
    ],
)
@pytest.mark.parametrize("kind", ["translation", "2-D translation"])
def test_other_optimisers_end_where_the_native_amoeba_does(choose: Callable[[Any], None], kind: str) -> None:
    best = native()
    best.SetOptimizerAsAmoeba(0.5, 300)
    best.SetInitialTransform(TRANSFORMS[kind]())
    expected = np.array(best.Execute(*pair_for(kind)).GetParameters())
    method = OurLoop()
    choose(method)
    method.SetInitialTransform(TRANSFORMS[kind]())
    values: list[float] = []
    method.AddCommand(sitk.sitkIterationEvent, lambda: values.append(method.GetMetricValue()))
    found = np.array(method.Execute(*pair_for(kind)).GetParameters())
    assert np.linalg.norm(found - expected) < 0.3 < 1.5 < np.linalg.norm(expected)
    assert values[-1] < values[0]
    assert method.GetMetricValue() <= best.GetMetricValue() * 1.05


def test_bounds_hold() -> None:
    method = OurLoop()
    method.SetOptimizerAsLBFGSB(lowerBound=-0.4, upperBound=0.4)
    method.SetInitialTransform(TRANSFORMS["translation"]())
    found = method.Execute(FIXED, MOVING).GetParameters()
    assert max(map(abs, found)) == pytest.approx(0.4)


def test_with_a_native_metric_it_is_the_native_class() -> None:
    from dsir_metric.sitk import ImageRegistrationMethod

    seen = []
    for method in (native(), ImageRegistrationMethod()):
        method.SetMetricAsMeanSquares()
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 0.2, 20)
        method.SetOptimizerScalesFromPhysicalShift()
        rows, result, why = trace(method, TRANSFORMS["euler"](), PAIR)
        seen.append((len(rows), result.GetParameters(), why, method.GetMetricValue(), method.GetName()))
        assert method.StopRegistration() is False
    (rows, end, why, value, name), (our_rows, our_end, our_why, our_value, our_name) = seen
    np.testing.assert_allclose([our_value, *our_end], [value, *end], rtol=1e-6)
    assert (our_rows, our_why, our_name) == (rows, why, name)
