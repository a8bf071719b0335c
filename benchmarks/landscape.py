"""How far from the truth a metric still points at it: loss over rotations and translations, as figure 13 of the paper.

Run with: python benchmarks/landscape.py fixed.nii.gz moving.nii.gz -o landscape.png [--truth FILE|none] [--mask FILE]
              [--representation default mind] [--reach 30] [--step 2] [--spacing MM] [--points 20000]

Needs matplotlib.

Metrics: the cosine of each representation, and normalised mutual information (NMI) of the intensities. All look at the
same points of the body in the fixed scan, off the voxel centres, and at the same voxels. An offset is a rotation in
degrees about the middle of those points, or a translation in mm, before the true transform. The moving scan gets a
margin of its darkest value, so that points leave the body and not the image.

Capture range: the largest offset up to which the loss rises at every step away from the truth (or from the sample next
to it), give or take 0.5 % of what it spans; the smallest over both directions of three axes. Starts: share of all
sampled starts in two axes from which going to the best of the eight neighbours, again and again, ends at the truth or
next to it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from representations import Describer, represent
from retrieval import Pair, read_pair
from scipy import ndimage

from dsir_metric.geometry import Grid
from dsir_metric.metric import CosineMetric, Sampling
from dsir_metric.metric.transforms import point_map
from dsir_metric.represent import Representation, represent_pair
from dsir_metric.represent.foreground import foreground

Floats = NDArray[np.float64]
Similarity = Callable[[Floats], float]

KINDS = {"rotation": (slice(0, 3), "degrees"), "translation": (slice(3, 6), "mm")}
MARGIN_MM, BINS, TOLERANCE, SEED = 40.0, 32, 0.005, 3


@dataclass(frozen=True)
class Landscape:
    """Loss of one metric around the truth.

    `maps` holds, for rotation and for translation, the loss over the first two axes, (offsets, offsets), the first axis
    first; `profiles` that along each of the three axes alone, (3, offsets). `offsets` are in degrees or mm, 0 in the
    middle.
    """

    name: str
    offsets: Floats
    maps: dict[str, Floats]
    profiles: dict[str, Floats]


def capture_range(offsets: Floats, loss: Floats) -> float:
    """Largest offset up to which `loss` rises both ways from the middle, give or take 0.5 % of what it spans.

    The least loss may lie one sample beside the middle.
    """
    middle = len(offsets) // 2
    lowest = middle - 1 + int(np.argmin(loss[middle - 1 : middle + 2]))
    allowed = TOLERANCE * np.ptp(loss)
    reached = []
    for step in (1, -1):
        side = loss[lowest::step]
        falls = np.flatnonzero(side[1:] < np.maximum.accumulate(side)[:-1] - allowed)
        steps = int(falls[0]) if len(falls) else len(side) - 1
        reached.append(abs(offsets[lowest + step * steps]) if steps else 0.0)
    return float(min(reached))


def share_of_starts(loss: Floats) -> float:
    """Share of the cells from which steepest descent over the eight neighbours ends at most one cell off the middle."""
    rows, columns = loss.shape
    ends = np.zeros(loss.shape, bool)
    ends[rows // 2 - 1 : rows // 2 + 2, columns // 2 - 1 : columns // 2 + 2] = True
    arrived: dict[tuple[int, int], bool] = {}
    for flat in np.argsort(loss, axis=None, kind="stable"):  # lowest first: a lower neighbour is known already
        i, j = divmod(int(flat), columns)
        around = [
            (a, b) for a in range(max(i - 1, 0), min(i + 2, rows)) for b in range(max(j - 1, 0), min(j + 2, columns))
        ]
        best = min(around, key=lambda cell: loss[cell])
        arrived[i, j] = arrived[best] if loss[best] < loss[i, j] else bool(ends[i, j])
    return sum(arrived.values()) / loss.size


def offset_transform(offset: Floats, centre_mm: Floats) -> sitk.Euler3DTransform:
    """Three rotations in degrees about `centre_mm`, then three translations in mm."""
    angles = np.deg2rad(offset[:3])
    return sitk.Euler3DTransform(centre_mm.tolist(), *map(float, angles), [float(t) for t in offset[3:]])


def survey(name: str, similarity: Similarity, points: Floats, truth: sitk.Transform, offsets: Floats) -> Landscape:
    """Sample a similarity, which takes mapped points (n, 3), around the truth."""
    centre = points.mean(axis=0)

    def loss(axes: dict[int, float]) -> float:
        offset = np.zeros(6)
        offset[list(axes)] = list(axes.values())
        both = sitk.CompositeTransform([truth, offset_transform(offset, centre)])  # the last comes first
        return -similarity(point_map(both).map(points))

    maps, profiles = {}, {}
    for kind, (axes, _) in KINDS.items():
        first, second, third = range(6)[axes]
        maps[kind] = np.array([[loss({first: a, second: b}) for b in offsets] for a in offsets])
        profiles[kind] = np.array([[loss({axis: a}) for a in offsets] for axis in (first, second, third)])
    return Landscape(name, offsets, maps, profiles)


def mutual_information(fixed: Representation, moving: Representation, points: Floats) -> Similarity:
    """Normalised mutual information, (H(f) + H(m)) / H(f, m), of one-channel representations with values in [0, 1].

    References
    ----------
    Studholme, C. et al. (1999). An overlap invariant entropy measure of 3D medical image alignment. Pattern Recognition
    32(1), 71-86. https://doi.org/10.1016/S0031-3203(98)00091-0
    """
    reference, _ = read_at(fixed, points)

    def similarity(mapped: Floats) -> float:
        values, inside = read_at(moving, mapped)
        counts, _, _ = np.histogram2d(reference[inside], values[inside], BINS, [[0, 1], [0, 1]])
        joint = counts / counts.sum()
        return (entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))) / entropy(joint)

    return similarity


def entropy(share: Floats) -> float:
    """Of a distribution, in nats; not 0, so that it may divide."""
    return max(-float(np.sum(share[share > 0] * np.log(share[share > 0]))), 1e-12)


def read_at(image: Representation, points: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """First channel at points in mm, trilinear, and which points lie inside the image."""
    index = image.grid.to_index(points)
    inside = np.all((index >= -0.5) & (index < np.array(image.grid.size) - 0.5), axis=1)
    values = ndimage.map_coordinates(image.values[..., 0], index[:, ::-1].T, order=1, mode="nearest")
    return values, inside


def metrics(pair: Pair, options: argparse.Namespace) -> tuple[dict[str, Similarity], Floats]:
    """Similarity under every metric, and the sample points that all of them share."""
    found: dict[str, Similarity] = {}
    mask = foreground(pair.fixed, Grid.of(pair.fixed)) if pair.mask is None else pair.mask
    body = float(sitk.GetArrayViewFromImage(mask).astype(bool).mean())
    intensity = Describer("intensity", lambda volume: volume[..., None])
    fixed, moving = represent_pair(pair.fixed, pair.moving, intensity, spacing_mm=options.spacing)
    share = min(1.0, options.points / (body * np.prod(fixed.grid.size)))
    sampling = Sampling("random", share, SEED)
    points = CosineMetric(fixed, moving, fixed_mask=mask, sampling=sampling).points_mm
    for name in options.representation:
        described = represent(name, pair.fixed, pair.moving, options.spacing, options.threads)
        metric = CosineMetric(*described, fixed_mask=mask, sampling=sampling)
        found[f"{name}, cosine"] = lambda mapped, metric=metric: float(metric.agreements(mapped[None])[0])
    found["NMI"] = mutual_information(fixed, moving, points)
    return found, points


def padded(image: sitk.Image) -> sitk.Image:
    """A margin of the darkest value on all sides."""
    width = [int(np.ceil(MARGIN_MM / s)) for s in image.GetSpacing()]
    return sitk.ConstantPad(image, width, width, float(sitk.GetArrayViewFromImage(image).min()))


def table(surveys: list[Landscape]) -> str:
    """Markdown: capture range and share of starts, a row for each metric."""
    head = [f"capture, {kind}, {unit}" for kind, (_, unit) in KINDS.items()] + [f"starts, {kind}" for kind in KINDS]
    rows = ["| metric | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for found in surveys:
        widest = found.offsets[-1]
        ranges = [min(capture_range(found.offsets, p) for p in found.profiles[kind]) for kind in KINDS]
        cells = [f"{'at least ' if r >= widest else ''}{r:g}" for r in ranges]
        cells += [f"{100 * share_of_starts(found.maps[kind]):.0f} %" for kind in KINDS]
        rows.append(f"| {found.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(surveys: list[Landscape], file: Path) -> None:
    """A row for each metric: both maps and both sets of profiles, each scaled to [0, 1]."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(len(surveys), 4, figsize=(13, 3 * len(surveys)), squeeze=False, layout="constrained")
    for row, found in zip(grid, surveys, strict=True):
        ends = [found.offsets[0], found.offsets[-1]]
        for k, (kind, (_, unit)) in enumerate(KINDS.items()):
            row[k].imshow(scaled(found.maps[kind]).T, origin="lower", extent=(*ends, *ends), cmap="viridis")
            row[k].set(title=f"{found.name}: {kind}", xlabel=f"x, {unit}", ylabel=f"y, {unit}")
            for axis, profile in zip("xyz", scaled(found.profiles[kind]), strict=True):
                row[2 + k].plot(found.offsets, profile, label=axis)
            row[2 + k].set(xlabel=f"{kind}, {unit}", ylabel="loss, scaled", xlim=ends)
            row[2 + k].legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def scaled(loss: Floats) -> Floats:
    """0 for the least loss, 1 for the greatest."""
    return (loss - loss.min()) / max(np.ptp(loss), 1e-12)


def arguments() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fixed")
    parser.add_argument("moving")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the figure, .png")
    parser.add_argument("--truth", default="none", help="transform or displacement field; none where they are aligned")
    parser.add_argument("--mask", help="where in the fixed scan the metrics count")
    parser.add_argument("--representation", nargs="+", default=["default", "mind"])
    parser.add_argument("--reach", type=float, default=30.0, help="largest offset, degrees and mm")
    parser.add_argument("--step", type=float, default=2.0, help="of the offsets, degrees and mm")
    parser.add_argument("--spacing", type=float, help="edge of a voxel, mm; by default that of the coarser scan")
    parser.add_argument("--points", type=int, default=20_000, help="sample points, about")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main() -> None:
    options = arguments().parse_args()
    pair = read_pair("pair", options.fixed, options.moving, options.truth, options.mask)
    pair = replace(pair, moving=padded(pair.moving))
    count = round(options.reach / options.step)
    offsets = options.step * np.arange(-count, count + 1)
    found, points = metrics(pair, options)
    surveys = [survey(name, similarity, points, pair.truth, offsets) for name, similarity in found.items()]
    draw(surveys, options.output)
    print(f"{len(points)} points, offsets up to {offsets[-1]:g} in steps of {options.step:g}\n\n{table(surveys)}")


if __name__ == "__main__":
    main()
