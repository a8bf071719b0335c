"""`dsir-metric train-registration`: a recipe in, a registration network out."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import click

from dsir_metric.config import load_toml
from dsir_metric.errors import ConfigError
from dsir_metric_cli.options import PATH, debug_option, needs

__all__ = ["command"]


@click.command()
@click.argument("recipe", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the network, checkpoints and figures.")
@click.option("--data", type=PATH, help="Folder the files of the recipe lie in.  [default: that of the recipe]")
@click.option("--cache", type=PATH, help="Folder of prepared volumes, to be shared.  [default: cache/ in the output]")
@click.option("--network", metavar="NAME|FILE", help="Begin with the weights of this network.  [default: random]")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the output folder.")
@debug_option
def command(
    recipe: Path, output: Path, data: Path | None, cache: Path | None, network: str | None, resume: bool
) -> None:
    """Train a network that registers, LapIRN or VoxelMorph, from RECIPE, a TOML file.

    Scans and label maps are represented and aligned once, then pairs of them registered under random deformations. The
    folder gets last.ckpt, log/metrics.csv and the network, an .onnx file for
    `register --backend lapirn`; it works with the representations of the model in the recipe and with no others.

    Needs extras: pip install 'dsir-metric[cpu,train,export]', or gpu in place of cpu.
    """
    if not recipe.is_file():
        raise ConfigError(f"{recipe}: there is no such file; give a recipe, a TOML file")
    if data is not None and not data.is_dir():
        raise ConfigError(f"{data}: there is no such folder; give the one the files of the recipe lie in")
    with needs("train,export"):
        from dsir_metric_export.registration import export_registration, read_registration_network
        from dsir_metric_train.registration import RegistrationRecipe, train_registration
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")

    def note(line: str) -> None:
        click.echo(line, err=True)

    start = None if network is None else read_registration_network(network, load_toml(recipe, RegistrationRecipe))
    checkpoint = train_registration(
        recipe, output, data_root=data, cache=cache, network=start, resume=resume, on_note=note
    )
    card = export_registration(checkpoint, output)
    note(
        f"{card.steps} steps; of known deformations of {card.validation['before_mm']:.2f} mm "
        f"{card.validation['error_mm']:.2f} mm are left on volumes held back"
    )
    note(f"wrote {output / f'{card.name}.onnx'}")
