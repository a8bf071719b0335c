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
        The script, register.sh. It is written last: where it is new, everything is.

    Raises
    ------
    ConfigError
        If there is no such engine.
    DataError
        If the folder refuses a file.
    """
    bridge = engine(name).bridge
    folder = io.prepare_folder(folder)
    commands = list(bridge.write(pair, folder, linear=True))
    commands.append(bridge.apply(str(moving.absolute()), str(fixed.absolute())))
    lines = ["#!/bin/sh", f"# {name}, by the DNS cosine on {pair.text}.", "set -e", 'cd "$(dirname "$0")"']
    script = folder / "register.sh"
    with io.atomic(script) as temporary:
        temporary.write_text("\n".join([*lines, *map(shlex.join, commands)]) + "\n")
        temporary.chmod(0o755)
    return script
