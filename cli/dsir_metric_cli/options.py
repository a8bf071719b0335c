"""Options and manners that several commands share."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from dsir_metric.bounds import quoted
from dsir_metric.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from dsir_metric.represent.forecast import Forecast

__all__ = [
    "DEBUG",
    "PATH",
    "Decorator",
    "debug_option",
    "dry_run_option",
    "hushed",
    "memory_option",
    "model_options",
    "needs",
    "printable",
    "reorient_option",
    "size",
    "tell",
    "warn",
]

DEBUG = "dsir_metric_cli.debug"
PATH = click.Path(path_type=Path)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """Callback of an option: the number of bytes that `800MB`, `1.5GB` or `2GiB` means; None where it is not given."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d*)?)\s*(?:([KMGT]?)B?|([KMGT])IB)", text.strip().upper(), re.ASCII)
    if found is None:
        raise ConfigError(f"{quoted(text)} is no size; write it as 800MB, 10GB or 2GiB")
    unit = _UNITS[found[2]] if found[3] is None else 1024 ** ("KMGT".index(found[3]) + 1)
    return int(float(found[1]) * unit)


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True


debug_option: Decorator = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_remember_debug, help="Show the traceback of an error."
)


memory_option: Decorator = click.option(
    "--memory",
    "memory_bytes",
    metavar="SIZE",
    callback=size,
    help="Keep within this, such as 2GB.  [default: no limit]",
)
reorient_option: Decorator = click.option(
    "--reorient",
    type=click.Choice(["nearest"]),
    help="Where axes are slightly (up to 1 degree) off right angles: take the nearest rotation, and say what moves.",
)
dry_run_option: Decorator = click.option(
    "--dry-run", is_flag=True, help="Only tell what memory, disk and time it will take, and what would change that."
)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options on how representations are made."""
    for option in (
        click.option("--threads", type=int, metavar="N", help="CPU threads.  [default: all cores]"),
        click.option(
            "--gpu-memory", "gpu_memory_bytes", metavar="SIZE", callback=size, help="Most to take on the GPU: 4GB."
        ),
        click.option("--device", metavar="NAME", help="Where networks run: auto, cpu, cuda, cuda:1.  [default: auto]"),
        click.option(
            "--model", metavar="NAME|FILE|URL", help="Model: a name that `models` lists, an .onnx file, or an address."
        ),
    ):
        function = option(function)
    return function


def warn(text: object) -> None:
    """Write a warning on standard error, one line, whatever else is quiet."""
    click.echo(f"warning: {printable(str(text))}", err=True)


def printable(text: str) -> str:
    """A text on one line: what would break the line or steer the terminal is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Explain an import that fails because an extra of the package is not installed.

    Raises
    ------
    MissingDependencyError
        Naming the missing module and the extra that brings it, with an ONNX Runtime where none is installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dsir_metric"):
            raise
        wanted = extra if find_spec("onnxruntime") else f"cpu,{extra}"
        raise MissingDependencyError(
            f"this needs {error.name}, which is not installed: pip install 'dsir-metric[{wanted}]'"
        ) from error


@contextmanager
def hushed() -> Iterator[TextIO]:
    """Keep what C++ code prints about a bad file or a full disk off the screen; the exception says it in one line.

    Warnings of Python are shown at the end. Does nothing with --debug.

    Yields
    ------
    text file
        Standard error, for what is to be seen meanwhile.
    """
    context = click.get_current_context(silent=True)
    if context is not None and context.meta.get(DEBUG):
        yield sys.stderr
        return
    from dsir_metric.io import silenced  # not for --help, which must be quick

    try:
        with warnings.catch_warnings(record=True) as told, silenced() as shown:
            yield shown
    finally:
        for warning in told:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def tell(forecast: Forecast) -> None:
    """Print a forecast, one thing a line."""
    click.echo(f"voxels: {forecast.voxels / 1e6:.2f} million, in {forecast.tiles} tiles")
    click.echo(f"memory: {forecast.memory_bytes / 1e6:.0f} MB at most")
    click.echo(f"disk: {forecast.disk_bytes / 1e6:.0f} MB before compression")
    click.echo(
        "time: unknown, a server has the model" if forecast.seconds is None else f"time: {_time(forecast.seconds)}"
    )
    for line in forecast.advice:
        click.echo(line)


def _time(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min"
