"""`dsir-metric demo`: the main job on two scans the package makes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import SimpleITK as sitk
from rich.console import Console
from rich.table import Table

from dsir_metric import io
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.phantom import make_pair
from dsir_metric_cli.options import PATH, debug_option, model_options
from dsir_metric_cli.register import Job, run, settings

__all__ = ["command"]

_CONTRASTS = click.Choice(["t1", "t2", "flair", "ct"])
_FIELD_OF_VIEW_MM = 200.0
_INPUTS = ("fixed", "moving", "fixed_labels", "moving_labels")


@click.command()
@click.option("-o", "--output", type=PATH, default="dsir-demo", show_default=True, help="Folder for everything.")
@click.option("--fixed", type=_CONTRASTS, default="t1", show_default=True, help="Modality of the fixed scan.")
@click.option("--moving", type=_CONTRASTS, default="flair", show_default=True, help="Modality of the moving scan.")
@click.option("--size", type=click.IntRange(32, 256), default=80, show_default=True, help="Voxels on each side.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the deformation, the noise and the rest.")
@model_options
@debug_option
def command(output: Path, fixed: Any, moving: Any, size: int, seed: int, **given: Any) -> None:
    """Make two scans of a phantom head, different in modality and shape, register them, and measure the error."""
    config = settings(None, given | {"seed": seed})
    folder = io.prepare_folder(output)
    pair = make_pair(size, _FIELD_OF_VIEW_MM / size, (fixed, moving), seed=seed)
    inputs: dict[str, Any] = {name: folder / f"{name}.nii.gz" for name in _INPUTS}
    for name, path in inputs.items():
        io.write_image(getattr(pair, name), path)
    io.write_transform(pair.truth, folder / "truth.h5")
    result = run(Job(**inputs, output=folder / "out"), config, Console(stderr=True))
    field = DisplacementField.from_transform(result.transform, Grid.of(pair.fixed))
    table = Table("mean error in the head", f"{fixed} <- {moving}", box=None)
    table.add_row("before", f"{pair.error_mm(sitk.Transform(3, sitk.sitkIdentity)):.2f} mm")
    table.add_row("after", f"{pair.error_mm(result.transform):.2f} mm")
    table.add_row("folded voxels", f"{field.jacobian_statistics()['folded_percent']:.2f} %")
    console = Console()
    console.print(table)
    console.print("\nYour own scans: dsir-metric register FIXED MOVING -o out", highlight=False)
