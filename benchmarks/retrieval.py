"""Point retrieval across contrasts: is the true match the nearest of 10,000 candidates?

Run with: python benchmarks/retrieval.py --pair T1-FLAIR ms_t1.nii.gz ms_flair.nii.gz [--pair ...] [--tasks WORK]
              [--overlay US-MR us.nii.gz mr.nii.gz us_labels.nii.gz mr_labels.nii.gz]
              [--representation default mind patch] [--rotation 10] [--translation 5]

The moving scan of every pair is first turned and shifted by a known amount, so that the voxel grid is no cue. The truth
of a pair comes from a file (an ITK transform or a displacement field; "none" where the scans are aligned as they
stand), that of a judge's task from its gt/truth.mha. With --overlay the truth is only the affine transform that best
lays one gland over the other, right to some mm: there the share of hits says little, and the median error is no better
than the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from representations import represent
from scipy import ndimage

from dsir_metric import io
from dsir_metric.evaluate import Retrieval, overlay, read_outline, retrieval
from dsir_metric.geometry import Grid
from dsir_metric.represent.foreground import foreground

FIELDS = (".mha", ".nii", ".nii.gz", ".nrrd")
AXIS, DIRECTION = (0.6, -0.48, 0.64), (0.48, 0.64, -0.6)  # of the turn and of the shift: along no axis of a grid
MARGIN_MM = 4.0  # `foreground` is wider than the body by this


@dataclass(frozen=True)
class Pair:
    """Two scans whose true transform, from fixed to moving points, is known, and where in the fixed one to look."""

    name: str
    fixed: sitk.Image
    moving: sitk.Image
    truth: sitk.Transform
    mask: sitk.Image | None = None


def read_truth(file: str) -> sitk.Transform:
    """A transform, a displacement field, or the identity for "none"."""
    if file == "none":
        return sitk.Transform(3, sitk.sitkIdentity)
    if not file.endswith(FIELDS):
        return io.read_transform(file)
    return sitk.DisplacementFieldTransform(sitk.ReadImage(file, sitk.sitkVectorFloat64))


def read_pair(name: str, fixed: str, moving: str, truth: str = "none", mask: str | None = None) -> Pair:
    """A pair from its files; `mask` counts where it is above 0."""
    where = None if mask is None else sitk.ReadImage(mask) > 0
    return Pair(name, io.read_image(fixed), io.read_image(moving), read_truth(truth), where)


def read_task(folder: Path) -> Pair:
    """A judge's task of known deformation."""
    scans, truth = folder / "in", folder / "gt"
    files = (scans / "fixed.nii.gz", scans / "moving.nii.gz", truth / "truth.mha", truth / "mask.nii.gz")
    return read_pair(folder.name, *map(str, files))


def read_overlay(name: str, fixed: str, moving: str, fixed_labels: str, moving_labels: str) -> Pair:
    """A pair whose truth is known only as far as one gland lies over the other."""
    gland, other = read_outline(fixed_labels), read_outline(moving_labels)
    truth = overlay(gland, other)
    moved = sitk.Resample(other, gland, truth, sitk.sitkNearestNeighbor)
    both, all_ = (sitk.GetArrayViewFromImage(i).sum(dtype=float) for i in (moved & gland, moved + gland))
    return Pair(f"{name} (approximate, Dice {2 * both / all_:.2f})", *map(io.read_image, (fixed, moving)), truth, gland)


def confined(pair: Pair) -> Pair:
    """The pair with a mask of points that lie in the body and that the moving scan shows."""
    grid = Grid.of(pair.fixed)
    if pair.mask is None:
        body = sitk.GetArrayFromImage(foreground(pair.fixed, grid)) > 0
        steps = max(1, round(MARGIN_MM / min(grid.spacing_mm)))
        mask = ndimage.binary_erosion(body, iterations=steps, border_value=1)
    else:
        mask = sitk.GetArrayFromImage(on_grid(pair.mask, grid)) > 0
    everywhere = Grid.of(pair.moving).image() + 1
    shown = sitk.Resample(everywhere, pair.fixed, pair.truth, sitk.sitkNearestNeighbor, 0)
    inside = mask & (sitk.GetArrayViewFromImage(shown) > 0)
    return replace(pair, mask=grid.stamp(sitk.GetImageFromArray(inside.astype(np.uint8))))


def turned(pair: Pair, degrees: float, shift_mm: float) -> Pair:
    """The pair with what the moving scan shows turned about its centre, then shifted, and the truth with it."""
    centre = Grid.of(pair.moving).centre_mm.tolist()
    turn = sitk.VersorRigid3DTransform()
    turn.SetCenter(centre)
    turn.SetRotation(AXIS, float(np.deg2rad(degrees)))
    turn.SetTranslation([shift_mm * d for d in DIRECTION])
    low = float(sitk.GetArrayViewFromImage(pair.moving).min())
    moving = sitk.Resample(pair.moving, pair.moving, turn.GetInverse(), sitk.sitkLinear, low)
    return replace(pair, moving=moving, truth=sitk.CompositeTransform([turn, pair.truth]))  # the last comes first


def on_grid(mask: sitk.Image, grid: Grid) -> sitk.Image:
    """A mask on another grid, nearest voxel."""
    return sitk.Resample(mask, grid.image(), sitk.Transform(), sitk.sitkNearestNeighbor, 0)


def measure(pair: Pair, name: str, options: argparse.Namespace) -> Retrieval:
    """Retrieval under one representation; all of them are asked for the same points."""
    fixed, moving = represent(name, pair.fixed, pair.moving, options.spacing, options.threads)
    mask = sitk.GetArrayFromImage(on_grid(pair.mask, fixed.grid)) > 0
    return retrieval(fixed, moving, pair.truth, mask, candidates=options.candidates, queries=options.queries)


def table(pairs: Iterable[Pair], options: argparse.Namespace) -> str:
    """Markdown: a row for each pair, a column for each representation."""
    names = options.representation
    rows = ["| pair | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for pair in pairs:
        ready = turned(confined(pair), options.rotation, options.translation)
        found = [measure(ready, name, options) for name in names]
        cells = [f"{100 * f.rate:.1f} % ({f.median_error_mm:.1f} mm)" for f in found]
        rows.append(f"| {pair.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def arguments() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    several = {"action": "append", "nargs": "+", "default": []}
    parser.add_argument("--pair", **several, metavar="NAME FIXED MOVING [TRANSFORM|none] [MASK]")
    parser.add_argument("--overlay", **several, metavar="NAME FIXED MOVING FIXED_LABELS MOVING_LABELS")
    parser.add_argument("--tasks", type=Path, help="folder of a judge's tasks; those of known deformation are taken")
    parser.add_argument("--representation", nargs="+", default=["default", "mind", "patch"])
    parser.add_argument("--rotation", type=float, default=10.0, help="degrees")
    parser.add_argument("--translation", type=float, default=5.0, help="mm")
    parser.add_argument("--spacing", type=float, help="edge of a voxel, mm; by default that of the coarser scan")
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main() -> None:
    parser = arguments()
    options = parser.parse_args()
    tasks = sorted(p.parent.parent for p in options.tasks.glob("*/gt/truth.mha")) if options.tasks else []
    if not (options.pair or options.overlay or tasks):
        parser.error("nothing to measure: give --pair, --overlay or --tasks")
    if any(not 3 <= len(p) <= 5 for p in options.pair) or any(len(p) != 5 for p in options.overlay):
        parser.error("--pair takes 3 to 5 values, --overlay 5")
    pairs = [read_pair(*p) for p in options.pair] + [read_task(p) for p in tasks]
    pairs += [read_overlay(*p) for p in options.overlay]
    print(
        f"True match nearest of {options.candidates} candidates, share of {min(options.queries, options.candidates)} "
        f"queries (median error); chance {100 / options.candidates:g} %; moving scan turned by {options.rotation:g} "
        f"degrees and shifted by {options.translation:g} mm\n\n{table(pairs, options)}"
    )


if __name__ == "__main__":
    main()
