"""`dsir-metric`: the commands, each imported when it is called."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import click

import dsir_metric
from dsir_metric.errors import DsirError, StoppedError
from dsir_metric_cli.options import DEBUG, debug_option

__all__ = ["app", "main"]

_COMMANDS = {
    "Register": {
        "demo": "Make two scans of a phantom, register them, measure the error",
        "register": "Register two scans of any two modalities",
        "register-batch": "Register all pairs of a table, on several cores or a cluster",
        "represent": "Write the 24-channel representation of a scan",
        "backends": "List the engines that `register` can use",
    },
    "Models": {
        "models": "List, show and check models",
        "train": "Fine-tune a model on a folder of scans, or train one from a recipe",
        "export": "Turn a checkpoint into a model file, or a model into a repository for servers",
        "serve": "Serve a model by HTTP and gRPC",
        "train-registration": "Train a registration network on representations",
    },
}
_HELP = """Register medical images of different modalities by a learned similarity.

\b
  dsir-metric demo                                      see it work on a phantom
  dsir-metric register t1.nii.gz flair.nii.gz -o out/   your own scans
  dsir-metric register --help                           all options of a command
"""


class _Refusal(click.ClickException):
    """An error of ours: one line, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)


class _App(click.Group):
    """Commands by name; a module is imported only for its own command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in _COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"dsir_metric_cli.{name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in _COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl(list(section.items()), col_max=20)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StoppedError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(128 + error.signum)
        except DsirError as error:
            if ctx.meta.get(DEBUG):
                raise
            raise _Refusal(str(error)) from error
        except MemoryError as error:
            if ctx.meta.get(DEBUG):
                raise
            raise _Refusal(
                "there is not enough memory; say how much there is (--memory 2GB), or take larger voxels (--spacing)"
            ) from error


@click.group(cls=_App, help=_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(dsir_metric.__version__, prog_name="dsir-metric")
@debug_option
def app() -> None:
    """All commands."""


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def main() -> None:
    """Entry point of the `dsir-metric` command."""
    for core, level in (("GRPC_VERBOSITY", "NONE"), ("TORCH_CPP_LOG_LEVEL", "ERROR")):
        os.environ.setdefault(core, level)  # in C++; they write on stderr what an exception says as well, and advice
    warnings.showwarning = _warn
    app(prog_name="dsir-metric")
