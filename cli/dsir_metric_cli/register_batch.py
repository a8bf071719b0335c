"""`dsir-metric register-batch`: a table of pairs in, a folder each and a table of results out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dsir_metric import io
from dsir_metric.batch.job import settings_files
from dsir_metric.batch.outcome import Outcome
from dsir_metric.batch.pairs import TABLE, Pair, read_pairs
from dsir_metric.batch.run import LOCK, run_batch
from dsir_metric.io import Reorient
from dsir_metric.represent import Cache
from dsir_metric_cli.options import PATH, debug_option, hushed, reorient_option, size, warn
from dsir_metric_cli.register import ending_option, fill_option, settings, settings_options

__all__ = ["command"]

_SIGN_S = 5.0  # between two signs of life
_CACHE = ".dsir-cache"  # in the output folder, which every worker sees


@click.command()
@click.argument("pairs", type=PATH, metavar="PAIRS.csv")
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the results.")
@click.option("--workers", type=int, metavar="N", help="Pairs at once.  [default: what cores and memory hold]")
@click.option(
    "--memory",
    "memory_bytes",
    metavar="SIZE",
    callback=size,
    help="Each worker keeps within this, such as 4GB.  [default: no limit]",
)
@click.option("--scheduler", metavar="tcp://HOST:8786", help="Let the workers of this dask scheduler do it.")
@click.option("--cache", "cache_folder", type=PATH, metavar="FOLDER", help=f"[default: {_CACHE} in the output folder]")
@click.option(
    "--cache-size",
    metavar="SIZE",
    default="10GB",
    callback=size,
    show_default=True,
    help="Least recently used ones go first.",
)
@click.option("--no-cache", is_flag=True, help="Represent a scan anew for every pair.")
@ending_option
@fill_option
@reorient_option
@settings_options
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no table on the screen; warnings stay.")
@debug_option
def command(
    pairs: Path,
    output: Path,
    workers: int | None,
    scheduler: str | None,
    cache_folder: Path | None,
    cache_size: int,
    no_cache: bool,
    ending: str,
    fill: float | None,
    reorient: Reorient | None,
    config: str | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Register every pair of PAIRS.csv, several at once.

    The table has the columns fixed and moving (files, relative to the table) and, if you like, id, fixed_mask,
    moving_mask, fixed_labels, moving_labels and initial_transform. Each pair gets a folder in the output folder, as
    `register` writes it, and a row of table.csv.

    Each scan is represented once and kept for the other pairs it is in. If anything is interrupted, run the same
    command again: pairs that are done, from the same files and with the same settings, are kept.

    --threads are those of one pair; by default the cores are divided among the workers. --memory is for each worker as
    well: a pair that needs more is worked at with larger voxels, and there are as many workers as the memory holds.

    The exit code is 0 if all pairs are done, 1 if some failed (table.csv says why; the others are unharmed), 2 if
    nothing was started.

    Needs extras: pip install 'dsir-metric[cpu,batch]', or gpu in place of cpu.
    """
    console = Console(stderr=True, quiet=quiet)
    chosen = settings(config, given)
    sources = [("the table", pairs), *settings_files(chosen, config)]
    io.check_apart(sources, [output / TABLE, output / LOCK])
    read = _read(pairs, output, chosen.spacing_mm, ending, fill, reorient, console)
    cache = None if no_cache else Cache((cache_folder or output / _CACHE).absolute(), cache_size)
    warned: set[str] = set()

    def start(told: str) -> None:
        console.print(f"{len(read)} pairs on {told}", highlight=False)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task("pairs", total=len(read))

        def show(outcome: Outcome) -> None:
            bar.advance(task)
            for note in outcome.notes:
                if note not in warned:
                    warn(note)
            warned.update(outcome.notes)
            for doubt in outcome.warnings:
                warn(f"{outcome.id}: {doubt}")
            if outcome.state == "failed":
                warn(f"{outcome.id} failed: {outcome.error}")

        outcomes = run_batch(
            read,
            output,
            chosen,
            workers=workers,
            scheduler=scheduler,
            cache=cache,
            sources=sources,
            on_check=_Sign(console, "memory of {} pairs checked"),
            on_start=start,
            on_outcome=show,
        )
    _summarise(outcomes, console)
    console.print(f"wrote {output / TABLE}", highlight=False)
    if any(outcome.state == "failed" for outcome in outcomes):
        click.get_current_context().exit(1)


def _read(
    pairs: Path,
    output: Path,
    spacing_mm: float | None,
    ending: str,
    fill: float | None,
    reorient: Reorient | None,
    console: Console,
) -> tuple[Pair, ...]:
    """The table of pairs, with a sign of life while its rows are checked."""
    with hushed() as shown:
        sign = _Sign(Console(file=shown, quiet=console.quiet), "{} rows checked")
        return read_pairs(pairs, output, spacing_mm, ending, fill, reorient, on_row=sign)


class _Sign:
    """A line now and then, in a log file as well, that says how far a long check has come."""

    def __init__(self, console: Console, text: str) -> None:
        self._console, self._text = console, text
        self._due = time.monotonic() + _SIGN_S

    def __call__(self, count: int) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _SIGN_S
            self._console.print(self._text.format(f"{count:,}"), highlight=False)


def _summarise(outcomes: Sequence[Outcome], console: Console) -> None:
    table = Table("pair", "state", "seconds", "cosine", "folded %", "Dice", "undone", "", box=None)
    for outcome in outcomes:
        _, state, seconds, cosine, folded, before, after, undone, warnings, error = outcome.cells()
        dice = f"{before} -> {after}" if after else ""
        table.add_row(outcome.id, state, seconds, cosine, folded, dice, undone, escape(error or warnings))
    console.print(table)
    states = [outcome.state for outcome in outcomes]
    told = ", ".join(f"{states.count(s)} {s}" for s in ("done", "kept", "failed") if s in states)
    console.print(told, highlight=False)
