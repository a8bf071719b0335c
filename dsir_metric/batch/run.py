"""Many pairs on the workers of a dask cluster, this machine's or another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsir_metric import io
from dsir_metric.batch.cluster import open_cluster
from dsir_metric.batch.job import settings_files
from dsir_metric.batch.outcome import Outcome, write_table
from dsir_metric.batch.pairs import TABLE, Pair
from dsir_metric.batch.work import Work
from dsir_metric.errors import ConfigError, DsirError
from dsir_metric.geometry import Grid
from dsir_metric.packages import Package
from dsir_metric.register import BACKENDS, RegisterConfig
from dsir_metric.represent import Cache

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["DISTRIBUTED", "LOCK", "run_batch"]

DISTRIBUTED = Package("batch", "distributed", "2024.8")
LOCK = ".lock"
_TABLE_S, _TABLE_PAUSE = 0.1, 20.0  # a table that takes longer to write is written a twentieth of the time
_RERUN = "run the same command again: what is done stays done"


def run_batch(
    pairs: Sequence[Pair],
    output: str | Path,
    config: RegisterConfig,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    cache: Cache | None = None,
    sources: Iterable[tuple[str, Path]] = (),
    on_check: Callable[[int], None] = lambda _: None,
    on_start: Callable[[str], None] = lambda _: None,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> tuple[Outcome, ...]:
    """Register pairs, several at once; those done before from the same files and settings are kept.

    Parameters
    ----------
    pairs : sequence of Pair
        See `read_pairs`.
    output : str or Path
        Gets table.csv, which is rewritten whenever a pair ends (less often where that takes long); on a cluster a
        folder that all workers see.
    config : RegisterConfig
        `threads` are those of one pair; by default the cores of this machine are divided among its workers, and on a
        cluster each pair has one. `memory_bytes` are those of each worker.
    workers : int, optional
        Pairs at once on this machine; by default as many as fit, see `dsir_metric.batch.cluster.pairs_at_once`.
    scheduler : str, optional
        Address of a dask scheduler whose workers do it instead.
    cache : Cache, optional
        Of representations.
    sources : iterable of (str, Path)
        Other files that were read, such as the table of pairs, and what each is: they are not written over.
    on_check : callable
        Receives the number of pairs whose memory has been checked.
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
        If the settings, the models or the numbers of workers cannot be used, the memory of a worker does not suffice
        for a pair, another run is at work in `output`, or a file that is read would be written over.
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
    folder = Path(output).absolute()
    _check_apart(pairs, folder, config, sources)
    opening = open_cluster(pairs, config, folder, workers, scheduler)
    BACKENDS[config.backend].check(config)
    work = Work.of(config, cache)
    if config.memory_bytes is not None:
        _check_memory(work, pairs, on_check)
    io.prepare_folder(folder)
    with _alone(folder, pairs):
        found = {pair.id: Outcome(pair.id) for pair in pairs}
        write_table(found.values(), folder / TABLE)
        due = 0.0
        with opening as cluster:
            on_start(cluster.told)
            for outcome in _outcomes(cluster.client, pairs, work.on(cluster.threads)):
                found[outcome.id] = outcome
                if time.monotonic() >= due:
                    due = _write_table(found, folder)
                on_outcome(outcome)
        write_table(found.values(), folder / TABLE)
    return tuple(found.values())


def _check_apart(
    pairs: Sequence[Pair], folder: Path, config: RegisterConfig, sources: Iterable[tuple[str, Path]]
) -> None:
    """See that no file that is read would be written over, that of one pair by another one's result included."""
    scans = ((f"{name} of {pair.row}", path) for pair in pairs for name, path in pair.job.named_inputs())
    there = (pair.job.output for pair in pairs if pair.job.output.is_dir())  # elsewhere nothing can be written over
    results = chain.from_iterable(map(io.registration_files, there))
    io.check_apart(chain(sources, settings_files(config), scans), chain([folder / TABLE, folder / LOCK], results))


def _check_memory(work: Work, pairs: Sequence[Pair], on_check: Callable[[int], None] = lambda _: None) -> None:
    """See that each pair fits into the memory of a worker; the model, opened to plan alone, takes no GPU."""
    plans = replace(work, config=replace(work.config, device="cpu"))
    fit: set[tuple[Grid, ...]] = set()  # it depends on the grids alone, which most scans of a study share
    for number, pair in enumerate(pairs, 1):
        try:
            if pair.grids not in fit:
                plans.spacing_of(*pair.grids)
        except ConfigError as error:
            raise ConfigError(f"{pair.row}: {error}") from error
        fit.add(pair.grids)
        on_check(number)


def _write_table(found: Mapping[str, Outcome], folder: Path) -> float:
    """Write the table; at what time again, so that a long one does not keep us from the pairs."""
    begin = time.monotonic()
    write_table(found.values(), folder / TABLE)
    end = time.monotonic()
    return end + _TABLE_PAUSE * (end - begin) if end - begin > _TABLE_S else end


@contextmanager
def _alone(folder: Path, pairs: Sequence[Pair]) -> Iterator[None]:
    """Let nobody else write into `folder`; what was left half-written by those who were killed is deleted."""
    folders = [folder, *(pair.job.output for pair in pairs)]
    with io.locked(folder / LOCK, wait=False) as had:
        if not had:
            raise ConfigError(
                f"{folder}: another register-batch is at work there; wait for it, or choose another folder"
            )
        for each in folders:
            io.sweep(each)
        yield
        for each in folders:
            io.sweep(each)


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
        return _left_behind(pair, work) or Outcome(pair.id, "failed", error=f"{told}; {_RERUN}")
    return outcome


def _left_behind(pair: Pair, work: Work) -> Outcome | None:
    """What a worker finished before it was lost."""
    try:
        return work.kept(pair.job)
    except DsirError:  # an input is gone
        return None
