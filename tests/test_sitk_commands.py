"""Commands: the order in which they are called, and what they can do."""

from __future__ import annotations

from typing import Any

import pytest
import SimpleITK as sitk
from sitk_scalar import OurLoop, native, scalar_pair

from dsir_metric.errors import DsirError

FIXED, MOVING = scalar_pair()
EVENTS = {
    "any": sitk.sitkAnyEvent,
    "start": sitk.sitkStartEvent,
    "end": sitk.sitkEndEvent,
    "iteration": sitk.sitkIterationEvent,
    "level": sitk.sitkMultiResolutionIterationEvent,
    "progress": sitk.sitkProgressEvent,
    "abort": sitk.sitkAbortEvent,
    "delete": sitk.sitkDeleteEvent,
    "user": sitk.sitkUserEvent,
}


def two_levels(method: Any) -> Any:
    method.SetOptimizerAsGradientDescent(1.0, 3)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    method.SetInitialTransform(sitk.Euler3DTransform((0.0, 16.0, 15.0)))
    return method


def one_level(method: Any) -> Any:
    method.SetShrinkFactorsPerLevel([1])
    method.SetSmoothingSigmasPerLevel([0])
    return method


def events_of(method: Any) -> list[Any]:
    """What was called when, and what could be asked then."""
    seen: list[Any] = []

    def note(name: str) -> None:
        rate = method.GetOptimizerLearningRate()
        place = (method.GetCurrentLevel(), method.GetOptimizerIteration(), method.GetProgress())
        seen.append((name, *place, round(method.GetMetricValue(), 3), round(rate, 4)))

    for name, event in EVENTS.items():
        method.AddCommand(event, lambda name=name: note(name))
    method.Execute(FIXED, MOVING)
    return seen


@pytest.mark.parametrize(
    "choose",
    [
        lambda r: None,
        lambda r: r.SetOptimizerScales([100.0] * 3 + [1.0] * 3),
        lambda r: r.SetOptimizerAsRegularStepGradientDescent(1.0, 0.6, 20),
        lambda r: r.SetOptimizerAsGradientDescentLineSearch(1.0, 2),
        lambda r: one_level(r).SetOptimizerAsExhaustive([1, 0, 0, 0, 1, 0], 0.1),
    ],
)
def test_events_come_in_the_native_order(choose: Any) -> None:
    logs = []
    for method in (two_levels(native()), two_levels(OurLoop())):
        choose(method)
        logs.append(events_of(method))
    assert logs[1] == logs[0]


def test_what_can_be_asked_afterwards_is_the_same() -> None:
    answers = []
    for method in (two_levels(native()), two_levels(OurLoop())):
        method.Execute(FIXED, MOVING)
        answers.append(
            (
                method.GetOptimizerIteration(),
                method.GetOptimizerPosition(),
                method.GetOptimizerLearningRate(),
                method.GetOptimizerConvergenceValue(),
                method.GetOptimizerScales(),
                method.GetOptimizerStopConditionDescription(),
                method.GetMetricNumberOfValidPoints(),
                method.GetCurrentLevel(),
                method.GetProgress(),
                method.GetName(),
            )
        )
    assert answers[1] == answers[0]


@pytest.mark.parametrize("make", [native, OurLoop])
def test_stop_ends_the_level_and_the_next_begins(make: Any) -> None:
    method, seen, answers = two_levels(make()), [], []

    def stop_at_one() -> None:
        seen.append((method.GetCurrentLevel(), method.GetOptimizerIteration()))
        if method.GetOptimizerIteration() == 1:
            answers.append(method.StopRegistration())

    method.AddCommand(sitk.sitkIterationEvent, stop_at_one)
    method.Execute(FIXED, MOVING)
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert answers == [True, True]
    assert method.StopRegistration() is False
    assert method.GetOptimizerStopConditionDescription() == "GradientDescentOptimizerv4Template: "


@pytest.mark.parametrize(
    "choose",
    [
        lambda r: r.SetOptimizerAsLBFGSB(),
        lambda r: r.SetOptimizerAsLBFGS2(),
        lambda r: r.SetOptimizerAsPowell(),
        lambda r: r.SetOptimizerAsAmoeba(0.5, 300),
        lambda r: r.SetOptimizerAsOnePlusOneEvolutionary(300, seed=3),
        lambda r: r.SetOptimizerAsExhaustive([2, 2, 2]),
        lambda r: r.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-6, 300),
    ],
)
def test_stop_works_with_every_optimiser(choose: Any) -> None:
    method = OurLoop()
    choose(method)
    method.SetInitialTransform(sitk.TranslationTransform(3))
    calls: list[int] = []

    def stop() -> None:
        calls.append(method.GetOptimizerIteration())
        method.StopRegistration()

    method.AddCommand(sitk.sitkIterationEvent, stop)
    method.Execute(FIXED, MOVING)
    assert calls == [0]


def test_abort_leaves_out_the_other_levels() -> None:
    method = two_levels(OurLoop())
    seen: list[str] = []
    for name in ("level", "abort", "end"):
        method.AddCommand(EVENTS[name], lambda name=name: seen.append(name))
    method.AddCommand(sitk.sitkIterationEvent, method.Abort)
    method.Execute(FIXED, MOVING)
    assert seen == ["level", "abort", "end"]
    assert method.GetOptimizerIteration() == 1


class _Counter(sitk.Command):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def Execute(self) -> None:
        self.calls += 1


@pytest.mark.parametrize("make", [native, OurLoop])
def test_commands_are_objects_too_and_can_be_removed(make: Any) -> None:
    method, counter = two_levels(make()), _Counter()
    method.AddCommand(sitk.sitkIterationEvent, counter)
    assert method.HasCommand(sitk.sitkIterationEvent)
    assert not method.HasCommand(sitk.sitkEndEvent)
    method.Execute(FIXED, MOVING)
    assert counter.calls == 6
    method.RemoveAllCommands()
    assert not method.HasCommand(sitk.sitkIterationEvent)
    method.Execute(FIXED, MOVING)
    assert counter.calls == 6


@pytest.mark.parametrize("make", [native, OurLoop])
def test_a_command_can_remove_those_that_wait_with_it(make: Any) -> None:
    method, seen = two_levels(make()), []

    def leave() -> None:
        seen.append("first")
        method.RemoveAllCommands()

    method.AddCommand(sitk.sitkIterationEvent, leave)
    method.AddCommand(sitk.sitkIterationEvent, lambda: seen.append("second"))
    method.Execute(FIXED, MOVING)
    assert seen == ["first"]


def test_error_in_a_command_reaches_the_caller() -> None:
    method = two_levels(OurLoop())
    method.AddCommand(sitk.sitkIterationEvent, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        method.Execute(FIXED, MOVING)
    assert method.GetOptimizerStopConditionDescription() == "division by zero"
    assert method.GetOptimizerPosition() == ()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: r.SetShrinkFactorsPerLevel([2]), "1 shrink factors and 2 smoothing sigmas"),
        (lambda r: r.SetShrinkFactorsPerLevel([0, 1]), "shrink factors"),
        (lambda r: r.SetOptimizerScales([1.0, 2.0]), "2 optimiser scales for 6"),
        (lambda r: r.SetOptimizerScales([1.0] * 5 + [0.0]), "scales must be positive"),
        (lambda r: r.SetOptimizerWeights([1.0]), "1 optimiser weights for 6"),
        (lambda r: r.SetMetricSamplingPercentagePerLevel([0.1] * 3), "3 sampling percentages for 2"),
        (lambda r: r.SetInitialTransform(sitk.Euler2DTransform()), "2-D"),
        (lambda r: r.SetInitialTransform(sitk.Transform(3, sitk.sitkIdentity)), "no parameters"),
        (lambda r: r.SetOptimizerScales([float("nan")] * 6), "scales must be positive"),
        (lambda r: r.SetOptimizerWeights([float("nan")] * 6), "weights .* finite"),
        (lambda r: r.SetMetricSamplingStrategy(7), "sampling strategy 7 is unknown"),
        (lambda r: r.SetOptimizerAsLBFGSB(lowerBound=1.0, upperBound=-1.0), "bounds from 1 to -1"),
        (lambda r: r.SetOptimizerAsLBFGSB(maximumNumberOfCorrections=0), "corrections of at least 1"),
        (lambda r: r.SetOptimizerAsExhaustive([1, 1]), "2 numbers of steps for 6"),
        (lambda r: r.SetOptimizerAsRegularStepGradientDescent(1, 0.1, 5, 1.5), "relaxation factor"),
        (lambda r: r.SetOptimizerAsRegularStepGradientDescent(1, 0.1, 5, 0.5, -1), "tolerance"),
    ],
)
def test_bad_settings_are_named(spoil: Any, words: str) -> None:
    method = two_levels(OurLoop())
    spoil(method)
    with pytest.raises(DsirError, match=words) as error:
        method.Execute(FIXED, MOVING)
    assert "\n" not in str(error.value)


def test_missing_settings_are_named() -> None:
    method = OurLoop()
    with pytest.raises(DsirError, match="SetInitialTransform"):
        method.Execute(FIXED, MOVING)
    method.SetInitialTransform(sitk.Euler3DTransform())
    with pytest.raises(DsirError, match="SetOptimizerAs"):
        method.Execute(FIXED, MOVING)


def test_text_names_the_metric() -> None:
    method = OurLoop()
    assert "DNSCosine(model='default'" in str(method)
    method.SetMetricAsMeanSquares()
    assert "DNSCosine" not in str(method)
