"""`dsir-metric train`: a recipe in, a checkpoint out; or a folder of scans in, a better model out."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from dsir_metric.config import load_toml
from dsir_metric.errors import ConfigError
from dsir_metric.io import check_apart
from dsir_metric_cli.options import PATH, debug_option, needs

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="FOLDER|RECIPE", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the new model, checkpoints and reports.")
@click.option("--model", metavar="NAME|FILE", help="Begin with its weights.  [default: default; random for a recipe]")
@click.option("--steps", type=click.IntRange(1), help="Pairs of views to train on.  [FOLDER; default: 500]")
@click.option("--crop", type=int, help="Edge of a view in voxels.  [FOLDER; default: as the model was trained]")
@click.option("--seed", type=click.IntRange(0), help="Of every random choice.  [FOLDER; default: 0]")
@click.option("--keep", type=click.Choice(["better", "always"]), help="When to write it.  [FOLDER; default: better]")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads.  [FOLDER; default: all cores]")
@click.option("--data", type=PATH, help="Folder the files of a recipe lie in.  [RECIPE; default: that of the recipe]")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the output folder.")
@click.option("--workers", type=click.IntRange(0), default=1, show_default=True, help="Processes that draw, a device.")
@click.option("--devices", type=click.IntRange(1), help="GPUs, or CPU processes, of a machine.  [RECIPE; default: 1]")
@click.option("--nodes", type=click.IntRange(1), help="Machines, all started alike.  [RECIPE; default: 1]")
@debug_option
def command(source: Path, output: Path, resume: bool, workers: int, **given: Any) -> None:
    """Fine-tune a model on the scans in FOLDER, or train one from RECIPE, a TOML file.

    \b
      dsir-metric train my_scans/ -o out/
      dsir-metric register a.nii.gz b.nii.gz -o registered/ --model out/model.onnx

    With a folder nothing else is needed: no labels, no pairs, no aligned scans. Every fifth scan is held back; on
    those, before and after, the model must find single points again across contrasts and undo known deformations.
    model.onnx is written only if it became better; report.json says by how much.

    Needs extras: pip install 'dsir-metric[cpu,train,export]', or gpu in place of cpu.
    """  # noqa: D301
    if not source.exists():
        raise ConfigError(f"{source}: there is no such folder or file")
    chosen = {name: value for name, value in given.items() if value is not None}
    unfit = {"data", "devices", "nodes"} if source.is_dir() else {"steps", "crop", "seed", "keep", "threads"}
    for name in unfit & set(chosen):
        kind, other = ("a folder", "a recipe") if source.is_dir() else ("a recipe", "a folder")
        raise ConfigError(f"--{name} goes with {other}, and {source} is {kind}: leave it out")
    (_adapt if source.is_dir() else _train)(source, output, resume=resume, workers=workers, **chosen)


def _hush() -> None:
    """Without what Lightning, once imported, tells about itself."""
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


def _train(
    recipe: Path, output: Path, *, model: str | None = None, data: Path | None = None, nodes: int = 1, **chosen: Any
) -> None:
    with needs("train"):
        from dsir_metric_train.loop import CHECKPOINT, train
        from dsir_metric_train.recipe import Recipe
        from dsir_metric_train.together import is_first
    _hush()
    network = None
    read = [("the recipe", recipe), *([] if model is None else [("the model", Path(model))])]
    check_apart(read, [output / CHECKPOINT, output / "log" / "metrics.csv"])
    if model is not None:
        with needs("export"):
            from dsir_metric_export import read_network
        network = read_network(model, load_toml(recipe, Recipe).base).train()
    checkpoint = train(recipe, output, data_root=data, network=network, num_nodes=nodes, **chosen)
    if is_first():
        click.echo(f"wrote {checkpoint}; next: dsir-metric export {checkpoint} -o model.onnx", err=True)


def _adapt(folder: Path, output: Path, **chosen: Any) -> None:
    with needs("train,export"):
        from dsir_metric_export.adapt import adapt
    _hush()
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    outcome = adapt(folder, output, on_note=console.print, **chosen)
    table = Table("on scans held back", "before", "after", "change", "noise", "", box=None)
    names = {"retrieval": "true match is the nearest", "error_mm": "error of registration, mm"}
    for name, figure in outcome.figures.items():
        before, after = (f"{v:.1%}" if name == "retrieval" else f"{v:.3f}" for v in (figure.before, figure.after))
        table.add_row(names[name], before, after, f"{figure.gain:+.1%}", f"{figure.noise:.1%}", figure.verdict)
    console.print(table)
    verdict = "the model became better" if outcome.better else "the model did not become better"
    if outcome.model is not None:
        console.print(f"{verdict}; wrote {outcome.model}: use it with --model {outcome.model}")
    else:
        console.print(f"{verdict}, so none was written; {outcome.checkpoint} stays, --keep always writes it anyway")
