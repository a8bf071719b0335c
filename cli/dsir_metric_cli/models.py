"""`dsir-metric models`: which models there are and what their cards say."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from dsir_metric.config import to_dict
from dsir_metric.represent.card import load_card, model_path
from dsir_metric_cli.options import debug_option

__all__ = ["command"]


@click.command()
@click.argument("model", metavar="[NAME|FILE]", required=False)
@click.option("--path", "path_only", is_flag=True, help="Only the path of the file.")
@debug_option
def command(model: str | None, path_only: bool) -> None:
    """List the models that come with the package, or show the card of one as JSON."""
    if model is None:
        _list(path_only)
    elif path_only:
        click.echo(model_path(model))
    else:
        click.echo(json.dumps(to_dict(load_card(model)), indent=2, ensure_ascii=False))


def _list(path_only: bool) -> None:
    files = sorted(model_path("default").parent.glob("*.onnx"))
    if path_only:
        click.echo("\n".join(map(str, files)))
        return
    table = Table("model", "channels", "receptive field", "intensity", "trained on", box=None)
    for file in files:
        card = load_card(file)
        table.add_row(
            file.stem, str(card.channels), f"{card.receptive_field} voxels", card.intensity, f"{len(card.data)} files"
        )
    Console().print(table)
