"""How much of the error is in the truth of known deformations: the scans, as distributed, may lie askew themselves.

Run with: python benchmarks/misalignment.py --spec tasks.json --data DATA --work WORK
              [--representation default --representation mind] [--settings benchmarks/settings.json]

The undeformed scans are laid over each other by Mattes mutual information, which no representation has a part in, and
each solution is scored against the truth as given and against the truth corrected by that.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from accuracy import find_tasks, read_pair, settings
from numpy.typing import NDArray
from representations import represent

from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.register import register

_KINDS = ("rigid", "affine")
_MARGIN_VOX = 3  # around the mask, where the scans are compared


def laid_over(fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image, kind: str) -> sitk.Transform:
    """Fixed to moving, "rigid" or "affine", by mutual information inside the mask (on the grid of `fixed`)."""
    transform = sitk.Euler3DTransform() if kind == "rigid" else sitk.AffineTransform(3)
    transform.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint([n / 2 for n in fixed.GetSize()]))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(48)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, 1)
    method.SetMetricFixedMask(mask)
    method.SetInitialTransform(transform, True)
    method.SetOptimizerAsRegularStepGradientDescent(0.5, 2e-3, 80)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([1])
    method.SetSmoothingSigmasPerLevel([0.5])
    return method.Execute(fixed, moving)


def truths(
    task: Path, fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image
) -> tuple[dict[str, sitk.Transform], dict[str, sitk.Transform]]:
    """The truth as given and corrected, and what it is corrected by."""
    near = sitk.Cast(sitk.Resample(mask, fixed, sitk.Transform(), sitk.sitkNearestNeighbor) > 0, sitk.sitkUInt8)
    near = sitk.BinaryDilate(near, [_MARGIN_VOX] * 3)
    moved = {kind: laid_over(fixed, moving, near, kind) for kind in _KINDS}
    given = sitk.DisplacementFieldTransform(sitk.ReadImage(str(task / "gt" / "truth.mha"), sitk.sitkVectorFloat64))
    return {"given": given} | {k: sitk.CompositeTransform([given, t]) for k, t in moved.items()}, moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", type=Path, required=True, help="JSON file that the tasks were prepared from")
    parser.add_argument("--data", type=Path, required=True, help="folder of the scans it names")
    parser.add_argument("--work", type=Path, required=True, help="folder of prepared tasks")
    parser.add_argument("--representation", action="append", dest="names")
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_name("settings.json"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    known = {t["id"]: t for t in json.loads(options.spec.read_text())["tasks"] if t["kind"] == "known"}
    for task in find_tasks(options.work):
        if task.name not in known:
            continue
        scans = [sitk.ReadImage(str(options.data / known[task.name][k]), sitk.sitkFloat32) for k in ("fixed", "moving")]
        pair, mask = read_pair(task), sitk.ReadImage(str(task / "gt" / "mask.nii.gz"))
        grid, inside = Grid.of(pair[0]), sitk.GetArrayFromImage(mask) > 0

        def displaced(t: sitk.Transform, grid: Grid = grid, inside: NDArray[np.bool_] = inside) -> NDArray[np.float64]:
            found: NDArray[np.float64] = DisplacementField.from_transform(t, grid).values[inside]
            return found

        true, moved = truths(task, scans[0], scans[1], mask)
        parts = [f"{k} {np.linalg.norm(displaced(t), axis=1).mean():.2f}" for k, t in moved.items()]
        print(f"{task.name}: moved, mm: {', '.join(parts)}", flush=True)
        for name in options.names or ("default", "mind"):
            config = settings(name, options.settings, threads=options.threads)
            found = register(*pair, config, representations=represent(name, *pair, threads=options.threads))
            at = displaced(found.transform)
            left = [f"{k} {np.linalg.norm(at - displaced(t), axis=1).mean():.3f}" for k, t in true.items()]
            print(f"  {name}, error in mm: {', '.join(left)}", flush=True)


if __name__ == "__main__":
    main()
