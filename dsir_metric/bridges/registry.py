"""Which engines there are, and whether they can be used here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import SimpleITK as sitk

from dsir_metric.bridges.channels import ChannelPair
from dsir_metric.errors import ConfigError
from dsir_metric.packages import Package

__all__ = ["ENGINES", "Bridge", "Command", "Engine", "engine"]

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
class Engine(Package):
    """A registration program with a Python package; its module here has its name.

    Parameters
    ----------
    name, package, least : str
        See `Package`.
    channels : int
        How many channels it is given unless told otherwise: accuracy against time.
    """

    channels: int

    @property
    def bridge(self) -> Bridge:
        """The module that knows this engine."""
        return cast(Bridge, importlib.import_module(f"dsir_metric.bridges.{self.name}"))


_ALL = (
    Engine("elastix", "itk-elastix", "0.23", 6),
    Engine("ants", "antspyx", "0.5", 6),
    Engine("greedy", "picsl-greedy", "1.4", 24),
)
ENGINES = {e.name: e for e in _ALL}


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
