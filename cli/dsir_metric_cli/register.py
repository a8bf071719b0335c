"""`dsir-metric register`: two scans in, a transform and the moved scan out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.console import Console

from dsir_metric import io
from dsir_metric.batch.job import Job
from dsir_metric.config import from_dict
from dsir_metric.errors import ConfigError
from dsir_metric.register import RegisterConfig, RegistrationResult
from dsir_metric.register.forecast import forecast_registration, open_representer
from dsir_metric.register.presets import load_settings
from dsir_metric_cli.options import (
    PATH,
    Decorator,
    debug_option,
    dry_run_option,
    hushed,
    memory_option,
    model_options,
    reorient_option,
    tell,
)
from dsir_metric_cli.progress import progress_bar, summarise

__all__ = ["Job", "command", "ending_option", "fill_option", "run", "settings", "settings_options"]

# Options that belong to a table of the settings.
_IN_TABLES = {
    "metric": ("instance", "metric"),
    "init": ("instance", "init"),
    "velocity": ("instance", "velocity"),
    "refine_io": ("lapirn", "refine_iterations"),
    "channels": ("engine", "channels"),
}


ending_option: Decorator = click.option(
    "--format",
    "ending",
    type=click.Choice(io.IMAGE_ENDINGS),
    default=".nii.gz",
    show_default=True,
    help="Of the moved images.",
)

fill_option: Decorator = click.option(
    "--fill",
    type=float,
    metavar="VALUE",
    help="Of the moved scan outside the moving one.  [default: its background]",
)

_SETTINGS: tuple[Decorator, ...] = (
    click.option("--stages", metavar="A,B,..", help="Of centre,search,rigid,affine,deformable,refine.  [default: all]"),
    click.option("--spacing", "spacing_mm", type=float, metavar="MM", help="Voxel size to work at.  [default: chosen]"),
    click.option("--intensity", metavar="RULE", help="auto, mr, ct, ct:LOW,HIGH or window:LOW,HIGH, of both scans."),
    click.option("--fixed-intensity", metavar="RULE", help="The same for the fixed scan alone."),
    click.option("--moving-intensity", metavar="RULE", help="The same for the moving scan alone."),
    click.option(
        "--backend", metavar="NAME", help="Engine that deforms; `dsir-metric backends` lists them.  [default: sitk]"
    ),
    click.option("--metric", metavar="NAME", help="Of the backend torch: dns, mind or nmi.  [default: dns]"),
    click.option("--init", metavar="NAME", help="Of the backend torch: zero, or convex for a discrete search first."),
    click.option("--velocity", is_flag=True, default=None, help="Of the backend torch: a diffeomorphism."),
    click.option("--refine-io", type=int, metavar="N", help="Of the backend lapirn: iterations after the network."),
    click.option("--channels", type=int, metavar="N", help="Of the engines elastix, ants, greedy: fewer are faster."),
    model_options,
    click.option("--seed", type=int, help="Of every random choice.  [default: 0]"),
    click.option(
        "--config",
        metavar="NAME|FILE",
        help="TOML file with finer settings, or `paper`; options go before.",
    ),
)


def settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `settings` takes."""
    for option in reversed(_SETTINGS):
        function = option(function)
    return function


@click.command()
@click.argument("fixed", type=PATH)
@click.argument("moving", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the results.")
@click.option("--fixed-mask", type=PATH, help="Where in the fixed scan the metric counts.")
@click.option("--moving-mask", type=PATH, help="Where in the moving scan the metric counts.")
@click.option(
    "--initial-transform",
    type=PATH,
    help="Start here: an ITK transform from fixed to moving points, or an image of displacements as ANTs writes it.",
)
@click.option("--moving-labels", type=PATH, help="Labels of the moving scan, moved along.")
@click.option("--fixed-labels", type=PATH, help="Labels of the fixed scan, for Dice before and after.")
@ending_option
@fill_option
@reorient_option
@settings_options
@memory_option
@dry_run_option
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no summary; warnings stay.")
@debug_option
def command(config: str | None, quiet: bool, dry_run: bool, **given: Any) -> None:
    """Register MOVING to FIXED, two 3-D scans of any modality.

    Writes transform.h5 (an ITK transform in mm from fixed to moving points), moved.nii.gz and result.json; with moving
    labels moved_labels.nii.gz as well, with --velocity inverse.h5.

    A scan is a file (NIfTI, Analyze, NRRD, MetaImage, GIPL, MINC, a DICOM file of a volume), or OME-Zarr:
    scan.ome.zarr, a level of it scan.ome.zarr/2, a channel of it scan.ome.zarr#channel=1.
    """
    job = Job(**{name: given.pop(name) for name in Job.__dataclass_fields__})
    if dry_run:
        foretell(job, settings(config, given))
    else:
        chosen = settings(config, given)
        job.check_apart(chosen, config)
        run(job, chosen, Console(stderr=True, quiet=quiet))


def foretell(job: Job, config: RegisterConfig) -> None:
    """Print what a registration will need; of the scans the headers are looked at."""
    if config.backend != "sitk":
        raise ConfigError(f"--dry-run knows the backend sitk alone; {config.backend!r} came")
    with hushed():
        fixed, moving = job.grids()
    representer = open_representer(config, fixed, moving)
    tell(forecast_registration(config, fixed, moving, representer, timed=True))


def settings(config: str | None, given: Mapping[str, Any]) -> RegisterConfig:
    """The settings of a name or TOML file, or the defaults, overridden by the options that were given (not None)."""
    chosen = {name: value for name, value in given.items() if value is not None}
    both = chosen.pop("intensity", None)
    if both is not None:
        chosen = {"fixed_intensity": both, "moving_intensity": both} | chosen
    if "stages" in chosen:
        chosen["stages"] = [stage.strip() for stage in chosen["stages"].split(",")]
    for option, (table, name) in _IN_TABLES.items():
        if option in chosen:
            chosen.setdefault(table, {})[name] = chosen.pop(option)
    return from_dict(RegisterConfig, chosen) if config is None else load_settings(config, chosen)


def run(job: Job, config: RegisterConfig, console: Console) -> RegistrationResult:
    """Read, register, write; every input and the output folder is checked before the long part."""
    folder = io.prepare_folder(job.output)
    with hushed():
        scans = job.read()
    with progress_bar(console) as show:
        result = scans.register(config, on_progress=show)
    with hushed():
        job.write(scans, result)
    summarise(result, console)
    console.print(f"wrote transform.h5, moved{job.ending} and result.json into {folder}", highlight=False)
    return result
