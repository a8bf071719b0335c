"""Our loop against the native class: same settings on scalar mean squares, same behaviour step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from sitk_scalar import OurLoop, identity_field, native, scalar_pair

NEVER, ONCE, EACH = (getattr(sitk.ImageRegistrationMethod, name) for name in ("Never", "Once", "EachIteration"))
CENTRE = (0.0, 16.0, 15.0)
FIXED, MOVING = scalar_pair()

TRANSFORMS: dict[str, Callable[[], Any]] = {
    "translation": lambda: sitk.TranslationTransform(3),
    "euler": lambda: sitk.Euler3DTransform(CENTRE),
    "affine": lambda: sitk.AffineTransform(np.eye(3).ravel().tolist(), (0, 0, 0), CENTRE),
    "versor": lambda: sitk.VersorRigid3DTransform((0, 0, 0, 1), (0, 0, 0), CENTRE),
    "similarity": lambda: sitk.Similarity3DTransform(1.0, (0, 0, 1), 0.0, (0, 0, 0), CENTRE),
    "bspline": lambda: sitk.BSplineTransformInitializer(FIXED, [2, 2, 2]),
    "field": lambda: identity_field(FIXED),
}
OPTIMIZERS: dict[str, Callable[[Any], None]] = {
    "descent": lambda r: r.SetOptimizerAsGradientDescent(1.0, 6, 1e-6, 10, ONCE),
    "descent each": lambda r: r.SetOptimizerAsGradientDescent(1.0, 6, 1e-6, 10, EACH, 0.3),
    "descent convergence": lambda r: r.SetOptimizerAsGradientDescent(1.0, 60, 1e-2, 4, ONCE),
    "regular": lambda r: r.SetOptimizerAsRegularStepGradientDescent(1.0, 0.2, 20),
    "regular once": lambda r: r.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 8, 0.5, 1e-4, ONCE),
    "regular tolerance": lambda r: r.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 50, 0.5, 2.0),
    "line search": lambda r: r.SetOptimizerAsGradientDescentLineSearch(1.0, 4),
    "conjugate": lambda r: r.SetOptimizerAsConjugateGradientLineSearch(1.0, 5, 1e-6, 10, 0, 4.0, 0.02, 15),
}


def trace(method: Any, transform: Any, in_place: bool = True) -> tuple[list[Any], Any, str]:
    """Run and write down, at each iteration, all that can be asked."""
    rows: list[Any] = []
    method.SetInitialTransform(transform, in_place)

    def note() -> None:
        rows.append(
            [
                method.GetCurrentLevel(),
                method.GetOptimizerIteration(),
                method.GetMetricValue(),
                method.GetMetricNumberOfValidPoints(),
                method.GetOptimizerLearningRate(),
                min(method.GetOptimizerConvergenceValue(), 9.0),
                *method.GetOptimizerScales()[:12],
                *method.GetOptimizerPosition()[:600],
            ]
        )

    method.AddCommand(sitk.sitkIterationEvent, note)
    result = method.Execute(FIXED, MOVING)
    return rows, result, method.GetOptimizerStopConditionDescription()


def both(setup: Callable[[Any], None], transform: Callable[[], Any], rtol: float = 1e-5) -> tuple[Any, Any]:
    """Assert that both classes go the same way, and return their results."""
    runs = []
    for method in (native(), OurLoop()):
        setup(method)
        runs.append(trace(method, transform()))
    (rows, result, why), (our_rows, our_result, our_why) = runs
    assert len(rows) == len(our_rows) > 0
    for row, our_row in zip(rows, our_rows, strict=True):
        np.testing.assert_allclose(our_row, row, rtol=rtol, atol=1e-6)
    assert _same_words(our_why, why)
    assert type(our_result) is type(result)
    np.testing.assert_allclose(our_result.GetParameters(), result.GetParameters(), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(our_result.GetFixedParameters(), result.GetFixedParameters(), atol=1e-9)
    return result, our_result


def _same_words(ours: str, theirs: str) -> bool:
    def split(text: str) -> list[Any]:
        return [part.strip("().") for part in text.split()]

    def same(a: str, b: str) -> bool:
        try:
            return bool(np.isclose(float(a), float(b), rtol=1e-3))
        except ValueError:
            return a == b

    return len(split(ours)) == len(split(theirs)) and all(map(same, split(ours), split(theirs)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["translation", "euler", "affine", "versor", "similarity"])
def test_descents_go_the_native_way(optimizer: str, kind: str) -> None:
    def setup(method: Any) -> None:
        OPTIMIZERS[optimizer](method)
        method.SetOptimizerScalesFromPhysicalShift()

    both(setup, TRANSFORMS[kind])


@pytest.mark.parametrize("scales", ["PhysicalShift", "IndexShift", "Jacobian"])
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_scales_and_learning_rate_are_the_native_ones(scales: str, kind: str) -> None:
    def setup(method: Any) -> None:
        method.SetOptimizerAsGradientDescent(1.0, 3, 1e-6, 10, EACH)
        getattr(method, f"SetOptimizerScalesFrom{scales}")()

    both(setup, TRANSFORMS[kind], rtol=1e-4)
