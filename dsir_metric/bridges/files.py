"""Images and a command line for people who run an engine's own program."""

from __future__ import annotations

import shlex
from pathlib import Path

from dsir_metric import io
from dsir_metric.bridges.channels import ChannelPair
from dsir_metric.bridges.registry import engine

__all__ = ["write_files"]


def write_files(name: str, pair: ChannelPair, folder: str | Path, fixed: Path, moving: Path) -> Path:
    """Write the channels of a pair and a script that registers them, linearly first, and moves the scan.

    Parameters
    ----------
    name : str
        One of `ENGINES`; it need not be installed.
    pair : ChannelPair
        Each representation on its own grid.
    folder : str or Path
        Made where it is missing.
    fixed, moving : Path
        The scans, for the last line of the script.

    Returns
    -------
    Path
        The script, register.sh. It comes last: where it is new, everything is.

    Raises
    ------
    ConfigError
        If there is no such engine, or a scan has the place of a file to be written.
    DataError
        If the folder refuses a file.
    """
    bridge = engine(name).bridge
    folder = io.prepare_folder(folder)
    script = folder / "register.sh"
    with io.scratch_folder(folder) as scratch:
        commands = list(bridge.write(pair, scratch, linear=True))
        commands.append(bridge.apply(str(moving.absolute()), str(fixed.absolute())))
        lines = ["#!/bin/sh", f"# {name}, by the DNS cosine on {pair.text}.", "set -e", 'cd "$(dirname "$0")"']
        written = scratch / script.name
        written.write_text("\n".join([*lines, *map(shlex.join, commands)]) + "\n")
        written.chmod(0o755)
        files = sorted(scratch.iterdir(), key=lambda file: file == written)
        io.check_apart((("the fixed scan", fixed), ("the moving scan", moving)), (folder / f.name for f in files))
        io.write_together({folder / file.name: file.replace for file in files})
    return script
