"""Deformable stage by ITK's own registration method on representations."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dsir_metric.bridges.channels import channel_pair
from dsir_metric.bridges.process import checked_field, run_module
from dsir_metric.geometry import DisplacementField
from dsir_metric.itk.impact import check_impact
from dsir_metric.register.config import RegisterConfig
from dsir_metric.register.pair import aligned
from dsir_metric.register.problem import Deformation, Problem, Report

__all__ = ["check", "deform"]


def check(config: RegisterConfig) -> None:
    """See that it can be used here; raises what `check_impact` raises."""
    check_impact()


def deform(problem: Problem, linear: NDArray[np.float64], report: Report) -> Deformation:
    """See `Deform`; ITK works in a process of its own, and its crashes stay there."""
    config, level = problem.config, aligned(problem.levels[-1], linear)
    channels = config.engine.channels or level.fixed.channels
    pair = channel_pair(level.fixed, level.moving.unit(), level.fixed_mask, level.fixed_mask, channels)
    with tempfile.TemporaryDirectory(prefix="dsir-itk-") as temporary:
        folder = Path(temporary)
        for name, image in (("fixed", pair.fixed.to_sitk()), ("moving", pair.moving.to_sitk()), ("mask", pair.mask)):
            sitk.WriteImage(image, str(folder / f"{name}.nrrd"))
        device = config.device if config.device.startswith("cuda") else "cpu"
        run_module("itk", ["dsir_metric.itk.deform", device], folder, config.threads, config.engine.timeout_s)
        field = sitk.ReadImage(str(folder / "field.nrrd"), sitk.sitkVectorFloat64)
    found = DisplacementField(sitk.GetArrayFromImage(field), pair.fixed.grid)
    return Deformation(checked_field("itk", found).to_transform(), f"itk on {pair.text}")
