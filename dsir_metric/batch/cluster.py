"""The processes that work on a study: some of this machine, or those of a dask cluster that is there already."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsir_metric.batch.pairs import Pair
from dsir_metric.errors import ConfigError, MissingDependencyError, RegistrationError
from dsir_metric.register import RegisterConfig

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Cluster", "memory_of", "open_cluster", "pairs_at_once"]

# What a pair needs at most, measured with the backend sitk; see docs/batch.md.
_BASE_BYTES = 500_000_000
_BYTES_PER_WORKING_VOXEL = 300
_BYTES_PER_VOXEL = 100
_OTHER_BACKENDS = 2  # not measured
_USABLE = 0.8  # of the memory
_TERMINATE = 0.95  # of its memory: where dask ends a worker
_CONNECT_S = 10.0
_FIRST_WORKER_S = 300.0  # a queue may be long, but a user who mistyped the address should hear of it


@dataclass(frozen=True)
class Cluster:
    """Processes that do a pair each.

    Parameters
    ----------
    client : distributed.Client
    threads : int
        Of each pair.
    told : str
        What they are, in a line.
    """

    client: Client
    threads: int
    told: str


def open_cluster(
    pairs: Sequence[Pair],
    config: RegisterConfig,
    folder: Path,
    workers: int | None = None,
    scheduler: str | None = None,
) -> AbstractContextManager[Cluster]:
    """Workers of this machine, or with `scheduler` those it has, which must see `folder`; see `run_batch`."""
    if workers is not None and (workers < 1 or scheduler is not None):
        raise ConfigError(f"workers is {workers}; 1 or more, and none with a scheduler, which has its own")
    if scheduler is not None:
        return _remote(scheduler, folder, config)
    return _local(pairs_at_once(pairs, config, workers), config)


def memory_of(pair: Pair, config: RegisterConfig) -> int:
    """Bytes of memory that a pair needs, rather too many; where `config` limits them, what it allows."""
    if config.memory_bytes is not None:
        return config.memory_bytes
    ours = _BASE_BYTES + _BYTES_PER_WORKING_VOXEL * pair.working_voxels + _BYTES_PER_VOXEL * pair.voxels
    return ours if config.backend == "sitk" else _OTHER_BACKENDS * ours


def pairs_at_once(pairs: Sequence[Pair], config: RegisterConfig, workers: int | None = None) -> int:
    """How many pairs this machine can do at once: by cores and threads of a pair, memory, and the number of pairs.

    Raises
    ------
    ConfigError
        If the memory that `config` allows to each is more than there is.
    """
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    fit = int(_USABLE * MEMORY_LIMIT / max(memory_of(pair, config) for pair in pairs))
    count = max(1, min(workers or min(CPU_COUNT // (config.threads or 1), fit), len(pairs)))
    allowed, most = count * (config.memory_bytes or 0), int(_TERMINATE * MEMORY_LIMIT)
    if allowed > most:
        who, less = f"{count} workers together", "take fewer (--workers), or allow less to each (--memory)"
        if count == 1:
            who, less = "a worker", "allow less (--memory)"
        raise ConfigError(
            f"{who} may have {allowed / 1e6:.0f} MB of memory, {most / 1e6:.0f} MB of this machine are at hand: {less}"
        )
    return count


@contextmanager
def _local(count: int, config: RegisterConfig) -> Iterator[Cluster]:
    """A cluster of `count` processes on this machine, each with its share of cores and memory."""
    import dask
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    threads = config.threads or max(1, CPU_COUNT // count)
    limits = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    settings: dict[str, Any] = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")}
    settings["distributed.worker.profile.enabled"] = False
    settings["distributed.nanny.environ"] = {"NUMBA_NUM_THREADS": str(threads)}  # the others this process gets as well
    told = f"{count} workers of {threads} threads" if count > 1 else f"1 worker of {threads} threads"
    with dask.config.set(settings | {"distributed.nanny.pre-spawn-environ": limits}), ExitStack() as stack:
        try:
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                memory_limit=MEMORY_LIMIT // count,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        except (OSError, RuntimeError) as error:
            raise RegistrationError(
                f"the workers of this machine did not start ({error}); run the same command again, with "
                "fewer --workers if memory is short"
            ) from error
        yield Cluster(client, threads, told)


@contextmanager
def _remote(address: str, folder: Path, config: RegisterConfig) -> Iterator[Cluster]:
    """A cluster that is there already, its workers looked at."""
    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    try:
        client = Client(address, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:
        raise RegistrationError(
            f"no dask scheduler answers at {address!r}; start one with `dask scheduler`, or leave --scheduler out"
        ) from error
    with silence_logging_cmgr(logging.CRITICAL), client:
        try:
            client.wait_for_workers(1, timeout=_FIRST_WORKER_S)
        except TimeoutError as error:
            raise RegistrationError(
                f"the scheduler {address} has had no worker for {_FIRST_WORKER_S:.0f} s; start some with `dask worker`"
            ) from error
        _check_workers(client, folder, config.memory_bytes)
        threads = config.threads or 1
        yield Cluster(client, threads, f"{len(client.nthreads())} workers of {address}, {threads} threads a pair")


def _check_workers(client: Client, folder: Path, memory_bytes: int | None) -> None:
    """See that each worker has this package and the memory, does one pair at a time and sees the output folder."""
    here = version("dsir-metric")
    for worker, found in client.run(version, "dsir-metric", on_error="return").items():
        if found != here:
            state = f"has dsir-metric {found}" if isinstance(found, str) else "has no dsir-metric"
            raise MissingDependencyError(f"worker {worker} {state}, {here} is needed: install it where the workers run")
    for worker, threads in client.nthreads().items():
        if threads != 1:
            raise ConfigError(
                f"worker {worker} does {threads} tasks at once; start it with --nthreads 1, and give the threads of a "
                "pair to register-batch with --threads"
            )
    for worker, seen in client.run(os.path.isdir, str(folder)).items():
        if not seen:
            raise ConfigError(f"worker {worker} does not see {folder}; put the output on a file system of all machines")
    if memory_bytes is None:
        return
    for worker, found in client.scheduler_info(n_workers=-1)["workers"].items():
        has = int(_TERMINATE * found["memory_limit"])
        if 0 < has < memory_bytes:  # 0 where dask does not look
            raise ConfigError(
                f"worker {worker} is ended by dask at {has / 1e6:.0f} MB, {memory_bytes / 1e6:.0f} MB are allowed: "
                "start it with a larger --memory-limit, or allow less (--memory)"
            )
