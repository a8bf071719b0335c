"""Every public method of the native class: what it is for under the DNS cosine metric, and that it is not lost."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from sitk_scalar import OurLoop, native, scalar_pair

from dsir_metric.errors import GeometryError
from dsir_metric.sitk import ImageRegistrationMethod
from dsir_metric.sitk import settings as kinds
from dsir_metric.sitk.optimizers import OPTIMIZERS
from dsir_metric.sitk.recorder import RecordingMethod
from dsir_metric.sitk.settings import ScalesChoice, Settings
from dsir_metric.threads import threads

FIXED, MOVING = scalar_pair()
METHOD = sitk.ImageRegistrationMethod
PUBLIC = {name for name in dir(METHOD) if not name.startswith("_") and callable(getattr(METHOD, name))}
OWN = {name for cls in (ImageRegistrationMethod, RecordingMethod) for name in vars(cls) if not name.startswith("_")}
IGNORED = {  # docs/simpleitk.md says so: representations are interpolated linearly, and have that gradient
    "SetInterpolator",
    *(f"SetMetricUse{side}ImageGradientFilter" for side in ("Fixed", "Moving")),
    *(f"MetricUse{side}ImageGradientFilter{switch}" for side in ("Fixed", "Moving") for switch in ("On", "Off")),
    "SetNumberOfWorkUnits",
}
NATIVE_IS_RIGHT = {"SetNumberOfThreads", "HasCommand"}
MASK = sitk.Cast(FIXED > 0, sitk.sitkUInt8)
SHIFT = sitk.TranslationTransform(3, (1.0, 2.0, 3.0))


def settings_of(change: Callable[[Any], object]) -> Settings:
    method = ImageRegistrationMethod()
    change(method)
    return method._settings


def test_every_method_of_the_native_class_is_taken_care_of() -> None:
    changes = {name for name in PUBLIC if not name.startswith(("Get", "Global", "SetGlobal")) and "Debug" not in name}
    assert changes - OWN == IGNORED | NATIVE_IS_RIGHT
    assert {"SetMetricAsDNSCosine"} == OWN - PUBLIC
    assert all(getattr(ImageRegistrationMethod, name).__doc__ for name in OWN)


@pytest.mark.parametrize("record", OPTIMIZERS, ids=lambda r: r.__name__)
def test_optimiser_records_have_the_names_the_order_and_the_defaults_of_the_native_arguments(record: type) -> None:
    text = getattr(METHOD, f"SetOptimizerAs{record.__name__}").__doc__
    arguments = re.search(r"ImageRegistrationMethod self(?:, (.*))?\)$", text, re.MULTILINE)[1]
    native_ones = dict(
        re.fullmatch(r".* (\w+)(?:=(.+))?", one).groups()
        for one in re.sub(r"< (\w+) >", r"<\1>", arguments).split(", ")
    )
    values = {
        "Once": METHOD.Once,
        "Never": METHOD.Never,
        "EachIteration": METHOD.EachIteration,
        "False": False,
        "sitkWallClock": sitk.sitkWallClock,
        "std::numeric_limits<double>::min()": sys.float_info.min,
        "std::numeric_limits<double>::max()": sys.float_info.max,
    }
    assert [f.name for f in fields(record)] == list(native_ones)
    for field in fields(record):
        text = native_ones[field.name]
        if text is not None:
            assert field.default == (values[text] if text in values else float(text)), field.name


@pytest.mark.parametrize("record", OPTIMIZERS, ids=lambda r: r.__name__)
def test_optimisers_are_recorded_with_what_they_are_given(record: type) -> None:
    given: dict[str, Any] = {
        f.name: 0.25 if isinstance(f.default, float) else METHOD.EachIteration if f.name.startswith("estimate") else 7
        for f in fields(record)
    }
    given |= {"numberOfSteps": [1, 2, 3]} if "numberOfSteps" in given else {}
    given |= {"trace": True} if "trace" in given else {}
    given |= {"withRestarts": True} if "withRestarts" in given else {}
    for change in (
        lambda r: getattr(r, f"SetOptimizerAs{record.__name__}")(**given),
        lambda r: getattr(r, f"SetOptimizerAs{record.__name__}")(*given.values()),
    ):
        assert settings_of(change) == Settings(optimizer=record(**given))
    with pytest.raises(TypeError):
        settings_of(lambda r: getattr(r, f"SetOptimizerAs{record.__name__}")(nonsense=1))


PLAIN = {
    "SetOptimizerScales": (([1.0, 2.0],), {"scales": ScalesChoice("manual", (1.0, 2.0))}),
    "SetOptimizerScalesFromPhysicalShift": ((3, 0.02), {"scales": ScalesChoice("physical shift", (), 3, 0.02)}),
    "SetOptimizerScalesFromIndexShift": ((3, 0.02), {"scales": ScalesChoice("index shift", (), 3, 0.02)}),
    "SetOptimizerScalesFromJacobian": ((3,), {"scales": ScalesChoice("jacobian", (), 3)}),
    "SetOptimizerWeights": (([1.0, 0.5],), {"weights": (1.0, 0.5)}),
    "SetShrinkFactorsPerLevel": (([4, 2],), {"shrink_factors": (4, 2)}),
    "SetSmoothingSigmasPerLevel": (([2.0, 1.0],), {"sigmas": (2.0, 1.0)}),
    "SetSmoothingSigmasAreSpecifiedInPhysicalUnits": ((False,), {"sigmas_in_mm": False}),
    "SmoothingSigmasAreSpecifiedInPhysicalUnitsOff": ((), {"sigmas_in_mm": False}),
    "SetMetricSamplingStrategy": ((METHOD.RANDOM,), {"sampling_strategy": METHOD.RANDOM}),
    "SetMetricSamplingPercentage": ((0.2, 5), {"sampling_percentages": (0.2,), "sampling_seed": 5}),
    "SetMetricSamplingPercentagePerLevel": (([0.2, 0.1], 5), {"sampling_percentages": (0.2, 0.1), "sampling_seed": 5}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_settings_are_recorded(name: str) -> None:
    arguments, expected = PLAIN[name]
    assert settings_of(lambda r: getattr(r, name)(*arguments)) == replace(Settings(), **expected) != Settings()


def test_switching_on_undoes_switching_off() -> None:
    def change(r: Any) -> None:
        r.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
        r.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()

    assert settings_of(change) == Settings()


IMAGES = {"SetMetricFixedMask": "fixed_mask", "SetMetricMovingMask": "moving_mask"}
IMAGES |= {"SetVirtualDomainFromImage": "virtual_domain"}
MAPS = {"SetMovingInitialTransform": "moving_initial", "SetFixedInitialTransform": "fixed_initial"}


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_those_of_the_moment_they_are_set(name: str) -> None:
    mask = sitk.Image(MASK)
    settings = settings_of(lambda r: getattr(r, name)(mask))
    mask *= 0
    np.testing.assert_array_equal(
        sitk.GetArrayViewFromImage(getattr(settings, IMAGES[name])), sitk.GetArrayViewFromImage(MASK)
    )
    assert replace(settings, **{IMAGES[name]: None}) == Settings()


@pytest.mark.parametrize("name", MAPS)
def test_transforms_are_those_of_the_moment_they_are_set(name: str) -> None:
    shift = sitk.TranslationTransform(SHIFT)
    settings = settings_of(lambda r: getattr(r, name)(shift))
    shift.SetOffset((9.0, 9.0, 9.0))
    assert getattr(settings, MAPS[name]).GetParameters() == SHIFT.GetParameters()
    assert replace(settings, **{MAPS[name]: None}) == Settings()


@pytest.mark.parametrize(
    ("spacing", "direction"),
    [((0.0, 1.0, 1.0), np.eye(3)), ((1.0, 1.0, 1.0), np.ones((3, 3))), ((1.0, 1.0), np.eye(3))],
)
def test_a_virtual_domain_that_is_no_grid_is_one_line(spacing: tuple[float, ...], direction: np.ndarray) -> None:
    with pytest.raises(GeometryError, match="no virtual domain has size") as error:
        ImageRegistrationMethod().SetVirtualDomain([4, 4, 4], [0.0] * 3, spacing, direction.ravel().tolist())
    assert "\n" not in str(error.value)


def test_virtual_domain_is_recorded_number_by_number() -> None:
    direction = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    settings = settings_of(lambda r: r.SetVirtualDomain([4, 5, 6], [1, 2, 3], [0.5, 1, 2], direction))
    domain = settings.virtual_domain
    assert domain.GetSize() == (4, 5, 6)
    assert (domain.GetOrigin(), domain.GetSpacing()) == ((1, 2, 3), (0.5, 1, 2))
    assert domain.GetDirection() == direction


@pytest.mark.parametrize("name", sorted(name for name in PUBLIC if name.startswith("SetMetricAs")))
def test_choosing_a_native_metric_ends_ours(name: str) -> None:
    def change(r: Any) -> None:
        r.SetMetricAsDNSCosine()
        getattr(r, name)(*([2] if "Neighborhood" in name else []))

    assert settings_of(change) == Settings()
    assert settings_of(lambda r: r.SetMetricAsDNSCosine(spacing_mm=2.0)).metric == kinds.DNSCosine(spacing_mm=2.0)


def test_the_bspline_setter_keeps_its_factors_until_another_transform_comes() -> None:
    spline = sitk.BSplineTransformInitializer(FIXED, [2, 2, 2])
    method = ImageRegistrationMethod()
    method.SetInitialTransformAsBSpline(spline, inPlace=False, scaleFactors=[1, 2, 4])
    recorded = method._settings
    assert (recorded.bspline_factors, recorded.in_place, recorded.given) == ((1, 2, 4), False, spline)
    method.SetInitialTransform(SHIFT)
    assert (method._settings.bspline_factors, method._settings.in_place) == ((), True)


GETTERS: dict[str, tuple[Callable[[Any], object], object]] = {
    "GetInterpolator": (lambda r: r.SetInterpolator(sitk.sitkBSpline), sitk.sitkBSpline),
    "GetMetricSamplingPercentagePerLevel": (lambda r: r.SetMetricSamplingPercentagePerLevel([0.5, 0.25]), (0.5, 0.25)),
    "GetOptimizerWeights": (lambda r: r.SetOptimizerWeights([1.0, 0.5]), (1.0, 0.5)),
    "GetOptimizerScales": (lambda r: r.SetOptimizerScales([3.0, 4.0]), (3.0, 4.0)),
    "GetInitialTransformInPlace": (lambda r: r.SetInitialTransform(SHIFT, False), False),
    "GetNumberOfThreads": (lambda r: r.SetNumberOfThreads(3), 3),
    "GetNumberOfWorkUnits": (lambda r: r.SetNumberOfWorkUnits(5), 5),
    "GetName": (lambda r: None, "ImageRegistrationMethod"),
    "GetProgress": (lambda r: None, 0.0),
    "GetCurrentLevel": (lambda r: None, 0),
    "GetMetricNumberOfValidPoints": (lambda r: None, 0),
    "GetMetricValue": (lambda r: None, 0.0),
    "GetOptimizerIteration": (lambda r: None, 0),
    "GetOptimizerPosition": (lambda r: None, ()),
    "GetOptimizerLearningRate": (lambda r: None, 0.0),
    "GetOptimizerConvergenceValue": (lambda r: None, 0.0),
    "GetOptimizerStopConditionDescription": (lambda r: None, ""),
}


@pytest.mark.parametrize("name", GETTERS)
def test_getters_answer_as_the_native_ones_do_before_anything_ran(name: str) -> None:
    change, expected = GETTERS[name]
    uninitialised = name in ("GetMetricNumberOfValidPoints", "GetMetricValue", "GetOptimizerIteration")
    for method in (OurLoop(),) if uninitialised else (native(), OurLoop()):
        change(method)
        assert getattr(method, name)() == expected


@pytest.mark.parametrize("name", ["GetInitialTransform", "GetMovingInitialTransform", "GetFixedInitialTransform"])
def test_transforms_can_be_asked_for(name: str) -> None:
    answers = []
    for method in (native(), OurLoop()):
        getattr(method, name.replace("Get", "Set"))(SHIFT)
        answers.append((type(getattr(method, name)()), getattr(method, name)().GetParameters()))
    assert answers[0] == answers[1] == (sitk.Transform, SHIFT.GetParameters())


def test_every_getter_has_its_test() -> None:
    asked = {name for name in PUBLIC if name.startswith("Get") and "Global" not in name and name != "GetDebug"}
    transforms = {"GetInitialTransform", "GetMovingInitialTransform", "GetFixedInitialTransform"}
    assert asked == set(GETTERS) | transforms


@pytest.mark.parametrize("in_place", [False, True])
def test_a_transform_that_changed_since_is_neither_used_nor_touched(in_place: bool) -> None:
    ends = []
    for method in (native(), OurLoop()):
        start = sitk.TranslationTransform(SHIFT)
        method.SetOptimizerAsGradientDescent(0.5, 2, 1e-6, 10, METHOD.Never)
        method.SetInitialTransform(start, in_place)
        start.SetOffset((5.0, 5.0, 5.0))
        found = method.Execute(FIXED, MOVING)
        assert start.GetOffset() == (5.0, 5.0, 5.0)
        ends.append(found.GetParameters())
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["translation", "wrapped", "bspline", "field"])
def test_a_second_run_in_place_goes_on_from_the_first(kind: str) -> None:
    ends: list[list[Any]] = []
    for method in (native(), OurLoop()):
        start = {
            "translation": lambda: sitk.TranslationTransform(3),
            "wrapped": lambda: sitk.Transform(sitk.TranslationTransform(3)),
            "bspline": lambda: sitk.BSplineTransformInitializer(FIXED, [1, 1, 1]),
            "field": lambda: sitk.DisplacementFieldTransform(_zeros(FIXED)),
        }[kind]()
        method.SetOptimizerAsGradientDescent(1.0, 2)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(start, True)
        ends.append([])
        for _ in range(2):
            method.Execute(FIXED, MOVING)
            ends[-1].append(start.GetParameters())
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-4, atol=1e-6)
    assert np.abs(np.subtract(*ends[1])).max() > 0.05


def _zeros(image: sitk.Image) -> sitk.Image:
    field = sitk.Image(image.GetSize(), sitk.sitkVectorFloat64, 3)
    field.CopyInformation(image)
    return field


def test_a_run_in_place_that_failed_can_be_repeated_in_place() -> None:
    method, start = OurLoop(), sitk.TranslationTransform(3)
    method.SetOptimizerAsGradientDescent(0.05, 3, 1e-6, 10, METHOD.Never)
    method.SetInitialTransform(start, True)
    method.AddCommand(sitk.sitkIterationEvent, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        method.Execute(FIXED, MOVING)
    stopped = start.GetParameters()
    method.RemoveAllCommands()
    method.Execute(FIXED, MOVING)
    assert start.GetParameters() != stopped


def test_threads_are_for_the_metric_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setenv("NUMBA_NUM_THREADS", "4")
    for count in (1, 3, 64):
        method = OurLoop()
        method.SetNumberOfThreads(count)
        method.SetOptimizerAsGradientDescent(1.0, 1)
        method.SetInitialTransform(sitk.TranslationTransform(3))
        method.AddCommand(sitk.sitkIterationEvent, lambda: asked.append(threads()))
        method.Execute(FIXED, MOVING)
    assert (asked, threads()) == ([1, 3, 4], 4)


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_what_does_not_apply_is_not_recorded(name: str) -> None:
    value = {"SetInterpolator": sitk.sitkNearestNeighbor, "SetNumberOfWorkUnits": 3}.get(name, True)
    assert settings_of(lambda r: getattr(r, name)(*([] if name.startswith("MetricUse") else [value]))) == Settings()


def test_ignored_settings_still_count_for_native_metrics() -> None:
    ends = []
    for interpolator in (sitk.sitkLinear, sitk.sitkNearestNeighbor):
        method = ImageRegistrationMethod()
        method.SetMetricAsMeanSquares()
        method.SetInterpolator(interpolator)
        method.SetInitialTransform(sitk.TranslationTransform(3, (0.4, 0.4, 0.4)))
        ends.append(method.MetricEvaluate(FIXED, MOVING))
    assert not math.isclose(*ends, rel_tol=1e-3)
