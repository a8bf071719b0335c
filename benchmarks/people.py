"""Pairs of brains of two people, painted from label maps: on these `tune.py` chooses weights for people.

Run with: python benchmarks/people.py MAPS PEOPLE
          regbench.py prepare --tasks PEOPLE/tasks.json --data PEOPLE --out WORK
          python benchmarks/tune.py --judge regbench.py --work WORK --settings benchmarks/settings-people.json
              --representation default --representation mind

MAPS holds label maps with the codes of FreeSurfer, such as SynthSeg's training maps. Two neighbours in the list make a
pair: the first is painted as T2 and as T1 (fixed), the second as T1 (moving), without what lies outside the brain. The
anatomy is that of real people and so is what differs between them; only the brightness is made up. What the judge is
given are the label maps themselves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from dsir_metric import io
from dsir_metric.geometry import Grid

WHITE, GREY, DEEP, FLUID = "white", "grey", "deep", "fluid"
TISSUE = {
    WHITE: (2, 41, 7, 46, 16, 28, 60, 77, 85, 13, 52),
    GREY: (3, 42, 8, 47, 17, 53, 18, 54, 26, 58, 25, 57, 136, 137, 163, 164),
    DEEP: (10, 49, 11, 50, 12, 51),
    FLUID: (4, 43, 5, 44, 14, 15, 24, 30, 62, 72),
}
CODES = [code for codes in TISSUE.values() for code in codes]
OUTER_FLUID, RIM_VOX = 24, 3  # as far as it is left on a brain whose skull is taken away
BRIGHTNESS = {
    "t1": {WHITE: 0.85, GREY: 0.58, DEEP: 0.68, FLUID: 0.15},
    "t2": {WHITE: 0.35, GREY: 0.55, DEEP: 0.45, FLUID: 0.95},
}
JUDGED = (2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 26, 28, 41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60)
SPREAD = 0.04  # of a structure's mean around that of its tissue
TEXTURE, TEXTURE_VOX = 0.05, 2.0
BIAS, BIAS_VOX = 0.15, 40.0
NOISE = 0.02
MARGIN_VOX = 4


def paint(labels: NDArray[np.integer], contrast: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """A scan of the brain in a label map (z, y, x): 0 outside, up to about 1000.

    Every structure has a brightness around that of its tissue and a texture; a slow field lies over all, and noise. The
    laws are none of those of `dsir_metric_train.views`: a model was trained on these, and would be at an advantage.
    """
    mean = np.zeros(max(CODES) + 1)
    for tissue, codes in TISSUE.items():
        for code in codes:
            mean[code] = BRIGHTNESS[contrast][tissue] * (1 + rng.normal(0, SPREAD))
    plain = mean[labels]
    image = plain * (1 + TEXTURE * _smooth(rng, labels.shape, TEXTURE_VOX))
    image *= 1 + BIAS * _smooth(rng, labels.shape, BIAS_VOX)
    noisy = np.abs(image + NOISE * rng.standard_normal(labels.shape))
    return np.float32(1000 * np.where(plain > 0, noisy, 0))


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma_vox: float) -> NDArray[np.floating]:
    """A random field of variance 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma_vox)
    return field / field.std()


def _around_brain(labels: sitk.Image) -> sitk.Image:
    """What belongs to the brain, int32, cropped to a margin around it."""
    values = sitk.GetArrayFromImage(labels).astype(np.int32)
    values[~np.isin(values, CODES)] = 0
    brain = (values > 0) & (values != OUTER_FLUID)
    values[~ndimage.binary_dilation(brain, iterations=RIM_VOX)] = 0
    (around,) = ndimage.find_objects((values > 0).astype(int))
    box = tuple(
        slice(max(s.start - MARGIN_VOX, 0), min(s.stop + MARGIN_VOX, n))
        for s, n in zip(around, values.shape, strict=True)
    )
    return Grid.of(labels).cropped(box).stamp(sitk.GetImageFromArray(values[box]))


def make(maps: list[Path], folder: Path, pairs: int, seed: int = 0) -> list[dict[str, object]]:
    """Write scans and label maps of `pairs` pairs into a folder; the tasks, as the judge's `prepare` takes them."""
    tasks: list[dict[str, object]] = []
    for k in range(pairs):
        for side, file, contrasts in (("fixed", maps[2 * k], ("t1", "t2")), ("moving", maps[2 * k + 1], ("t1",))):
            image = _around_brain(io.read_labels(file))
            labels = sitk.GetArrayFromImage(image)
            rng = np.random.default_rng([seed, k, side == "moving"])
            scans = {c: paint(labels, c, rng) for c in contrasts}
            for name, values in {**scans, "labels": np.int16(labels)}.items():
                out = Grid.of(image).stamp(sitk.GetImageFromArray(values))
                sitk.WriteImage(out, str(folder / f"{k}_{side}_{name}.nii.gz"))
        tasks += [
            {
                "id": f"people_{k}_{contrast}_t1",
                "kind": "labels",
                "fixed": f"{k}_fixed_{contrast}.nii.gz",
                "moving": f"{k}_moving_t1.nii.gz",
                "fixed_labels": f"{k}_fixed_labels.nii.gz",
                "moving_labels": f"{k}_moving_labels.nii.gz",
                "init": "geometry",
                "mask": "labels",
                "label_ids": JUDGED,
            }
            for contrast in ("t2", "t1")
        ]
    return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("maps", type=Path, help="folder of label maps")
    parser.add_argument("out", type=Path, help="folder for scans, labels and tasks.json")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    maps = sorted(options.maps.glob("*.nii*"))
    if len(maps) < 2 * options.pairs:
        sys.exit(f"{options.maps} has {len(maps)} label maps; {options.pairs} pairs need {2 * options.pairs}")
    options.out.mkdir(parents=True, exist_ok=True)
    defaults = {"spacing": 2.0, "pad_mm": 10, "pad_moving_mm": 24, "noise": 0.01}
    io.write_json({"defaults": defaults, "tasks": make(maps, options.out, options.pairs)}, options.out / "tasks.json")


if __name__ == "__main__":
    main()
