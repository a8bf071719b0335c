"""The registration method that takes the place of SimpleITK's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import SimpleITK as sitk

from dsir_metric.sitk.dns import ComparedPair, Picture, compared_pair, require_one_dimension
from dsir_metric.sitk.events import Command, Commands
from dsir_metric.sitk.levels import Level, whole_level
from dsir_metric.sitk.problem import Metric
from dsir_metric.sitk.recorder import RecordingMethod
from dsir_metric.sitk.run import Run, ingredients
from dsir_metric.sitk.settings import Settings
from dsir_metric.threads import at_most

__all__ = ["ImageRegistrationMethod"]


@dataclass(frozen=True)
class _Outcome:
    """What can still be asked after `Execute`."""

    iteration: int = 0
    metric_value: float = 0.0
    valid_points: int = 0
    stop_description: str = ""


class ImageRegistrationMethod(RecordingMethod):
    """`sitk.ImageRegistrationMethod` with one more metric, `SetMetricAsDNSCosine`.

    With any other metric this is the native class. With the DNS cosine metric all its other methods mean the same:
    optimisers, scales, learning-rate estimation, shrink factors, smoothing, sampling, masks, initial transforms in
    place or not, B-splines with scale factors, displacement fields with Gaussian smoothing, commands, getters.

    Examples
    --------
    >>> method = ImageRegistrationMethod()
    >>> method.SetMetricAsDNSCosine()
    >>> method.SetOptimizerAsGradientDescent(learningRate=1.0, numberOfIterations=100)
    >>> method.SetOptimizerScalesFromPhysicalShift()
    >>> method.SetInitialTransform(sitk.Euler3DTransform(), inPlace=False)

    Notes
    -----
    What differs with the DNS cosine metric:

    - `Execute` and `MetricEvaluate` also take what was represented before: two `Representation` objects or two
      multi-component images. Scalar images are represented; smoothing is applied to the descriptors.
    - The moving image is represented as it lies under the transforms: again for each level that begins more than 5
      degrees askew.
    - Without a fixed mask, the points of the fixed image's foreground count (`foreground=False`: all points).
    - Descriptors are interpolated linearly whatever `SetInterpolator` was given, and their gradient is that of the
      interpolation, whatever `SetMetricUse...GradientFilter` was given. Both still count for the native metrics.
    - While the learning rate is estimated, no step of gradient descent, line search or conjugate gradient moves a point
      further than `maximumStepSizeInPhysicalUnits`, by default one voxel of the level; natively, only the first step.
    - Tolerances of gradients are shares of the first gradient of a level.
    - A 2-D image is represented as the middle of a slab of slices like it.
    - L-BFGS-B, L-BFGS2, Powell and Amoeba are SciPy's; (1+1) and random sampling have other random numbers.
    - `SetNumberOfThreads` is for the metric; the network takes every core, or the GPU.
    - `Abort` ends the registration after the present iteration with an Abort event (the native class goes on), and
      `StopRegistration` ends the present level with every optimiser.
    - Images that lose each other in the middle are a `RegistrationError`; the native class goes on with a warning.
    - An error in a command reaches the caller of `Execute` as it is; what is wrong with images and settings is raised
      as a `dsir_metric.errors.DsirError`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._commands = Commands()
        self._running: Run | None = None
        self._outcome = _Outcome()

    def Execute(self, fixed: Picture, moving: Picture) -> Any:
        """Register two images.

        Parameters
        ----------
        fixed, moving : sitk.Image or Representation
            Scalar 3-D or 2-D images of any pixel type, or with the DNS cosine metric, two representations.

        Returns
        -------
        sitk.Transform
            Maps points of the virtual domain towards the moving image. In place: of the kind of the initial transform,
            which now has the same parameters. Otherwise a composite with the result in it. The moving initial
            transform is not part of it.

        Raises
        ------
        DsirError
            With the DNS cosine metric, if images or settings are unusable.
        RuntimeError
            With a native metric, as the native class.
        """
        settings = self._settings
        if settings.metric is None:
            return super().Execute(fixed, moving)
        _, after, _ = ingredients(settings)  # what is missing is missed before images are represented
        require_one_dimension(settings, fixed, moving)
        pair = self._compare(fixed, moving, settings)

        def metric_of(level: Level, transform: Any) -> Metric:
            nonlocal pair
            pair = pair.facing(settings, [t for t in (transform, after) if t is not None])
            return pair.metric(settings, level, after)

        run = Run(
            settings,
            pair.fixed_grid,
            pair.moving_grid,
            metric_of,
            self._commands,
            small_slopes=pair.small_slopes,
        )
        self._running = run
        try:
            with at_most(self.GetNumberOfThreads()):
                result = run.execute()
        except Exception as error:
            run.optimizer.stop_description = str(error)
            raise
        finally:
            ended = run.optimizer
            self._outcome = _Outcome(ended.iteration, ended.metric_value, run.valid_points(), ended.stop_description)
            self._running = None
            if settings.in_place and self._settings.given is settings.given:
                self._record(initial=run.reached())
        self._commands.from_registration(sitk.sitkDeleteEvent)
        self._commands.from_optimizer()
        return result

    def MetricEvaluate(self, fixed: Picture, moving: Picture) -> float:
        """Value of the metric at the initial transforms, at all points of the virtual domain and without smoothing.

        Parameters
        ----------
        fixed, moving : sitk.Image or Representation
            As for `Execute`.

        Raises
        ------
        DsirError
            With the DNS cosine metric, if images are unusable or do not overlap.
        """
        settings = self._settings
        if settings.metric is None:
            return float(super().MetricEvaluate(fixed, moving))
        require_one_dimension(settings, fixed, moving)
        pair = self._compare(fixed, moving, settings)
        metric = pair.metric(settings, whole_level(settings, pair.fixed_grid), settings.moving_initial)
        identity = sitk.Transform(pair.fixed_grid.dimension, sitk.sitkIdentity)
        with at_most(self.GetNumberOfThreads()):
            return float(metric.value(identity if settings.initial is None else settings.initial))

    def _compare(self, fixed: Picture, moving: Picture, settings: Settings) -> ComparedPair:
        return compared_pair(fixed, moving, settings)

    def StopRegistration(self) -> bool:
        """End the present level after its iteration; the next level begins. Whether anything was running."""
        if self._is_native:
            return bool(super().StopRegistration())
        if self._running is not None:
            self._running.optimizer.stop()
        return self._running is not None

    def Abort(self) -> None:
        """End the registration after the present iteration; the result is the position reached."""
        super().Abort()
        if self._running is not None:
            self._running.abort()

    def AddCommand(self, event: int, command: Command) -> int:
        """Call a callable or a `sitk.Command` at each event of a kind.

        Parameters
        ----------
        event : int
            `sitk.sitkStartEvent`, `sitkEndEvent`, `sitkIterationEvent`, `sitkMultiResolutionIterationEvent`,
            `sitkAbortEvent`, `sitkDeleteEvent`, `sitkAnyEvent`; others are accepted and, as natively, never happen.
        command : callable or sitk.Command
        """
        self._commands.add(event, command)
        return int(super().AddCommand(event, command))

    def RemoveAllCommands(self) -> None:
        """Forget all commands."""
        self._commands.clear()
        super().RemoveAllCommands()

    @property
    def _is_native(self) -> bool:
        return self._settings.metric is None

    def GetOptimizerIteration(self) -> int:
        """Iteration of the present level, or the last one of the last run."""
        if self._is_native:
            return int(super().GetOptimizerIteration())
        return self._running.optimizer.iteration if self._running else self._outcome.iteration

    def GetOptimizerPosition(self) -> tuple[float, ...]:
        """Parameters while running; empty otherwise."""
        if self._is_native:
            return tuple(super().GetOptimizerPosition())
        return tuple(self._running.position.parameters.tolist()) if self._running else ()

    def GetOptimizerLearningRate(self) -> float:
        """Learning rate while running; 0 otherwise."""
        if self._is_native:
            return float(super().GetOptimizerLearningRate())
        return self._running.optimizer.learning_rate if self._running else 0.0

    def GetOptimizerConvergenceValue(self) -> float:
        """Slope of the metric values over the convergence window while running; 0 otherwise."""
        if self._is_native:
            return float(super().GetOptimizerConvergenceValue())
        return self._running.optimizer.convergence if self._running else 0.0

    def GetOptimizerScales(self) -> tuple[float, ...]:
        """Scales given by hand, or those estimated while running."""
        if self._is_native:
            return tuple(super().GetOptimizerScales())
        if self._settings.scales.kind == "manual":
            return self._settings.scales.values
        return self._running.scales() if self._running else ()

    def GetOptimizerStopConditionDescription(self) -> str:
        """Why the optimiser stopped."""
        if self._is_native:
            return str(super().GetOptimizerStopConditionDescription())
        return self._running.optimizer.stop_description if self._running else self._outcome.stop_description

    def GetMetricValue(self) -> float:
        """Metric value of the present iteration, or of the last one of the last run."""
        if self._is_native:
            return float(super().GetMetricValue())
        return self._running.optimizer.metric_value if self._running else self._outcome.metric_value

    def GetMetricNumberOfValidPoints(self) -> int:
        """Number of points that counted in the last evaluation of the metric."""
        if self._is_native:
            return int(super().GetMetricNumberOfValidPoints())
        return self._running.valid_points() if self._running else self._outcome.valid_points

    def GetCurrentLevel(self) -> int:
        """Present level, from 0; the number of levels once all are done; 0 when not running."""
        if self._is_native:
            return int(super().GetCurrentLevel())
        return self._running.level if self._running else 0

    def GetInitialTransform(self) -> Any:
        """A copy of the initial transform, which an optimisation in place has changed."""
        recorded = self._settings.initial
        return super().GetInitialTransform() if self._is_native or recorded is None else sitk.Transform(recorded)

    def __str__(self) -> str:
        text = str(super().__str__())
        return text if self._is_native else f"{text}  Metric: {self._settings.metric}\n"
