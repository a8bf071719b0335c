"""Representations are free as soon as a registration is over, without the garbage collector's help."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import optimize

from dsir_metric.geometry import Grid
from dsir_metric.metric import CosineMetric
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.register import DeformableConfig, RegisterConfig, register
from dsir_metric.represent import Representation
from dsir_metric.sitk import ImageRegistrationMethod

GRID = Grid((16, 16, 16), (4.0, 4.0, 4.0))
STAGES = ("centre", "search", "rigid", "affine", "deformable")
OPTIMIZERS: dict[str, tuple[object, ...]] = {
    "GradientDescent": (1.0, 2),
    "RegularStepGradientDescent": (1.0, 1e-3, 2),
    "GradientDescentLineSearch": (1.0, 2),
    "ConjugateGradientLineSearch": (1.0, 2),
    "LBFGSB": (1e-5, 2),
    "LBFGS2": (1e-5, 2),
    "Powell": (1,),
    "Amoeba": (1.0, 8),
    "OnePlusOneEvolutionary": (2,),
    "Exhaustive": ([1, 0, 0], 1.0),
}
Listener = Callable[[ImageRegistrationMethod], Callable[[], object]]
LISTENERS: dict[str, Listener] = {
    "a closure over the method": lambda method: lambda: method.GetMetricValue(),
    "a method of it": lambda method: method.GetOptimizerPosition,
    "one that ends the run": lambda method: method.Abort,
    "one that fails": lambda method: lambda: 1 / 0,
}


def smooth(seed: int) -> Representation:
    values = np.random.default_rng(seed).standard_normal((*GRID.shape, 4)).astype(np.float32)
    return Representation(values, GRID)


@pytest.fixture
def collected() -> Iterator[Callable[[], list[object]]]:
    """What there is of representations and metrics that was not there before, with the collector switched off."""

    def large() -> list[object]:
        return [o for o in gc.get_objects() if issubclass(type(o), Representation | CosineMetric)]

    gc.collect()
    before = {id(o) for o in large()}
    gc.disable()
    try:
        yield lambda: [o for o in large() if id(o) not in before]
    finally:
        gc.enable()


def execute(optimizer: str, listener: Listener | None = None) -> ImageRegistrationMethod:
    method = ImageRegistrationMethod()
    method.SetMetricAsDNSCosine()
    getattr(method, f"SetOptimizerAs{optimizer}")(*OPTIMIZERS[optimizer])
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    method.SetInitialTransform(sitk.TranslationTransform(3, (0.5, 0.0, 0.0)), inPlace=False)
    if listener is not None:
        method.AddCommand(sitk.sitkIterationEvent, listener(method))
    method.Execute(smooth(1), smooth(2))
    return method


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_execute_keeps_nothing(collected: Callable[[], list[object]], optimizer: str) -> None:
    method = execute(optimizer)
    assert collected() == []
    assert method.GetOptimizerStopConditionDescription()


@pytest.mark.parametrize("listener", LISTENERS)
def test_listeners_keep_nothing(collected: Callable[[], list[object]], listener: str) -> None:
    for optimizer in ("GradientDescent", "LBFGS2"):
        if listener == "one that fails":
            with pytest.raises(ZeroDivisionError):
                execute(optimizer, LISTENERS[listener])
        else:
            execute(optimizer, LISTENERS[listener])
        assert collected() == []


def test_an_execute_that_cannot_begin_keeps_nothing(collected: Callable[[], list[object]]) -> None:
    method = ImageRegistrationMethod()
    method.SetMetricAsDNSCosine()
    method.SetOptimizerAsGradientDescent(1.0, 1)
    method.SetInitialTransform(sitk.TranslationTransform(3, (1000.0, 0.0, 0.0)))
    with pytest.raises(Exception, match="sample points"):
        method.Execute(smooth(1), smooth(2))
    assert collected() == []


def test_nothing_is_kept_where_scipy_keeps_the_function(
    collected: Callable[[], list[object]], monkeypatch: pytest.MonkeyPatch, pair: PhantomPair
) -> None:
    kept: list[object] = []  # as versions of SciPy do in a reference cycle
    minimize = optimize.minimize

    def keeping(function: Any, *arguments: Any, **options: Any) -> Any:
        kept.extend((function, options.get("callback")))
        return minimize(function, *arguments, **options)

    monkeypatch.setattr(optimize, "minimize", keeping)
    monkeypatch.setattr("dsir_metric.register.deformable.minimize", keeping)
    for optimizer in ("LBFGSB", "LBFGS2", "Powell", "Amoeba"):
        execute(optimizer)
        assert len(kept) > 0
        assert collected() == []
    register(pair.fixed, pair.moving, config("sitk"))
    assert collected() == []


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return make_pair(24, 8.0)


def config(backend: str) -> RegisterConfig:
    lattice = DeformableConfig(lattice_mm=(60.0, 50.0), iterations=(2, 2))
    return RegisterConfig(backend=backend, device="cpu", threads=1, stages=STAGES, deformable=lattice)


@pytest.mark.parametrize("backend", ["sitk", "torch"])
@pytest.mark.parametrize("fails_in", [None, "rigid", "deformable"])
def test_register_keeps_nothing(
    collected: Callable[[], list[object]], pair: PhantomPair, backend: str, fails_in: str | None
) -> None:
    def fail(progress: Any) -> None:
        if progress.stage == fails_in and progress.metric is not None:
            raise ZeroDivisionError

    if fails_in is None:
        assert register(pair.fixed, pair.moving, config(backend)).stages[-1].name == "deformable"
    else:
        with pytest.raises(ZeroDivisionError):
            register(pair.fixed, pair.moving, config(backend), on_progress=fail)
    assert collected() == []
