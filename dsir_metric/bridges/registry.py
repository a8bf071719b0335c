"""Which engines there are, and whether they can be used here."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, cast

import SimpleITK as sitk

from dsir_metric.bridges.channels import ChannelPair
from dsir_metric.errors import ConfigError, MissingDependencyError

__all__ = ["ENGINES", "Bridge", "Command", "Engine", "check_engine", "engine"]

Command = Sequence[str]


class Bridge(Protocol):
    """What the module of an engine offers."""

    @staticmethod
    def write(pair: ChannelPair, folder: Path, *, linear: bool) -> list[Command]:
        """Write images and settings; give the commands, with file names relative to `folder`, that register them.

        With `linear` the engine aligns the pair linearly first, otherwise it only deforms.
        """
        ...

    @staticmethod
    def apply(moving: str, fixed: str) -> Command:
        """The command that brings the moving scan onto the fixed one, after the commands of `write` with `linear`."""
        ...

    @staticmethod
    def run(command: Command, threads: int | None) -> None:
        """Do what a command says, in the current folder, by the engine's Python package."""
        ...

    @staticmethod
    def read(folder: Path) -> sitk.Transform:
        """The deformation found without `linear`: fixed to moving, LPS mm."""
        ...


@dataclass(frozen=True)
class Engine:
    """A registration program with a Python package.

    Parameters
    ----------
    name : str
        Of the engine, of its module here and of the extra that installs it.
    package : str
        Its wheel on PyPI.
    least : str
        The oldest version that works.
    channels : int
        How many channels it is given unless told otherwise: accuracy against time.
    """

    name: str
    package: str
    least: str
    channels: int

    @property
    def bridge(self) -> Bridge:
        """The module that knows this engine."""
        return cast(Bridge, importlib.import_module(f"dsir_metric.bridges.{self.name}"))

    @property
    def version(self) -> str | None:
        """Version installed here, or None."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be used here and what to do, or None."""
        found = self.version
        remedy = f"pip install 'dsir-metric[{self.name}]'"
        if found is None:
            return f"{self.package} is not installed: {remedy}"
        if _numbers(found) < _numbers(self.least):
            return f"{self.package} {found} is installed, {self.least} or newer is needed: {remedy}"
        return None


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


ENGINES = {e.name: e for e in (Engine("greedy", "picsl-greedy", "1.4", 24),)}


def engine(name: str) -> Engine:
    """The engine of that name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine {name!r} is unknown; there are {', '.join(ENGINES)}")
    return ENGINES[name]


def check_engine(name: str) -> None:
    """See that an engine can be used here.

    Raises
    ------
    ConfigError
        If there is no engine of that name.
    MissingDependencyError
        If its package is absent or too old; the message names the extra.
    """
    obstacle = engine(name).obstacle
    if obstacle is not None:
        raise MissingDependencyError(f"{name}: {obstacle}")
