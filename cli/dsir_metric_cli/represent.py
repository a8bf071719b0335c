"""`dsir-metric represent`: a scan in, its 24 channels out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from dsir_metric import io
from dsir_metric.errors import ConfigError
from dsir_metric.represent import Representation, Representer
from dsir_metric_cli.options import PATH, debug_option, hushed, model_options

__all__ = ["command"]

_IMAGES = (".nrrd", ".mha", ".nii", ".nii.gz")


@click.command()
@click.argument("image", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="File: .nrrd, .mha, .nii, .nii.gz or .npz.")
@click.option("--intensity", default="auto", metavar="RULE", help="auto, mr, ct, ct:LOW,HIGH or window:LOW,HIGH.")
@click.option("--tile", type=int, metavar="VOXELS", help="Edge of a tile; less needs less memory.  [default: chosen]")
@model_options
@debug_option
def command(image: Path, output: Path, intensity: str, tile: int | None, **given: Any) -> None:
    """Write the representation (DSIR) of IMAGE, a 3-D scan, on its own grid.

    An image file has the channels as components of its voxels. An .npz holds values (z, y, x, channel), spacing_mm,
    origin_mm, direction and provenance.
    """
    if not output.name.endswith((*_IMAGES, ".npz")):
        raise ConfigError(f"{output}: the ending names no format; use one of {', '.join((*_IMAGES, '.npz'))}")
    io.prepare_folder(output.parent)
    with hushed():
        scan = io.read_image(image)
    chosen = {name: value for name, value in given.items() if value is not None}
    write(Representer(**chosen, tile=tile)(scan, intensity), output)


def write(representation: Representation, path: Path) -> None:
    """Write a representation in the format of the ending of `path`."""
    if path.suffix != ".npz":
        io.write_image(representation.to_sitk(), path)
        return
    grid = representation.grid
    with io.atomic(path) as temporary:
        np.savez(
            temporary,
            values=representation.values,
            spacing_mm=grid.spacing_mm,
            origin_mm=grid.origin_mm,
            direction=np.reshape(grid.direction, (3, 3)),
            provenance=json.dumps(dict(representation.provenance)),
        )
