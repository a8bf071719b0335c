"""What a user sees while a registration runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dsir_metric_cli.options import warn

if TYPE_CHECKING:
    from dsir_metric.register import Progress as Step
    from dsir_metric.register import RegistrationResult

__all__ = ["progress_bar", "summarise"]


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[Step], None]]:
    """Give a function that shows each step of a registration as one bar over all stages.

    The bar is gone at the end, and there is none in a log file.

    Parameters
    ----------
    console : rich.console.Console
        Where to draw; standard error, quiet or not.
    """
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[metric]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task("starting", total=1.0, metric="")

        def show(step: Step) -> None:
            metric = "" if step.metric is None else f"metric {step.metric:+.4f}"
            bar.update(task, description=step.stage, completed=step.fraction, metric=metric)

        yield show
        bar.update(task, description="done", completed=1.0)


def summarise(result: RegistrationResult, console: Console) -> None:
    """Print what each stage did; the cosine is 1 where both scans look the same to the model.

    Warnings are printed even where the console is quiet.
    """
    table = Table("stage", "cosine", "seconds", "", box=None)
    for stage in result.stages:
        change = f"{stage.cosine_before:.3f} -> {stage.cosine_after:.3f}"
        table.add_row(stage.name, change, f"{stage.seconds:.1f}", stage.remark)
    console.print(table)
    for warning in result.warnings:
        warn(warning)
