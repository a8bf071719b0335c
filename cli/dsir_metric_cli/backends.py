"""`dsir-metric backends`: which engines can be used here."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from dsir_metric.bridges.registry import ENGINES
from dsir_metric_cli.options import debug_option

__all__ = ["command"]


@click.command()
@debug_option
def command() -> None:
    """List the backends of `register`, whether each can be used here, and what to install for the others."""
    table = Table("backend", "package", "version", "channels", "", box=None)
    table.add_row("sitk", "built in", "", "all", "ready")
    for engine in ENGINES.values():
        table.add_row(
            engine.name, engine.package, engine.version or "", str(engine.channels), engine.obstacle or "ready"
        )
    Console(markup=False).print(table)
