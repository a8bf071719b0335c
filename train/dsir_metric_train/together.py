"""Processes that train together: what one of them meets, all are told at the same step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_only

from dsir_metric.errors import ConfigError, DsirError

__all__ = ["Machines", "is_first", "together", "told"]

T = TypeVar("T")


@dataclass(frozen=True)
class Machines:
    """Where a run trains. It decides how fast, and nothing else.

    Parameters
    ----------
    devices : int
        GPUs of each machine, or processes where it has none.
    num_nodes : int
        Machines.
    """

    devices: int = 1
    num_nodes: int = 1

    def __post_init__(self) -> None:
        if min(self.devices, self.num_nodes) < 1:
            raise ConfigError(f"a run needs 1 or more devices and nodes; {self.devices} and {self.num_nodes} came")

    @property
    def processes(self) -> int:
        """One for each device of each machine."""
        return self.devices * self.num_nodes

    def share_of(self, batch: int) -> int:
        """Pairs of a batch that each process takes; ConfigError if it cannot be shared evenly."""
        if batch % self.processes:
            raise ConfigError(
                f"{self.processes} processes cannot share a batch of {batch} evenly; write a multiple of "
                f"{self.processes} as batch under [optimisation] in the recipe, or take fewer devices"
            )
        return batch // self.processes

    def check_launched(self) -> None:
        """ConfigError unless torchrun or srun, if one of them started this process, started as many as are here."""
        kinds: tuple[type[ClusterEnvironment], ...] = (SLURMEnvironment, TorchElasticEnvironment)
        try:
            for kind in kinds:
                if kind.detect():
                    kind().validate_settings(num_devices=self.devices, num_nodes=self.num_nodes)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{self.devices} devices on {self.num_nodes} nodes are not what was started: {error}"
            ) from error


def is_first() -> bool:
    """Whether this process is the one that speaks and writes for all of a run; true where it is alone."""
    return not getattr(rank_zero_only, "rank", 0)


def told(strategy: Strategy, news: T | None) -> list[T]:
    """What the processes have to tell each other, in all of them, by rank; quick where none has anything.

    Parameters
    ----------
    strategy : Strategy
        Lightning's. Every process has to make this call at the same point.
    news : object, optional
        What this process has to tell; it is pickled.
    """
    if strategy.reduce_boolean_decision(news is None):
        return []
    size = getattr(strategy, "world_size", 1)
    return [each for rank in range(size) if (each := strategy.broadcast(news, rank)) is not None]


@contextmanager
def together(strategy: Strategy) -> Iterator[None]:
    """Raise an error that any process meets within, in the first process; the others end without a word.

    No process may wait for another one within. Each has to enter at the same point.

    Raises
    ------
    DsirError
        That of the lowest rank.
    """
    met = None
    try:
        yield
    except DsirError as error:
        met = error
    for first in told(strategy, met):
        if strategy.is_global_zero:
            raise first
        raise SystemExit  # and no error code: launchers kill the rest at the first one, before the reason is told
