"""An engine in a process of its own: what it prints, hangs or crashes stays there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dsir_metric.bridges.channels import ChannelPair
from dsir_metric.bridges.registry import engine
from dsir_metric.errors import RegistrationError
from dsir_metric.geometry import DisplacementField

__all__ = ["checked_field", "run_commands", "run_engine", "run_module"]

_COMMANDS, _LOG = "commands.json", "engine.log"
_THREADS = ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_engine(
    name: str, pair: ChannelPair, *, threads: int | None = None, timeout_s: float = 3600.0
) -> DisplacementField:
    """Deform one image to another with an engine.

    Parameters
    ----------
    name : str
        One of `ENGINES`.
    pair : ChannelPair
        Linearly aligned already.
    threads : int, optional
        CPU threads; all cores by default.
    timeout_s : float
        When the engine is given up.

    Returns
    -------
    DisplacementField
        On the grid of the fixed image, one voxel wider; fixed to moving points, LPS mm.

    Raises
    ------
    ConfigError, MissingDependencyError
        See `engine` and `Package.check`.
    RegistrationError
        If the engine fails, crashes, takes too long or gives what is not finite. Its files are in a temporary folder
        that is deleted whatever happens.
    """
    chosen = engine(name)
    chosen.check()
    bridge = chosen.bridge
    with tempfile.TemporaryDirectory(prefix=f"dsir-{name}-") as temporary:
        folder = Path(temporary)
        run_commands(name, bridge.write(pair, folder, linear=False), folder, threads, timeout_s)
        try:
            field = DisplacementField.from_transform(bridge.read(folder), pair.fixed.grid)
        except RuntimeError as error:
            raise RegistrationError(f"{name} ended without a transform{_last_words(folder)}") from error
    return checked_field(name, field)


def checked_field(name: str, field: DisplacementField) -> DisplacementField:
    """What an engine found, one voxel wider, so that it ends outside the image.

    Raises
    ------
    RegistrationError
        If it is not finite; `name` begins the message.
    """
    if not np.all(np.isfinite(field.values)):
        raise RegistrationError(f"{name} gave a deformation that is not finite; use another backend for this pair")
    return field.padded(1)


def run_commands(
    name: str, commands: Sequence[Sequence[str]], folder: Path, threads: int | None, timeout_s: float
) -> None:
    """Run what `Bridge.write` gave in a process of its own, in its folder.

    Raises
    ------
    RegistrationError
        If the engine fails, crashes or takes longer than `timeout_s`; one line, with the last thing it said.
    """
    (folder / _COMMANDS).write_text(json.dumps({"threads": threads, "commands": commands}))
    run_module(name, ["dsir_metric.bridges.worker", name, _COMMANDS], folder, threads, timeout_s)


def run_module(name: str, call: Sequence[str], folder: Path, threads: int | None, timeout_s: float) -> None:
    """Run a module with its arguments, python -m, in a process of its own, in `folder`; `name` begins the errors.

    Raises
    ------
    RegistrationError
        As `run_commands`.
    """
    environment = os.environ | ({} if threads is None else dict.fromkeys(_THREADS, str(threads)))
    with (folder / _LOG).open("wb") as log:
        try:
            code = subprocess.run(  # noqa: S603
                [sys.executable, "-P", "-m", *call],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=timeout_s,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise RegistrationError(
                f"{name} was not done after {timeout_s:g} s and was stopped; allow more (engine.timeout_s), fewer "
                "channels (engine.channels) or larger voxels (spacing_mm)"
            ) from error
    if code < 0:
        raise RegistrationError(
            f"{name} crashed ({_signal_name(-code)}){_last_words(folder)}; fewer channels (engine.channels), larger "
            "voxels (spacing_mm) or another backend may go through"
        )
    if code > 0:
        raise RegistrationError(f"{name} failed{_last_words(folder)}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(folder: Path) -> str:
    """The description of an ITK exception, or else the last line the engine printed, as an ending of a message."""
    lines = (folder / _LOG).read_text(errors="replace").split("\n")
    said = [" ".join(line.split()) for line in lines if line.strip()]
    described = [line for line in said if line.startswith("Description: ")]
    return f": {[*said, *described][-1].removeprefix('Description: ')[:200]}" if said else ""
