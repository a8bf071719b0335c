"""One `Execute`: the levels, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import SimpleITK as sitk

from dsir_metric.errors import RegistrationError
from dsir_metric.geometry import Grid
from dsir_metric.metric.transforms import concrete
from dsir_metric.sitk.events import Commands
from dsir_metric.sitk.levels import Level, LevelAdaptor, schedule
from dsir_metric.sitk.optimizers import Optimizer, optimizer_for
from dsir_metric.sitk.position import position_of
from dsir_metric.sitk.problem import Metric, Problem
from dsir_metric.sitk.scales import ScaleEstimator
from dsir_metric.sitk.settings import Settings

__all__ = ["MetricOfLevel", "Run", "ingredients"]

MetricOfLevel = Callable[[Level, Any], Metric]


def ingredients(settings: Settings) -> tuple[Any, Any, Optimizer]:
    """The transform to optimise, what is applied after it (None for nothing), and the optimiser in its first state.

    Of a composite, only the transform added last is optimised, as in ITK.

    Raises
    ------
    RegistrationError
        If there is no initial transform or no optimiser.
    ConfigError
        If a setting of the optimiser is out of range.
    """
    initial = settings.initial
    if initial is None:
        raise RegistrationError("there is no initial transform: call SetInitialTransform first")
    after = [] if settings.moving_initial is None else [settings.moving_initial]
    if initial.GetTransformEnum() == sitk.sitkComposite:
        composite = sitk.CompositeTransform(initial)
        after += [composite.GetNthTransform(i) for i in range(composite.GetNumberOfTransforms() - 1)]
    if settings.optimizer is None:
        raise RegistrationError("there is no optimiser: call one of the SetOptimizerAs... methods first")
    return initial, sitk.CompositeTransform(after) if after else None, optimizer_for(settings.optimizer)


class Run:
    """State of a registration while it runs.

    Parameters
    ----------
    settings : Settings
    fixed, moving : Grid
        Of the two images.
    metric_of_level : callable
        Makes the metric of a level that begins at a transform. It must not hold this object: what it compares is
        large, and is to be free as soon as the registration is over.
    commands : Commands
        Called as things happen.
    small_slopes : bool
        See `Problem`.

    Attributes
    ----------
    level : int
        The present level; the number of levels when all are done.
    optimizer : Optimizer
    problem : Problem or None
        None before the first level.
    """

    def __init__(
        self,
        settings: Settings,
        fixed: Grid,
        moving: Grid,
        metric_of_level: MetricOfLevel,
        commands: Commands,
        *,
        small_slopes: bool = False,
    ) -> None:
        initial, self._after, self.optimizer = ingredients(settings)
        self._class = type(initial)
        self._given: Any = settings.given if settings.in_place and _is_same(settings.given, initial) else initial
        in_place = settings.in_place and type(initial) is not sitk.Transform
        self._initial: Any = self._given if in_place else concrete(sitk.Transform(initial))
        _take_centre(self._initial, settings.moving_initial)
        self.position = position_of(self._initial)
        self.problem: Problem | None = None
        self.level = 0
        self._settings = settings
        self._moving = moving
        self._levels = schedule(settings, fixed)
        self._adaptor = LevelAdaptor(self.position, settings.bspline_factors, fixed)
        self._metric_of_level = metric_of_level
        self._commands = commands
        self._small_slopes = small_slopes
        self._aborted = False

    def execute(self) -> Any:
        """Run all levels; the initial transform when in place, otherwise a composite with the result."""
        if self._settings.scales.kind != "manual":
            self._commands.from_optimizer()
        self._commands.from_registration(sitk.sitkStartEvent)
        for level in self._levels:
            self.level = level.index
            self._run_level(level)
            if self._aborted:
                self._commands.from_registration(sitk.sitkAbortEvent)
                break
        else:
            self.level = len(self._levels)
        self._commands.from_registration(sitk.sitkEndEvent)
        if self.problem is not None:
            self.optimizer.finish(self.problem)
        self.position.commit()
        if not self._settings.in_place:
            return sitk.CompositeTransform([self._initial])
        if self._initial is not self._given:
            self._given.SetFixedParameters(self._initial.GetFixedParameters())
            self._given.SetParameters(self._initial.GetParameters())
        return concrete(sitk.Transform(self._initial))

    def abort(self) -> None:
        """End the present level after its iteration, and leave out the others."""
        self._aborted = True
        self.optimizer.stop()

    def scales(self) -> tuple[float, ...]:
        """Scales of the parameters in use."""
        return () if self.problem is None else tuple(self.problem.scales.tolist())

    def reached(self) -> Any:
        """A copy of the transform as it now is, of the class of the initial one."""
        return self._class(self._initial)

    def valid_points(self) -> int:
        """Number of points that counted in the last evaluation."""
        return 0 if self.problem is None else self.problem.metric.valid_points

    def _run_level(self, level: Level) -> None:
        self._commands.from_registration(sitk.sitkMultiResolutionIterationEvent)
        self._adaptor.adapt(level)
        if level.index == 0:
            self._commands.from_optimizer()
        settings = self._settings
        estimator = None
        if settings.scales.kind != "manual":
            estimator = ScaleEstimator(settings.scales, self.position, self._after, level.virtual, self._moving)
        self.problem = Problem(
            self._metric_of_level(level, self.position.transform),
            self.position,
            estimator,
            np.array(settings.scales.values),
            np.array(settings.weights),
            self._commands.from_optimizer,
            self._small_slopes,
        )
        self.optimizer.run(self.problem)


def _is_same(given: Any, copy: Any) -> bool:
    """Whether a transform is still what it was when it was copied."""
    if given.GetTransformEnum() == sitk.sitkDisplacementField and given.GetNumberOfParameters() > 0:
        fields = [sitk.DisplacementFieldTransform(t).GetDisplacementField() for t in (given, copy)]
        first, second = (sitk.GetArrayViewFromImage(field) for field in fields)
        return np.array_equal(first, second)
    return bool(
        given.GetParameters() == copy.GetParameters() and given.GetFixedParameters() == copy.GetFixedParameters()
    )


def _take_centre(transform: Any, moving_initial: Any) -> None:
    """Give a linear transform the centre of the last linear part of the moving initial transform, as ITK does."""
    if moving_initial is None or not _has_centre(transform):
        return
    parts = [moving_initial]
    if moving_initial.GetTransformEnum() == sitk.sitkComposite:
        composite = sitk.CompositeTransform(moving_initial)
        composite.FlattenTransform()
        parts = [composite.GetNthTransform(i) for i in range(composite.GetNumberOfTransforms())]
    axes = transform.GetDimension()
    centres = [part.GetFixedParameters()[:axes] for part in parts if _has_centre(part)]
    if centres:
        parameters = transform.GetParameters()
        transform.SetFixedParameters((*centres[-1], *transform.GetFixedParameters()[axes:]))
        transform.SetParameters(parameters)


def _has_centre(transform: Any) -> bool:
    without = (sitk.sitkIdentity, sitk.sitkTranslation, sitk.sitkComposite)
    return bool(transform.IsLinear() and transform.GetTransformEnum() not in without)
