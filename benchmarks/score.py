"""Score a transform as docs/benchmarks.md does: error of a known deformation, Dice and HD95 of labels, folds.

Run with: python benchmarks/score.py FIXED TRANSFORM [--truth T] [--mask M] [--fixed-labels L --moving-labels L]
    [--ids 2 3 4 ...]

FIXED is the fixed scan, TRANSFORM maps its points to those of the moving scan (LPS mm), as transform.h5 does; --truth
is the same for the true deformation. Both are files of transforms, or images of displacement vectors (.mha, .nrrd).
Figures are printed as JSON. HD95 needs dsir-metric[train] (MONAI).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric import io
from dsir_metric.evaluate import dice
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.represent.foreground import foreground

FIELDS = (".mha", ".mhd", ".nrrd")
FEWEST_VOXELS = 30  # of a label in the fixed scan: smaller ones say more about resampling than about registration


def score(
    fixed: sitk.Image,
    transform: sitk.Transform,
    *,
    truth: sitk.Transform | None = None,
    mask: sitk.Image | None = None,
    labels: tuple[sitk.Image, sitk.Image] | None = None,
    ids: Sequence[int] | None = None,
) -> dict[str, object]:
    """All figures of a transform, on the voxels of the fixed scan.

    Parameters
    ----------
    fixed : sitk.Image
    transform, truth : sitk.Transform
        Fixed to moving points, LPS mm.
    mask : sitk.Image, optional
        Where errors and folds count, on the grid of `fixed`; its foreground by default.
    labels : tuple of sitk.Image, optional
        Of the fixed and of the moving scan.
    ids : sequence of int, optional
        Labels that count; by default all that have 30 voxels or more in the fixed scan.
    """
    grid = Grid.of(fixed)
    inside = sitk.GetArrayFromImage(foreground(fixed, grid) if mask is None else mask) > 0
    field = DisplacementField.from_transform(transform, grid)
    jacobian = field.jacobian_statistics(inside)
    found: dict[str, object] = {"folded_percent": jacobian["folded_percent"], "smallest_jacobian": jacobian["min"]}
    if truth is not None:
        found |= errors_mm(field, DisplacementField.from_transform(truth, grid), inside)
    if labels is not None:
        found |= overlap(fixed, transform, *labels, ids)
    return found


def errors_mm(field: DisplacementField, truth: DisplacementField, inside: NDArray[np.bool_]) -> dict[str, object]:
    """Distance between two deformations where `inside`."""
    distance = np.linalg.norm(field.values - truth.values, axis=-1)[inside]
    return {
        "error_mean_mm": float(distance.mean()),
        "error_p95_mm": float(np.percentile(distance, 95)),
        "error_max_mm": float(distance.max()),
    }


def overlap(
    fixed: sitk.Image,
    transform: sitk.Transform,
    fixed_labels: sitk.Image,
    moving_labels: sitk.Image,
    ids: Sequence[int] | None = None,
) -> dict[str, object]:
    """Dice and HD95 of the labels that count, and their means."""
    moved = sitk.Resample(moving_labels, fixed, transform, sitk.sitkNearestNeighbor, 0, moving_labels.GetPixelID())
    there, here = sitk.GetArrayFromImage(fixed_labels), sitk.GetArrayFromImage(moved)
    present, counts = np.unique(there[there != 0], return_counts=True)
    large = [int(label) for label, count in zip(present, counts, strict=True) if count >= FEWEST_VOXELS]
    wanted = large if ids is None else list(ids)
    overlaps = dice(fixed_labels, moved)
    distances = {label: hd95_mm(there == label, here == label, fixed.GetSpacing()[::-1]) for label in wanted}
    return {
        "dice": float(np.mean([overlaps.get(label, 0.0) for label in wanted])),
        "hd95_mm": float(np.mean(list(distances.values()))),
        "dice_of_label": {label: overlaps.get(label, 0.0) for label in wanted},
        "hd95_mm_of_label": distances,
    }


def hd95_mm(one: NDArray[np.bool_], other: NDArray[np.bool_], spacing_mm: Sequence[float]) -> float:
    """The larger of both 95th percentiles of surface distances, as MONAI has it; infinite where a side is empty."""
    import torch
    from monai.metrics import compute_hausdorff_distance

    if not one.any() or not other.any():
        return float("inf")
    box = np.argwhere(one | other)
    cut = tuple(slice(low, high) for low, high in zip(box.min(axis=0), box.max(axis=0) + 1, strict=True))
    first, second = (torch.from_numpy(np.pad(side[cut], 2))[None, None].float() for side in (one, other))
    found = compute_hausdorff_distance(first, second, include_background=True, percentile=95, spacing=list(spacing_mm))
    return float(found)


def read(path: Path) -> sitk.Transform:
    """A transform, or the displacement field in an image of vectors."""
    if path.suffix not in FIELDS:
        return io.read_transform(path)
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixed", type=Path)
    parser.add_argument("transform", type=Path)
    for name in ("truth", "mask", "fixed-labels", "moving-labels"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--ids", type=int, nargs="+", help="labels that count")
    given = parser.parse_args(arguments)
    if (given.fixed_labels is None) != (given.moving_labels is None):
        parser.error("labels of both scans are needed")
    labels = None
    if given.fixed_labels is not None:
        labels = io.read_labels(given.fixed_labels), io.read_labels(given.moving_labels)
    found = score(
        io.read_image(given.fixed),
        read(given.transform),
        truth=None if given.truth is None else read(given.truth),
        mask=None if given.mask is None else io.read_labels(given.mask),
        labels=labels,
        ids=given.ids,
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
