"""The pair of scans that the scripts beside this one register, two paths or else a phantom, and what became of it."""

from __future__ import annotations

import sys

import SimpleITK as sitk

from dsir_metric import io
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.register import RegistrationResult


def read_pair() -> tuple[sitk.Image, sitk.Image, PhantomPair | None]:
    """Fixed and moving, and the truth where it is known."""
    if len(sys.argv) == 3:
        return io.read_image(sys.argv[1]), io.read_image(sys.argv[2]), None
    truth = make_pair(40, 4.5, ("t1", "flair"))
    return truth.fixed, truth.moving, truth


def show(result: RegistrationResult, truth: PhantomPair | None) -> None:
    """Print the stages, and the error where the truth is known."""
    for stage in result.stages:
        print(f"{stage.name:10s} mean cosine {stage.cosine_before:.3f} -> {stage.cosine_after:.3f}  {stage.remark}")
    if truth:
        before = truth.error_mm(sitk.Transform(3, sitk.sitkIdentity))
        print(f"mean error {before:.2f} mm -> {truth.error_mm(result.transform):.2f} mm")
