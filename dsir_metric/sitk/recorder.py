"""The setters of `sitk.ImageRegistrationMethod`: each passes its arguments on and leaves a record."""
# ruff: noqa: D102 - the setters get SimpleITK's own docstrings

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import SimpleITK as sitk

from dsir_metric.errors import GeometryError
from dsir_metric.sitk import settings as kinds
from dsir_metric.sitk.settings import DNSCosine, ScalesChoice, Settings

__all__ = ["RecordingMethod"]

_Native: Any = sitk.ImageRegistrationMethod
Setter = Callable[..., None]


def _optimizer_setter(record: type) -> Setter:
    name = f"SetOptimizerAs{record.__name__}"
    native = getattr(_Native, name)

    def setter(self: RecordingMethod, *args: Any, **kwargs: Any) -> None:
        native(self, *args, **kwargs)
        self._record(optimizer=record(*args, **kwargs))

    setter.__name__ = name
    return setter


def _native_metric_setter(name: str) -> Setter:
    native = getattr(_Native, name)

    def setter(self: RecordingMethod, *args: Any, **kwargs: Any) -> None:
        native(self, *args, **kwargs)
        self._record(metric=None)

    setter.__name__ = name
    return setter


def _copy(transform: Any) -> Any:
    return type(transform)(transform)


def _with_native_docstrings(cls: type[RecordingMethod]) -> type[RecordingMethod]:
    for name, method in vars(cls).items():
        if callable(method) and not method.__doc__ and hasattr(_Native, name):
            method.__doc__ = getattr(_Native, name).__doc__
    return cls


@_with_native_docstrings
class RecordingMethod(_Native):  # type: ignore[misc]
    """A native registration method that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self._settings = Settings()

    def _record(self, **changes: Any) -> None:
        self._settings = replace(self._settings, **changes)

    def SetMetricAsDNSCosine(
        self,
        model: Any = "default",
        device: str = "auto",
        spacing_mm: float | None = None,
        fixed_intensity: str = "auto",
        moving_intensity: str = "auto",
        foreground: bool = True,
    ) -> None:
        """Compare images by the cosine of their deep structural descriptors.

        Parameters
        ----------
        model : str or Path
            Name of a model that comes with the package, or an ONNX file.
        device : {"auto", "cpu", "cuda"}
            Where the network runs.
        spacing_mm : float or None
            Edge of the voxels at which images are represented; None picks it from the images.
        fixed_intensity, moving_intensity : str
            Intensity rules, see `dsir_metric.represent`.
        foreground : bool
            Where no fixed mask is set, look only at what stands out in the fixed image: empty background looks the
            same everywhere, and would hold the images where they are.
        """
        self._record(metric=DNSCosine(model, device, spacing_mm, fixed_intensity, moving_intensity, foreground))

    SetMetricAsANTSNeighborhoodCorrelation = _native_metric_setter("SetMetricAsANTSNeighborhoodCorrelation")
    SetMetricAsCorrelation = _native_metric_setter("SetMetricAsCorrelation")
    SetMetricAsDemons = _native_metric_setter("SetMetricAsDemons")
    SetMetricAsJointHistogramMutualInformation = _native_metric_setter("SetMetricAsJointHistogramMutualInformation")
    SetMetricAsMattesMutualInformation = _native_metric_setter("SetMetricAsMattesMutualInformation")
    SetMetricAsMeanSquares = _native_metric_setter("SetMetricAsMeanSquares")

    SetOptimizerAsAmoeba = _optimizer_setter(kinds.Amoeba)
    SetOptimizerAsConjugateGradientLineSearch = _optimizer_setter(kinds.ConjugateGradientLineSearch)
    SetOptimizerAsExhaustive = _optimizer_setter(kinds.Exhaustive)
    SetOptimizerAsGradientDescent = _optimizer_setter(kinds.GradientDescent)
    SetOptimizerAsGradientDescentLineSearch = _optimizer_setter(kinds.GradientDescentLineSearch)
    SetOptimizerAsLBFGS2 = _optimizer_setter(kinds.LBFGS2)
    SetOptimizerAsLBFGSB = _optimizer_setter(kinds.LBFGSB)
    SetOptimizerAsOnePlusOneEvolutionary = _optimizer_setter(kinds.OnePlusOneEvolutionary)
    SetOptimizerAsPowell = _optimizer_setter(kinds.Powell)
    SetOptimizerAsRegularStepGradientDescent = _optimizer_setter(kinds.RegularStepGradientDescent)

    def SetOptimizerScales(self, scales: Sequence[float]) -> None:
        super().SetOptimizerScales(scales)
        self._record(scales=ScalesChoice("manual", tuple(scales)))

    def SetOptimizerScalesFromPhysicalShift(
        self, centralRegionRadius: int = 5, smallParameterVariation: float = 0.01
    ) -> None:
        super().SetOptimizerScalesFromPhysicalShift(centralRegionRadius, smallParameterVariation)
        self._record(scales=ScalesChoice("physical shift", (), centralRegionRadius, smallParameterVariation))

    def SetOptimizerScalesFromIndexShift(
        self, centralRegionRadius: int = 5, smallParameterVariation: float = 0.01
    ) -> None:
        super().SetOptimizerScalesFromIndexShift(centralRegionRadius, smallParameterVariation)
        self._record(scales=ScalesChoice("index shift", (), centralRegionRadius, smallParameterVariation))

    def SetOptimizerScalesFromJacobian(self, centralRegionRadius: int = 5) -> None:
        super().SetOptimizerScalesFromJacobian(centralRegionRadius)
        self._record(scales=ScalesChoice("jacobian", (), centralRegionRadius))

    def SetOptimizerWeights(self, weights: Sequence[float]) -> None:
        super().SetOptimizerWeights(weights)
        self._record(weights=tuple(weights))

    def SetShrinkFactorsPerLevel(self, shrinkFactors: Sequence[int]) -> None:
        super().SetShrinkFactorsPerLevel(shrinkFactors)
        self._record(shrink_factors=tuple(shrinkFactors))

    def SetSmoothingSigmasPerLevel(self, smoothingSigmas: Sequence[float]) -> None:
        super().SetSmoothingSigmasPerLevel(smoothingSigmas)
        self._record(sigmas=tuple(smoothingSigmas))

    def SetSmoothingSigmasAreSpecifiedInPhysicalUnits(self, arg: bool) -> None:
        super().SetSmoothingSigmasAreSpecifiedInPhysicalUnits(arg)
        self._record(sigmas_in_mm=bool(arg))

    def SmoothingSigmasAreSpecifiedInPhysicalUnitsOn(self) -> None:
        self.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)

    def SmoothingSigmasAreSpecifiedInPhysicalUnitsOff(self) -> None:
        self.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)

    def SetMetricSamplingStrategy(self, strategy: int) -> None:
        super().SetMetricSamplingStrategy(strategy)
        self._record(sampling_strategy=strategy)

    def SetMetricSamplingPercentage(self, percentage: float, seed: int = sitk.sitkWallClock) -> None:
        super().SetMetricSamplingPercentage(percentage, seed)
        self._record(sampling_percentages=(percentage,), sampling_seed=seed)

    def SetMetricSamplingPercentagePerLevel(self, percentage: Sequence[float], seed: int = sitk.sitkWallClock) -> None:
        super().SetMetricSamplingPercentagePerLevel(percentage, seed)
        self._record(sampling_percentages=tuple(percentage), sampling_seed=seed)

    def SetMetricFixedMask(self, binaryMask: sitk.Image) -> None:
        super().SetMetricFixedMask(binaryMask)
        self._record(fixed_mask=sitk.Image(binaryMask))

    def SetMetricMovingMask(self, binaryMask: sitk.Image) -> None:
        super().SetMetricMovingMask(binaryMask)
        self._record(moving_mask=sitk.Image(binaryMask))

    def SetVirtualDomain(
        self,
        virtualSize: Sequence[int],
        virtualOrigin: Sequence[float],
        virtualSpacing: Sequence[float],
        virtualDirection: Sequence[float],
    ) -> None:
        try:
            super().SetVirtualDomain(virtualSize, virtualOrigin, virtualSpacing, virtualDirection)
            domain = sitk.Image(list(virtualSize), sitk.sitkUInt8)
            domain.SetOrigin(virtualOrigin)
            domain.SetSpacing(virtualSpacing)
            domain.SetDirection(virtualDirection)
        except RuntimeError as error:
            raise GeometryError(
                f"no virtual domain has size {virtualSize}, origin {virtualOrigin}, spacing {virtualSpacing} and "
                f"direction {virtualDirection}: give positive spacings and orthonormal axes, all in one dimension"
            ) from error
        self._record(virtual_domain=domain)

    def SetVirtualDomainFromImage(self, virtualImage: sitk.Image) -> None:
        super().SetVirtualDomainFromImage(virtualImage)
        self._record(virtual_domain=sitk.Image(virtualImage))

    def SetFixedInitialTransform(self, transform: sitk.Transform) -> None:
        super().SetFixedInitialTransform(transform)
        self._record(fixed_initial=_copy(transform))

    def SetMovingInitialTransform(self, transform: sitk.Transform) -> None:
        super().SetMovingInitialTransform(transform)
        self._record(moving_initial=_copy(transform))

    def SetInitialTransform(self, transform: sitk.Transform, inPlace: bool = True) -> None:
        super().SetInitialTransform(transform, inPlace)
        self._record(initial=_copy(transform), given=transform, in_place=inPlace, bspline_factors=())

    def SetInitialTransformAsBSpline(
        self, transform: sitk.BSplineTransform, inPlace: bool = True, scaleFactors: Sequence[int] = ()
    ) -> None:
        super().SetInitialTransformAsBSpline(transform, inPlace, scaleFactors)
        factors = tuple(scaleFactors)
        self._record(initial=_copy(transform), given=transform, in_place=inPlace, bspline_factors=factors)
