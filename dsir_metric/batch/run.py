"""Many pairs on the workers of a dask cluster, this machine's or another."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsir_metric import io
from dsir_metric.batch.outcome import Outcome, write_table
from dsir_metric.batch.pairs import Pair
from dsir_metric.batch.work import Work
from dsir_metric.errors import ConfigError, MissingDependencyError, RegistrationError
from dsir_metric.packages import Package
from dsir_metric.register import BACKENDS, RegisterConfig
from dsir_metric.represent import Cache, load_card

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["DISTRIBUTED", "TABLE", "memory_of", "pairs_at_once", "run_batch"]

DISTRIBUTED = Package("batch", "distributed", "2024.8")
TABLE = "table.csv"
# What a pair needs at most, measured with the backend sitk; see docs/batch.md.
_BASE_BYTES = 500_000_000
_BYTES_PER_WORKING_VOXEL = 300
_BYTES_PER_VOXEL = 100
_OTHER_BACKENDS = 2  # not measured
_USABLE = 0.8  # of the memory
_CONNECT_S = 10.0
_FIRST_WORKER_S = 300.0  # a queue may be long, but a user who mistyped the address should hear of it
_RERUN = "run the same command again: what is done stays done"


def run_batch(
    pairs: Sequence[Pair],
    output: str | Path,
    config: RegisterConfig,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    cache: Cache | None = None,
    on_start: Callable[[str], None] = lambda _: None,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> tuple[Outcome, ...]:
    """Register pairs, several at once; those done before from the same files and settings are kept.

    Parameters
    ----------
    pairs : sequence of Pair
        See `read_pairs`.
    output : str or Path
        Gets table.csv, which is rewritten whenever a pair ends; on a cluster a folder that all workers see.
    config : RegisterConfig
        `threads` are those of one pair; by default the cores of this machine are divided among its workers, and on a
        cluster each pair has one.
    workers : int, optional
        Pairs at once on this machine; by default as many as fit, see `pairs_at_once`.
    scheduler : str, optional
        Address of a dask scheduler whose workers do it instead.
    cache : Cache, optional
        Of representations.
    on_start : callable
        Is told, in a line, what will work.
    on_outcome : callable
        Is told what became of a pair, as soon as it is known.

    Returns
    -------
    tuple of Outcome
        In the order of `pairs`.

    Raises
    ------
    MissingDependencyError
        If `distributed` is absent here, or this package on a worker.
    ConfigError, ModelFileError
        If the settings, the model or the numbers of workers cannot be used.
    DataError
        If `output` cannot be written to.
    RegistrationError
        If no scheduler or worker answers.

    Notes
    -----
    A pair whose worker dies is given to another one, three times. Where the scheduler is lost the pairs that were not
    done have failed; a second run does them.
    """
    DISTRIBUTED.check()
    if workers is not None and (workers < 1 or scheduler is not None):
        raise ConfigError(f"workers is {workers}; 1 or more, and none with a scheduler, which has its own")
    if config.memory_bytes is not None:
        raise ConfigError(
            "memory is for a single registration; choose how many pairs there are at once, and spacing_mm"
        )
    BACKENDS[config.backend].check(config)
    folder = io.prepare_folder(output).absolute()
    work = Work(config, load_card(config.model).weights_hash, cache)
    for pair in pairs:
        io.sweep(pair.job.output)
    found = {pair.id: Outcome(pair.id) for pair in pairs}
    write_table(found.values(), folder / TABLE)
    count = pairs_at_once(pairs, config, workers)
    with _local(count, config) if scheduler is None else _remote(scheduler, folder, config) as (client, threads, told):
        on_start(told)
        work = replace(work, config=replace(config, threads=threads))
        for outcome in _outcomes(client, pairs, work):
            found[outcome.id] = outcome
            write_table(found.values(), folder / TABLE)
            on_outcome(outcome)
    for pair in pairs:
        io.sweep(pair.job.output)
    return tuple(found.values())


def memory_of(pair: Pair, config: RegisterConfig) -> int:
    """Bytes of memory that a pair needs, rather too many."""
    ours = _BASE_BYTES + _BYTES_PER_WORKING_VOXEL * pair.working_voxels + _BYTES_PER_VOXEL * pair.voxels
    return ours if config.backend == "sitk" else _OTHER_BACKENDS * ours


def pairs_at_once(pairs: Sequence[Pair], config: RegisterConfig, workers: int | None = None) -> int:
    """How many pairs this machine can do at once: by cores and threads of a pair, memory, and the number of pairs."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    fit = int(_USABLE * MEMORY_LIMIT / max(memory_of(pair, config) for pair in pairs))
    return max(1, min(workers or min(CPU_COUNT // (config.threads or 1), fit), len(pairs)))


def _outcomes(client: Client, pairs: Sequence[Pair], work: Work) -> Iterator[Outcome]:
    from distributed import as_completed

    futures = {client.submit(work, pair.job, pure=False, priority=-k): pair for k, pair in enumerate(pairs)}
    for future in as_completed(list(futures)):
        yield _outcome(future, futures.pop(future), work)


def _outcome(future: Future[Any], pair: Pair, work: Work) -> Outcome:
    """What a worker answered; where none could, what it left on disk or what is known of its end."""
    from distributed import KilledWorker

    try:
        outcome: Outcome = future.result()
    except KilledWorker:
        reason = "its worker died every time, perhaps for lack of memory: take larger voxels or fewer workers"
        return Outcome(pair.id, "failed", error=reason)
    except Exception as error:  # whatever dask or the network has to say
        lost = future.cancelled() or future.status == "lost"
        reason = (str(error).splitlines() or [""])[0]
        told = "the scheduler was lost" if lost else f"its worker failed ({type(error).__name__}: {reason})"
        return work.kept(pair.job) or Outcome(pair.id, "failed", error=f"{told}; {_RERUN}")
    return outcome


@contextmanager
def _local(count: int, config: RegisterConfig) -> Iterator[tuple[Client, int, str]]:
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
    with (
        dask.config.set(settings | {"distributed.nanny.pre-spawn-environ": limits}),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=MEMORY_LIMIT // count,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client, threads, told


@contextmanager
def _remote(address: str, folder: Path, config: RegisterConfig) -> Iterator[tuple[Client, int, str]]:
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
        _check_workers(client, folder)
        threads = config.threads or 1
        yield client, threads, f"{len(client.nthreads())} workers of {address}, {threads} threads a pair"


def _check_workers(client: Client, folder: Path) -> None:
    """See that each worker has this package, does one pair at a time and sees the output folder."""
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
