"""`dsir-metric represent`: a scan in, its 24 channels out; or a pair, ready for another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from dsir_metric import io
from dsir_metric.bridges import ENGINES, channel_pair, engine, write_files
from dsir_metric.errors import ConfigError
from dsir_metric.represent import Representer, represent_pair
from dsir_metric.represent.forecast import forecast_representation
from dsir_metric.represent.foreground import foreground
from dsir_metric_cli.options import (
    PATH,
    debug_option,
    dry_run_option,
    hushed,
    memory_option,
    model_options,
    reorient_option,
    tell,
)

__all__ = ["command"]

_ENDINGS = (*io.IMAGE_ENDINGS, ".npz")


@click.command()
@click.argument("image", type=PATH)
@click.argument("moving", type=PATH, required=False)
@click.option("-o", "--output", type=PATH, required=True, help=f"File {', '.join(_ENDINGS)}; a folder for a pair.")
@click.option("--intensity", default="auto", metavar="RULE", help="auto, mr, ct, ct:LOW,HIGH or window:LOW,HIGH.")
@click.option("--tile", type=int, metavar="VOXELS", help="Edge of a tile; less needs less memory.  [default: chosen]")
@click.option("--for", "program", metavar="NAME", help=f"Write a pair for another program: {', '.join(ENGINES)}.")
@click.option("--channels", type=int, metavar="N", help="With --for: how many channels.  [default: the program's]")
@click.option("--spacing", "spacing_mm", type=float, metavar="MM", help="With --for: voxel size.  [default: chosen]")
@reorient_option
@model_options
@memory_option
@dry_run_option
@debug_option
def command(
    image: Path,
    moving: Path | None,
    output: Path,
    intensity: str,
    tile: int | None,
    program: str | None,
    channels: int | None,
    spacing_mm: float | None,
    reorient: io.Reorient | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Write the representation (DSIR) of IMAGE, a 3-D scan, on its own grid.

    An image file has the channels as components of its voxels, an .ome.zarr as its axis c. Both .mha and .ome.zarr are
    written piece by piece, for volumes larger than memory; --memory says how much there is. An .npz holds values
    (z, y, x, channel), spacing_mm, origin_mm, direction and provenance.

    With --for, IMAGE is the fixed and MOVING the moving scan; the folder gets their channels and register.sh, the
    command line of that program, which need not be installed here.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if program is not None:
        if moving is None:
            raise ConfigError("--for needs two scans; give FIXED MOVING")
        if dry_run:
            raise ConfigError("--dry-run does not go with --for; try it with `dsir-metric register`")
        representer = Representer(**chosen, tile=tile)
        with hushed():
            script = write_pair(program, image, moving, output, representer, channels, spacing_mm, intensity, reorient)
        click.echo(f"wrote {script}", err=True)
        return
    if moving is not None or channels is not None or spacing_mm is not None:
        raise ConfigError("a second scan, --channels and --spacing go with --for only; name a program")
    if not output.name.endswith(_ENDINGS):
        raise ConfigError(f"{output}: the ending names no format; use one of {', '.join(_ENDINGS)}")
    streamed, memory_bytes = output.suffix in io.STREAMED, given["memory_bytes"]
    if not dry_run:
        io.check_apart((("the scan", image), ("the model", Path(given["model"] or "default"))), [output])
        io.prepare_folder(output.parent)
    if dry_run or memory_bytes is not None:
        with hushed():
            grid = io.read_grid(image, reorient=reorient)
        representer = Representer(**chosen, tile=tile)
        forecast = forecast_representation(
            representer, grid, streamed=streamed, timed=dry_run, memory_bytes=memory_bytes
        )
        if dry_run:
            tell(forecast)
            return
    write(Representer(**chosen, tile=tile), image, intensity, output, reorient)


def write_pair(
    program: str,
    fixed: Path,
    moving: Path,
    folder: Path,
    representer: Representer,
    channels: int | None,
    spacing_mm: float | None,
    intensity: str,
    reorient: io.Reorient | None = None,
) -> Path:
    """Write what `program` needs to register two scans; the script that does it."""
    default = engine(program).channels
    io.prepare_folder(folder)
    scans = io.read_image(fixed, reorient=reorient), io.read_image(moving, reorient=reorient)
    pair = represent_pair(
        *scans, representer, spacing_mm=spacing_mm, fixed_intensity=intensity, moving_intensity=intensity
    )
    mask, body = (foreground(scan, r.grid) for scan, r in zip(scans, pair, strict=True))
    count = min(default, pair[0].channels) if channels is None else channels
    reduced = channel_pair(*pair, mask, body, count)
    return write_files(program, reduced, folder, fixed, moving)


def write(
    representer: Representer, image: Path, intensity: str, path: Path, reorient: io.Reorient | None = None
) -> None:
    """Represent a scan in the format of the ending of `path`."""
    with hushed():
        scan = io.read_image(image, reorient=reorient)
    if path.suffix in io.STREAMED:
        prepared = representer.prepare(scan, intensity)
        del scan
        representer.write(prepared, path)
        return
    representation = representer(scan, intensity)
    grid = representation.grid
    if path.suffix != ".npz":
        with hushed():
            io.write_image(representation.to_sitk(), path)
        return
    with io.atomic(path) as temporary:
        np.savez(
            temporary,
            values=representation.values,
            spacing_mm=grid.spacing_mm,
            origin_mm=grid.origin_mm,
            direction=np.reshape(grid.direction, (3, 3)),
            provenance=json.dumps(dict(representation.provenance)),
        )
