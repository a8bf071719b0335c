"""`dsir-metric export`: a checkpoint in, a model file out; or a model in, a repository for servers out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dsir_metric import io
from dsir_metric.errors import ConfigError
from dsir_metric_cli.options import PATH, debug_option, needs

__all__ = ["command"]


@click.command()
@click.argument("checkpoint", type=PATH, required=False)
@click.option("-o", "--output", type=PATH, help="Model file, .onnx.")
@click.option("--triton", "repository", type=PATH, metavar="REPO", help="Write a model repository for servers instead.")
@click.option("--model", metavar="NAME|FILE", help="With --triton: the model.  [default: default]")
@click.option("--fp32", "precision", flag_value="fp32", default=None, help="With --triton: answer in single precision.")
@click.option("--name", metavar="NAME", help="With --triton: what clients call it.  [default: masrnet]")
@click.option("--version", type=int, metavar="N", help="With --triton: version to write.  [default: 1]")
@click.option("--max-voxels", type=int, metavar="N", help="With --triton: largest image.  [default: 200^3]")
@click.option("--instances", type=int, metavar="N", help="With --triton: requests at once on a device.  [default: 1]")
@debug_option
def command(checkpoint: Path | None, output: Path | None, repository: Path | None, **given: Any) -> None:
    """Turn CHECKPOINT, as `train` leaves it, into an ONNX file with its card, checked against torch.

    Needs extras: pip install 'dsir-metric[cpu,export]', or gpu in place of cpu.

    With --triton, write a model into a Triton model repository: one graph from raw intensities to unit vectors, its
    config.pbtxt, and a manifest for KServe. That needs no torch: pip install 'dsir-metric[cpu,deploy]'.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if repository is not None:
        if checkpoint is not None or output is not None:
            raise ConfigError("--triton takes a model, no checkpoint and no -o; export that first, then give --model")
        _write_repository(repository, **chosen)
        return
    if checkpoint is None or output is None:
        raise ConfigError("give a CHECKPOINT and the model file to write, -o FILE; or --triton REPO")
    if chosen:
        raise ConfigError("an option for servers came without --triton; name a repository, or leave it out")
    with needs("export"):
        from dsir_metric_export import export_model
    io.prepare_folder(output.parent)
    export_model(checkpoint, output)
    click.echo(f"wrote {output}; use it with --model {output}", err=True)


def _write_repository(repository: Path, model: str = "default", **deployment: Any) -> None:
    with needs("deploy"):
        from dsir_metric_export import Deployment, export_triton
    folder, manifest = export_triton(repository, model, Deployment(**deployment))
    click.echo(
        f"wrote {folder} for `tritonserver --model-repository {repository}`, and {manifest} for KServe", err=True
    )
