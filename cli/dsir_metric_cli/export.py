"""`dsir-metric export`: a checkpoint in, a model file out."""

from __future__ import annotations

from pathlib import Path

import click

from dsir_metric import io
from dsir_metric_cli.options import PATH, debug_option, needs

__all__ = ["command"]


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Model file, .onnx.")
@debug_option
def command(checkpoint: Path, output: Path) -> None:
    """Turn CHECKPOINT, as `train` leaves it, into an ONNX file with its card, checked against torch.

    Needs the extra: pip install 'dsir-metric[export]'.
    """
    with needs("export"):
        from dsir_metric_export import export_model
    io.prepare_folder(output.parent)
    export_model(checkpoint, output)
    click.echo(f"wrote {output}; use it with --model {output}", err=True)
