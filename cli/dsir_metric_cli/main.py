"""`dsir-metric`: the commands, each imported when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import warnings
from typing import Any, NoReturn, TextIO

import click

import dsir_metric
from dsir_metric.errors import DsirError, StoppedError, is_out_of_memory
from dsir_metric_cli.options import DEBUG, debug_option, printable, warn
from dsir_metric_cli.stop import Stopped, heed_signals, leave_quietly, received

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


_STDERR = 2  # the number of the last of the three standard streams
_HELP_INSTEAD = getattr(click.exceptions, "NoArgsIsHelpError", ())  # shown where nothing is given; click 8.1 has none


class _Refusal(click.ClickException):
    """An error of ours: one line, exit code 2; 128 and the signal's number where a signal ended the work."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {printable(self.message)}", err=True)


def _wrong_use(error: click.UsageError) -> _Refusal:
    """The error for options and arguments that are no use."""
    command = error.ctx.command_path if error.ctx else "dsir-metric"
    return _Refusal(f"{' '.join(error.format_message().split())} See `{command} --help`.")


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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except _HELP_INSTEAD:
            raise
        except click.UsageError as error:
            raise _wrong_use(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            value = super().invoke(ctx)
            _flush()
        except _HELP_INSTEAD:
            raise
        except (Exception, Stopped) as error:
            refusal = _refusal(error)
            if refusal is None or (ctx.meta.get(DEBUG) and received() is None):
                raise
            raise refusal from error
        return value


def _refusal(error: BaseException) -> _Refusal | None:
    """What the user is told of an error; None for one that nobody expects."""
    number = received()
    if number is not None:
        return _Refusal(f"stopped by {number.name}; no file is half-written", 128 + number)
    if isinstance(error, click.UsageError):
        return _wrong_use(error)
    if isinstance(error, DsirError):
        return _Refusal(str(error), 128 + error.signum if isinstance(error, StoppedError) else 2)
    if is_out_of_memory(error):
        return _Refusal(
            "there is not enough memory; say how much there is (--memory 2GB), or take larger voxels (--spacing)"
        )
    if isinstance(error, OSError) and error.strerror and error.errno != errno.EPIPE:  # that is `| head`
        where = "" if error.filename is None else f"{error.filename}: "
        return _Refusal(f"{where}the system refuses to read or write ({error.strerror})")
    return None


def _flush() -> None:
    """Write out what was printed; where that fails, say so once and not at the end again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from error


def _drop(stream: TextIO) -> None:
    """Let what is written to a stream, and what it still holds, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> None:
    """Open the null device for each standard stream that is closed: a file would take its number, and its text."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


def _end(error: OSError) -> NoReturn:
    """End with the code of an error that could not be told on the usual way, since a standard stream refuses it."""
    refusal = _refusal(error)
    if refusal is None:
        raise error
    try:
        refusal.show()
    except OSError:
        _drop(sys.stderr)
    _drop(sys.stdout)
    sys.exit(refusal.exit_code)


@click.group(cls=_App, help=_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(dsir_metric.__version__, prog_name="dsir-metric")
@debug_option
def app() -> None:
    """All commands."""


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    warn(message)


def main() -> None:
    """Entry point of the `dsir-metric` command."""
    for core, level in (("GRPC_VERBOSITY", "NONE"), ("TORCH_CPP_LOG_LEVEL", "ERROR")):
        os.environ.setdefault(core, level)  # in C++; they write on stderr what an exception says as well, and advice
    warnings.showwarning = _warn
    _open_streams()
    heed_signals()
    try:
        app(prog_name="dsir-metric")
    except OSError as error:
        _end(error)
    finally:
        leave_quietly()
