"""Rigid and affine stages: SimpleITK transforms under the DNS cosine metric, by L-BFGS-B."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.optimize import minimize

from dsir_metric.errors import RegistrationError
from dsir_metric.geometry import rotation
from dsir_metric.metric import CosineMetric

__all__ = ["affine_matrix", "as_affine", "as_rigid", "composite", "fit", "parameter_scales"]

_REACH_MM = 40.0  # how far any parameter may move the points from the start
OnIteration = Callable[[float], None]


def affine_matrix(transform: sitk.Transform) -> NDArray[np.float64]:
    """4 x 4 matrix of any linear transform, fixed to moving, LPS mm."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(map(float, e)))) - origin for e in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack(columns, axis=1)
    matrix[:3, 3] = origin
    return matrix


def composite(*parts: sitk.Transform | None) -> sitk.CompositeTransform:
    """The map of the parts, the last applied first; None is left out."""
    return sitk.CompositeTransform([part for part in parts if part is not None])


def as_affine(matrix: NDArray[np.float64], centre_mm: NDArray[np.float64]) -> sitk.AffineTransform:
    """The affine transform of a 4 x 4 `matrix`, its centre of rotation at `centre_mm`."""
    transform = sitk.AffineTransform(3)
    transform.SetCenter(centre_mm.tolist())
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation((matrix[:3, :3] @ centre_mm + matrix[:3, 3] - centre_mm).tolist())
    return transform


def as_rigid(matrix: NDArray[np.float64], centre_mm: NDArray[np.float64]) -> sitk.Euler3DTransform:
    """The rigid transform nearest to a 4 x 4 `matrix`: the same place for `centre_mm`, the nearest rotation."""
    transform = sitk.Euler3DTransform()
    transform.SetCenter(centre_mm.tolist())
    transform.SetMatrix(rotation(matrix[:3, :3]).ravel().tolist(), 1e-6)
    transform.SetTranslation((matrix[:3, :3] @ centre_mm + matrix[:3, 3] - centre_mm).tolist())
    return transform


def parameter_scales(transform: sitk.Transform, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square motion of the points, in mm, for a unit change of each parameter."""
    moved = sitk.Transform(transform)
    parameters = np.array(transform.GetParameters())
    sample = points_mm[:: max(1, len(points_mm) // 200)]
    at_rest = np.array([transform.TransformPoint(p) for p in sample.tolist()])
    scales = np.empty(len(parameters))
    for k in range(len(parameters)):
        step = parameters.copy()
        step[k] += 1e-4
        moved.SetParameters(step.tolist())
        shift = np.array([moved.TransformPoint(p) for p in sample.tolist()]) - at_rest
        scales[k] = np.sqrt((shift**2).sum(axis=1).mean()) / 1e-4
    return scales


def fit(
    metric: CosineMetric, transform: sitk.Transform, iterations: int, on_iteration: OnIteration | None = None
) -> sitk.Transform:
    """Minimise `metric` over the parameters of a copy of `transform`.

    Parameters
    ----------
    metric : CosineMetric
    transform : sitk.Transform
        Start; its type says what may change.
    iterations : int
        Largest number of L-BFGS-B iterations.
    on_iteration : callable, optional
        Receives the metric after each iteration.

    Returns
    -------
    sitk.Transform
        Of the type of `transform`.
    """
    moved = sitk.Transform(transform)
    scales = parameter_scales(transform, metric.points_mm)

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        moved.SetParameters((x / scales).tolist())
        try:
            value, derivative = metric.value_and_derivative(moved)
        except RegistrationError:  # a line search went where nothing overlaps: as bad as can be
            return 1.0, np.zeros_like(x)
        return value, derivative / scales

    start = np.array(transform.GetParameters()) * scales
    callback = None if on_iteration is None else lambda intermediate_result: on_iteration(intermediate_result.fun)
    options = {"maxiter": iterations, "ftol": 1e-7, "gtol": 1e-7}
    reach = list(zip(start - _REACH_MM, start + _REACH_MM, strict=True))
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=reach, options=options, callback=callback)
    moved.SetParameters((best.x / scales).tolist())
    fitted: sitk.Transform = moved.Downcast()
    return fitted
