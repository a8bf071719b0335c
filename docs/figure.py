"""The picture of the README: a phantom pair, its representations, and its outlines before and after registration."""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.phantom import make_pair
from dsir_metric.register import register
from dsir_metric.represent import Representer


def colours(values: NDArray[np.float32], axes: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """First three principal components of descriptors (..., 24) as red, green and blue."""
    return np.clip((values @ axes - low) / (high - low), 0, 1)


def main() -> None:
    """Register the phantom and draw its middle slice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", default="docs/registration.png")
    pair = make_pair(
        size=96, spacing_mm=2.0, contrast=("t1", "flair"), rotation_deg=(8, -6, 10), translation_mm=(8, -6, 4), seed=3
    )
    result = register(pair.fixed, pair.moving)
    represent = Representer()
    images = [sitk.GetArrayFromImage(i) for i in (pair.fixed, pair.moving)]
    dsirs = [represent(i).values for i in (pair.fixed, pair.moving)]
    unregistered = sitk.Resample(pair.moving_labels, pair.fixed, sitk.Transform(), sitk.sitkNearestNeighbor)
    outlines = [sitk.GetArrayFromImage(i) for i in (unregistered, result.moved(pair.moving_labels, labels=True))]

    slices = [len(image) // 2 for image in images]
    sample = np.concatenate([d[s].reshape(-1, d.shape[-1]) for d, s in zip(dsirs, slices, strict=True)])
    axes = np.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)[2][:3].T
    low, high = np.percentile(sample @ axes, (1, 99))
    figure, panels = plt.subplots(1, 6, figsize=(15, 2.8))
    titles = ("fixed (T1-like)", "moving (FLAIR-like)", "DSIR of fixed", "DSIR of moving", "before", "after")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=11)
        panel.axis("off")
    for k in (0, 1):
        panels[k].imshow(images[k][slices[k]], cmap="gray")
        panels[2 + k].imshow(colours(dsirs[k][slices[k]], axes, low, high))
        panels[4 + k].imshow(images[0][slices[0]], cmap="gray")
        panels[4 + k].contour(outlines[k][slices[0]], levels=np.arange(0.5, 8), colors="orange", linewidths=0.7)
    before, after = pair.error_mm(sitk.Transform(3, sitk.sitkIdentity)), pair.error_mm(result.transform)
    panels[4].set_title(f"before: {before:.1f} mm", fontsize=11)
    panels[5].set_title(f"after: {after:.1f} mm", fontsize=11)
    figure.tight_layout()
    figure.savefig(parser.parse_args().output, dpi=90)


if __name__ == "__main__":
    main()
