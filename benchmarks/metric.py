"""Cost of the DNS cosine metric: nanoseconds a point, and side by side with SimpleITK's own Mattes mutual information.

Run with: python benchmarks/metric.py [--edge 96] [--repeats 5] [--threads 1 2] [--quick]

Nanoseconds a point are of one thread, in processor seconds, so that a busy machine disturbs little. The table is of the
registration method with its DNS cosine on 24 channels, and of the native one with Mattes on one channel: rigid and
B-spline, three samplings, any numbers of threads, all in one run and in seconds of the clock, so leave the machine
alone. There is no call for value and derivative alone: the cost of an evaluation is the slope between registrations
of one and of more iterations, each of which is one evaluation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from dsir_metric.geometry import Grid
from dsir_metric.metric import CosineMetric
from dsir_metric.metric.kernel import cosine_and_gradient
from dsir_metric.metric.transforms import point_map
from dsir_metric.represent.representation import Representation
from dsir_metric.sitk import ImageRegistrationMethod
from dsir_metric.threads import at_most, most_threads

CHANNELS, BINS, SEED = 24, 50, 7
SHARES = (0.05, 0.2, 1.0)


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


@dataclass(frozen=True)
class Row:
    """Milliseconds of one evaluation."""

    transform: str
    share: float
    threads: int
    cosine: float
    mattes: float


def cosine_method() -> Any:
    method = ImageRegistrationMethod()
    method.SetMetricAsDNSCosine()
    return method


def mattes_method() -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    return method


def evaluation_seconds(
    make: Callable[[], Any], images: tuple[Any, Any], start: sitk.Transform, share: float, threads: int, span_s: float
) -> float:
    """Seconds of the clock that one more iteration takes; so many are timed that they take `span_s`."""

    def run(iterations: int) -> float:
        method = make()
        method.SetNumberOfThreads(threads)
        method.SetMetricSamplingStrategy(method.RANDOM if share < 1 else method.NONE)
        method.SetMetricSamplingPercentage(share, SEED)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsGradientDescent(1e-6, iterations, 1e-30, iterations + 1)
        method.SetInitialTransform(type(start)(start), inPlace=True)
        begin = time.perf_counter()
        method.Execute(*images)
        return time.perf_counter() - begin

    one = run(1)
    if one < span_s:  # the first call may have compiled something
        one = min(run(1) for _ in range(3))
    more = 2
    while (several := run(1 + more)) - one < span_s and more < 4096:
        more *= 2
    if several < 10 * span_s:
        several = min(several, run(1 + more))
    return max(several - one, 1e-9) / more


def table(
    edge: int, threads: list[int], span_s: float, transforms: tuple[str, ...] = ("rigid", "B-spline")
) -> list[Row]:
    """Both methods at every transform, sampling and number of threads."""
    grid = Grid((edge,) * 3)
    dsirs = [Representation(smooth_field(edge, CHANNELS, seed), grid) for seed in (1, 2)]
    scans = [sitk.VectorIndexSelectionCast(dsir.to_sitk(), 0, sitk.sitkFloat32) for dsir in dsirs]
    rows = []
    for name in transforms:
        start = TRANSFORMS[name](grid)
        for share in SHARES:
            for count in threads:
                cosine, mattes = (
                    1e3 * evaluation_seconds(make, images, start, share, count, span_s)
                    for make, images in ((cosine_method, dsirs), (mattes_method, scans))
                )
                rows.append(Row(name, share, count, cosine, mattes))
    return rows


def text(rows: list[Row]) -> str:
    lines = [
        "| transform | sampling | threads | DNS cosine, 24 channels, ms | Mattes, 1 channel, ms | DNS / Mattes |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        sampling = f"{r.share:.0%}" if r.share < 1 else "dense"
        ratio = r.cosine / r.mattes
        lines.append(f"| {r.transform} | {sampling} | {r.threads} | {r.cosine:.1f} | {r.mattes:.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="24 voxels along each axis, shorter spans")
    options = parser.parse_args()
    if max(options.threads) > most_threads():
        parser.error(f"this run may use {most_threads()} thread(s): set NUMBA_NUM_THREADS to more")
    edge = 24 if options.quick else options.edge
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    grid = Grid((edge,) * 3)
    fixed, moving = (Representation(smooth_field(edge, CHANNELS, seed), grid) for seed in (1, 2))

    print(f"{edge}^3 x {CHANNELS} channels, one thread, every voxel, value and derivative:")
    dense = CosineMetric(fixed, moving)
    with at_most(1):
        print(f"  kernel alone          {kernel_nanoseconds(fixed, moving, options.repeats):4.0f} ns a point")
        for name, make in TRANSFORMS.items():
            seconds = best_seconds(partial(dense.value_and_derivative, make(grid)), options.repeats)
            print(f"  metric, {name:12s}  {1e9 * seconds / dense.valid_points:4.0f} ns a point")

    print(f"an evaluation at {edge}^3, mesh 8 x 8 x 8:", flush=True)
    print(text(table(edge, options.threads, 0.05 if options.quick else 1.0)))


if __name__ == "__main__":
    main()
