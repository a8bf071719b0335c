"""Options and manners that several commands share."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from dsir_metric.errors import ConfigError, MissingDependencyError

__all__ = ["DEBUG", "PATH", "Decorator", "debug_option", "hushed", "model_options", "needs", "size"]

DEBUG = "dsir_metric_cli.debug"
PATH = click.Path(path_type=Path)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def size(_: click.Context, __: click.Parameter, text: str) -> int:
    """Callback of an option: the number of bytes that `800MB` or `1.5GB` means."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise ConfigError(f"{text!r} is no size; write it as 800MB or 10GB")
    return int(float(found[1]) * _UNITS[found[2]])


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True


debug_option: Decorator = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_remember_debug, help="Show the traceback of an error."
)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options on how representations are made."""
    for option in (
        click.option("--threads", type=int, metavar="N", help="CPU threads.  [default: all cores]"),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where the network runs."),
        click.option(
            "--model", metavar="NAME|FILE|URL", help="Model: a name that `models` lists, an .onnx file, or an address."
        ),
    ):
        function = option(function)
    return function


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Explain an import that fails because an extra of the package is not installed.

    Raises
    ------
    MissingDependencyError
        Naming the missing module and the extra that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dsir_metric"):
            raise
        raise MissingDependencyError(
            f"this needs {error.name}, which is not installed: pip install 'dsir-metric[{extra}]'"
        ) from error


@contextmanager
def hushed() -> Iterator[None]:
    """Keep what C++ readers print about a bad file off the screen; the exception says it in one line.

    Warnings of Python are shown at the end. Does nothing with --debug.
    """
    context = click.get_current_context(silent=True)
    if context is not None and context.meta.get(DEBUG):
        yield
        return
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with warnings.catch_warnings(record=True) as told:
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        for warning in told:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
