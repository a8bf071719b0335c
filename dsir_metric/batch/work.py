"""What a worker does: one pair, from files to files, unless that was done before."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from dsir_metric import __version__, io
from dsir_metric.batch.job import Job
from dsir_metric.batch.outcome import Outcome
from dsir_metric.config import to_dict
from dsir_metric.errors import DataError, DsirError, ModelFileError, is_out_of_memory
from dsir_metric.files import read_text
from dsir_metric.geometry import Grid
from dsir_metric.register import RegisterConfig
from dsir_metric.register.forecast import memory_left, within_memory
from dsir_metric.register.lapirn import network_path
from dsir_metric.represent import Cache, PairRepresenter, Representer, load_card
from dsir_metric.represent.pair import working_grids
from dsir_metric.represent.transport import is_remote
from dsir_metric.represent.zoo import model_path

__all__ = ["Work"]

_MOST_REPORT_BYTES = 100_000_000  # of result.json; ours have some 100 kB
_DAMAGED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)  # somebody edited it: the pair is done again
_APART = ("threads", "memory_bytes")  # changes no result; changes some: see `Work.made_from` and `_made_again_alike`


@dataclass(frozen=True)
class Work:
    """How every pair of a study is registered.

    Parameters
    ----------
    config : RegisterConfig
    model_hash : str
        Of the weights of the model that `config` names.
    network_hash : str
        Of the file of the registration network, where `config` has one. A pair is done again when either has become
        another.
    cache : Cache, optional
        Of representations.
    """

    config: RegisterConfig
    model_hash: str
    network_hash: str = ""
    cache: Cache | None = None

    @classmethod
    def of(cls, config: RegisterConfig, cache: Cache | None = None) -> Work:
        """With the hashes of what `config` names on this machine, files by their absolute paths.

        Raises
        ------
        ConfigError, ModelFileError, RemoteError
            If a model cannot be opened.
        """
        if not is_remote(config.model):
            config = replace(config, model=_absolute(config.model, model_path(config.model)))
        if config.backend == "lapirn":
            network = _absolute(config.lapirn.model, network_path(config.lapirn.model))
            config = replace(config, lapirn=replace(config.lapirn, model=network))
        return cls(config, load_card(config.model).weights_hash, _network_hash(config), cache)

    def on(self, threads: int) -> Work:
        """The same, with so many threads for a pair."""
        return replace(self, config=replace(self.config, threads=threads))

    @cached_property
    def settings_hash(self) -> str:
        """SHA-256 of all that decides a result, but for the files of a pair."""
        settings = {name: value for name, value in to_dict(self.config).items() if name not in _APART}
        return hashlib.sha256(
            json.dumps([settings, self.model_hash, self.network_hash, __version__]).encode()
        ).hexdigest()

    def __call__(self, job: Job) -> Outcome:
        """Register a pair, or find that it was; whatever goes wrong is told in the outcome."""
        name = job.output.name
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", RuntimeWarning)
            try:
                outcome = self._outcome(job)
            except DsirError as error:
                outcome = Outcome(name, "failed", error=str(error))
            except Exception as error:  # a pair must not take the others with it
                outcome = Outcome(name, "failed", error=_reason(error))
        return replace(outcome, notes=tuple(str(w.message) for w in told if issubclass(w.category, RuntimeWarning)))

    def made_from(self, job: Job) -> dict[str, Any]:
        """Hashes of the files of a pair and of the settings, and the voxel size to work at."""
        inputs = {name: io.content_hash(path) for name, path in job.inputs.items()}
        made = {"inputs": inputs, "settings": self.settings_hash, "spacing_mm": self.spacing(job)[0], "fill": job.fill}
        return made | ({"reorient": job.reorient} if job.reorient else {})

    def spacing(self, job: Job) -> tuple[float, str]:
        """The voxel size to work at, and what is to be said about it; of the scans the headers are looked at.

        Raises
        ------
        ConfigError
            If the memory of a worker does not suffice, see `within_memory`.
        """
        return self.spacing_of(*job.grids())

    def spacing_of(self, fixed: Grid, moving: Grid) -> tuple[float, str]:
        """The same for the grids of two scans."""
        if self.config.memory_bytes is None:
            return working_grids(fixed, moving, self.config.spacing_mm, shared=True)[0].spacing_mm[0], ""
        return within_memory(self.config, fixed, moving, self._open(fixed, moving), shared=True)

    def kept(self, job: Job) -> Outcome | None:
        """The outcome of a run before, if all of it is there and was made from the same files and settings."""
        return self._kept(job, self.made_from(job))

    def _outcome(self, job: Job) -> Outcome:
        started = time.perf_counter()
        made_from = self.made_from(job)  # of the files as they are now: they may change meanwhile
        before = self._kept(job, made_from)
        if before is not None:
            return before
        io.prepare_folder(job.output)
        scans, config = job.read(), self.config
        if config.threads is not None:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(config.threads)
        result = scans.register(config, representations=self._represent(job))
        more = {"made_from": made_from, "pair_seconds": time.perf_counter() - started}
        with io.silenced():
            report = job.write(scans, result, more)
        return Outcome.of(job.output.name, "done", report)

    def _represent(self, job: Job) -> PairRepresenter:
        config, (spacing, remark) = self.config, self.spacing(job)
        return PairRepresenter(
            self._open(*job.grids()),
            spacing,
            config.fixed_intensity,
            config.moving_intensity,
            shared=True,
            cache=self.cache,
            remark=remark,
        )

    def _open(self, fixed: Grid, moving: Grid) -> Representer:
        """The model, within the part of the memory that is left for it."""
        config = self.config
        representer = _representer(
            config.model, self.model_hash, config.device, config.threads, config.gpu_memory_bytes
        )
        found = representer.model_hash, _network_hash(config)
        if found != (self.model_hash, self.network_hash):
            raise ModelFileError(
                f"the models here are not those that the study began with ({config.model}, {config.lapirn.model}); "
                "give every machine the same, and run the command again"
            )
        return representer.within(memory_left(config, fixed, moving, shared=True))

    def _kept(self, job: Job, made_from: dict[str, Any]) -> Outcome | None:
        report = _complete(job, made_from)
        try:
            if report is None or not _made_again_alike(report, self.config.memory_bytes):
                return None
            return Outcome.of(job.output.name, "kept", report)
        except _DAMAGED:
            return None


def _reason(error: Exception) -> str:
    """Why a pair failed, where nobody foresaw it."""
    if is_out_of_memory(error):
        return "there is not enough memory; take larger voxels (--spacing)"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}; please report it"


@lru_cache(maxsize=1)
def _representer(
    model: str, model_hash: str, device: str, threads: int | None, gpu_memory_bytes: int | None
) -> Representer:
    """The model, opened once a process and study: a worker may live longer than the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what it warns of is in the results
        return Representer(model, device, threads, gpu_memory_bytes=gpu_memory_bytes)


def _network_hash(config: RegisterConfig) -> str:
    return io.content_hash(network_path(config.lapirn.model)) if config.backend == "lapirn" else ""


def _absolute(name: str, path: Path) -> str:
    """A name that was that of a file, for workers that run elsewhere; a name of ours as it is."""
    return str(path.absolute()) if path == Path(name) else name


def _complete(job: Job, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """What result.json says, where it and all else was written and made from the same."""
    try:
        report: dict[str, Any] = json.loads(read_text(job.output / "result.json", _MOST_REPORT_BYTES))
        same = report["made_from"] == made_from and set(job.images) <= set(report["outputs"])
        return report if same and io.outputs_are_whole(job.output, report) else None
    except (OSError, DataError, *_DAMAGED):
        return None


def _made_again_alike(report: dict[str, Any], memory_bytes: int | None) -> bool:
    """Whether with another memory the same scans would have been represented again."""
    before = report["config"].get("memory_bytes")
    return all(
        (before is None or needed <= before) == (memory_bytes is None or needed <= memory_bytes)
        for needed in report["again_bytes"]
    )
