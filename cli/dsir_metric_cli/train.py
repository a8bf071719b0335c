"""`dsir-metric train`: a recipe in, a checkpoint out."""

from __future__ import annotations

from pathlib import Path

import click

from dsir_metric import io
from dsir_metric_cli.options import PATH, debug_option, needs

__all__ = ["command"]


@click.command()
@click.argument("recipe", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for checkpoints and the loss curve.")
@click.option("--data", type=PATH, help="Folder the recipe's paths begin at.  [default: that of the recipe]")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the output folder.")
@click.option("--workers", type=click.IntRange(0), default=1, show_default=True, help="Processes that draw samples.")
@debug_option
def command(recipe: Path, output: Path, data: Path | None, resume: bool, workers: int) -> None:
    """Train a model from RECIPE, a TOML file, on folders of NIfTI, NRRD or MetaImage files.

    Needs the extra: pip install 'dsir-metric[train]'.
    """
    with needs("train"):
        from dsir_metric_train.loop import train
    folder = io.prepare_folder(output)
    checkpoint = train(recipe, folder, data_root=data, resume=resume, workers=workers)
    click.echo(f"wrote {checkpoint}; next: dsir-metric export {checkpoint} -o model.onnx", err=True)
