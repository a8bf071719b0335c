"""`dsir-metric models`: which models there are, what their cards say, and whether a file is sound."""

from __future__ import annotations

import json
from collections import Counter

import click
from rich.console import Console
from rich.table import Table

from dsir_metric.config import to_dict
from dsir_metric.represent.card import ModelCard
from dsir_metric.represent.loading import load_card, verify
from dsir_metric.represent.zoo import model_path, shipped_models
from dsir_metric_cli.options import debug_option

__all__ = ["command"]

_model = click.argument("model", metavar="NAME|FILE")


@click.group()
@debug_option
def command() -> None:
    """List, show and check models. A model is a name that `list` shows, or an .onnx file, wherever one is asked for."""


@command.command("list")
@debug_option
def list_models() -> None:
    """List the models that come with the package and what they were trained on."""
    table = Table("model", "channels", "receptive field", "weights", "trained on", box=None)
    for name, path in shipped_models().items():
        card = load_card(path)
        field = f"{card.receptive_field} voxels"
        table.add_row(name, str(card.channels), field, card.weights_hash[:12], _sources(card))
    Console().print(table)


@command.command("show")
@_model
@debug_option
def show_model(model: str) -> None:
    """Show the card of a model as JSON."""
    click.echo(json.dumps(to_dict(load_card(model)), indent=2, ensure_ascii=False))


@command.command("verify")
@_model
@debug_option
def verify_model(model: str) -> None:
    """Check that a model file is what its card says: graph, weights, reach, and descriptors of a small volume."""
    for line in verify(model):
        click.echo(line)


@command.command("path")
@_model
@debug_option
def print_path(model: str) -> None:
    """Print where the file of a model lies."""
    click.echo(model_path(model))


def _sources(card: ModelCard) -> str:
    """Where the training files came from, the most first; a count where there is more than one."""
    counts = Counter(str(entry["source"]) for entry in card.data)
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.most_common())
