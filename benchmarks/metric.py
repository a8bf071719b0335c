"""Cost of the DNS cosine metric: nanoseconds a point, and side by side with SimpleITK's own Mattes mutual information.

Run with: python benchmarks/metric.py [--edge 96] [--repeats 5]

One thread for both, in processor seconds, so that a busy machine disturbs little. Mattes sees one channel, the cosine
24. SimpleITK has no call for value and derivative alone, so its cost is the slope between registrations of few and of
more iterations (each iteration is one evaluation).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numba
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from dsir_metric.geometry import Grid
from dsir_metric.metric import CosineMetric, Sampling
from dsir_metric.metric.kernel import cosine_and_gradient
from dsir_metric.metric.transforms import point_map
from dsir_metric.represent.representation import Representation

CHANNELS, BINS, SEED = 24, 50, 7
ITERATIONS = (2, 8)


def smooth_field(edge: int, channels: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((channels, edge, edge, edge), dtype=np.float32)
    field = np.stack([ndimage.gaussian_filter(channel, 2.0) for channel in noise], axis=-1)
    return np.ascontiguousarray(field / np.linalg.norm(field, axis=-1, keepdims=True))


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def rigid(grid: Grid) -> sitk.Transform:
    return sitk.Euler3DTransform(grid.centre_mm.tolist(), 0.03, -0.02, 0.04, (0.7, -0.4, 0.3))


def bspline(grid: Grid) -> sitk.Transform:
    transform = sitk.BSplineTransformInitializer(grid.image(), [8, 8, 8], 3)
    count = transform.GetNumberOfParameters()
    transform.SetParameters(np.random.default_rng(SEED).normal(0, 0.3, count).tolist())
    return transform


def displacement(grid: Grid) -> sitk.Transform:
    field = smooth_field(grid.size[0], 3, SEED).astype(float)
    return sitk.DisplacementFieldTransform(grid.stamp(sitk.GetImageFromArray(field, isVector=True)))


TRANSFORMS = {"rigid": rigid, "B-spline": bspline, "displacement": displacement}


def kernel_nanoseconds(fixed: Representation, moving: Representation, repeats: int) -> float:
    """Both fields as they are, the points turned off the voxel centres."""
    points = point_map(rigid(fixed.grid)).map(fixed.grid.points_mm().reshape(-1, 3))
    count = len(points)
    valid, cosine, gradient = np.ones(count, bool), np.empty(count), np.empty((count, 3))
    descriptors, rows = fixed.values.reshape(count, -1), np.arange(count)

    def call() -> None:
        valid.fill(True)
        cosine_and_gradient(descriptors, rows, moving.values, points, np.eye(3), np.zeros(3), valid, cosine, gradient)

    return 1e9 * best_seconds(call, repeats) / np.count_nonzero(valid)


def mattes_seconds(fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform, share: float) -> float:
    def run(iterations: int) -> None:
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricSamplingStrategy(method.RANDOM if share < 1 else method.NONE)
        method.SetMetricSamplingPercentage(share, SEED)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsGradientDescent(1e-6, iterations, 1e-30, iterations + 1)
        method.SetInitialTransform(type(start)(start), inPlace=True)
        method.Execute(fixed, moving)

    few, many = (best_seconds(partial(run, n), 2) for n in ITERATIONS)
    return (many - few) / (ITERATIONS[1] - ITERATIONS[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    numba.set_num_threads(1)
    grid = Grid((options.edge,) * 3)
    fixed, moving = (Representation(smooth_field(options.edge, CHANNELS, seed), grid) for seed in (1, 2))
    channels = [sitk.VectorIndexSelectionCast(image.to_sitk(), 0, sitk.sitkFloat32) for image in (fixed, moving)]

    print(f"{options.edge}^3 x {CHANNELS} channels, one thread, every voxel, value and derivative:")
    dense = CosineMetric(fixed, moving)
    print(f"  kernel alone          {kernel_nanoseconds(fixed, moving, options.repeats):4.0f} ns a point")
    for name, make in TRANSFORMS.items():
        seconds = best_seconds(partial(dense.value_and_derivative, make(grid)), options.repeats)
        print(f"  metric, {name:12s}  {1e9 * seconds / dense.valid_points:4.0f} ns a point")

    print("an evaluation, against SimpleITK's Mattes mutual information on one channel:")
    for share, name in ((0.05, "rigid"), (0.05, "B-spline"), (1.0, "rigid")):
        transform = TRANSFORMS[name](grid)
        sampled = CosineMetric(fixed, moving, sampling=Sampling("random" if share < 1 else "none", share, SEED))
        ours = best_seconds(partial(sampled.value_and_derivative, transform), options.repeats)
        theirs = mattes_seconds(*channels, transform, share)
        print(
            f"  {share:4.0%} {name:8s}  cosine {1e3 * ours:7.1f} ms, Mattes {1e3 * theirs:7.1f} ms, "
            f"ratio {ours / theirs:.3f}"
        )


if __name__ == "__main__":
    main()
