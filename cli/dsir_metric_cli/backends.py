"""`dsir-metric backends`: which engines can be used here."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from dsir_metric.register.backends import BACKENDS
from dsir_metric_cli.options import debug_option

__all__ = ["command"]


@click.command()
@debug_option
def command() -> None:
    """List the backends of `register`, whether each can be used here, and what to install for the others."""
    table = Table("backend", "what", "package", "version", "", box=None)
    obstacles = []
    for backend in BACKENDS.values():
        package = backend.package
        needs = ("built in", "", "ready")
        if package is not None:
            obstacle = package.obstacle
            needs = (package.package, package.version or "", "missing" if obstacle else "ready")
            obstacles += [f"{backend.name}: {obstacle}"] if obstacle else []
        table.add_row(backend.name, backend.does, *needs)
    console = Console(markup=False, highlight=False)
    console.print(table)
    for line in obstacles:
        console.print(line, soft_wrap=True)
