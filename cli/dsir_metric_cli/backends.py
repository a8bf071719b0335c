"""`dsir-metric backends`: which engines can be used here."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from dsir_metric.errors import DsirError
from dsir_metric.register import RegisterConfig
from dsir_metric.register.backends import BACKENDS, Backend
from dsir_metric_cli.options import debug_option

__all__ = ["command"]


@click.command()
@debug_option
def command() -> None:
    """List the backends of `register`, whether each can be used here, and what to install for the others."""
    table = Table("backend", "what", "package", "version", "", box=None)
    obstacles = []
    for backend in BACKENDS.values():
        package, obstacle = backend.package, _obstacle(backend)
        needs = ("built in", "") if package is None else (package.package, package.version or "")
        table.add_row(backend.name, backend.does, *needs, "not ready" if obstacle else "ready")
        obstacles += [obstacle] if obstacle else []
    console = Console(markup=False, highlight=False)
    console.print(table)
    for line in obstacles:
        console.print(line, soft_wrap=True)


def _obstacle(backend: Backend) -> str | None:
    """What `register` with default settings would say before it begins, or None."""
    config = RegisterConfig(backend=backend.name)
    try:
        backend.check(config)
        backend.check_model(config)
    except DsirError as error:
        return str(error) if str(error).startswith(backend.name) else f"{backend.name}: {error}"
    return None
