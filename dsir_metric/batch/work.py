"""What a worker does: one pair, from files to files, unless that was done before."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import SimpleITK as sitk

from dsir_metric import __version__, io
from dsir_metric.batch.job import Job
from dsir_metric.batch.outcome import Outcome
from dsir_metric.config import to_dict
from dsir_metric.errors import DsirError
from dsir_metric.register import RegisterConfig
from dsir_metric.represent import Cache, PairRepresenter, Representer

__all__ = ["Work"]

_SPEED = ("threads",)  # settings that change no result
_IMAGES = {f"{name}{ending}" for name in ("moved", "moved_labels") for ending in io.IMAGE_ENDINGS}


@dataclass(frozen=True)
class Work:
    """How every pair of a study is registered.

    Parameters
    ----------
    config : RegisterConfig
    model_hash : str
        Of the model that `config` names; a pair is done again when it has become another.
    cache : Cache, optional
        Of representations.
    """

    config: RegisterConfig
    model_hash: str
    cache: Cache | None = None

    @cached_property
    def settings_hash(self) -> str:
        """SHA-256 of all that decides a result, but for the files of a pair."""
        settings = {name: value for name, value in to_dict(self.config).items() if name not in _SPEED}
        return hashlib.sha256(json.dumps([settings, self.model_hash, __version__]).encode()).hexdigest()

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
            except MemoryError:
                outcome = Outcome(name, "failed", error="there is not enough memory; take larger voxels (--spacing)")
            except Exception as error:  # a pair must not take the others with it
                reason = (str(error).splitlines() or [""])[0]
                outcome = Outcome(name, "failed", error=f"{type(error).__name__}: {reason}; please report it")
        return replace(outcome, notes=tuple(str(w.message) for w in told if issubclass(w.category, RuntimeWarning)))

    def made_from(self, job: Job) -> dict[str, Any]:
        """Hashes of the files of a pair and of the settings."""
        return {"inputs": {name: io.content_hash(p) for name, p in job.inputs.items()}, "settings": self.settings_hash}

    def kept(self, job: Job) -> Outcome | None:
        """The outcome of a run before, if all of it is there and was made from the same files and settings."""
        report = _complete(job, self.made_from(job))
        return None if report is None else Outcome.of(job.output.name, "kept", report)

    def _outcome(self, job: Job) -> Outcome:
        started = time.perf_counter()
        before = self.kept(job)
        if before is not None:
            return before
        io.prepare_folder(job.output)
        scans, config = job.read(), self.config
        if config.threads is not None:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(config.threads)
        result = scans.register(config, representations=self._represent())
        for name in ("result.json", "inverse.h5", *(_IMAGES - set(job.images))):  # of other inputs or settings
            io.remove(job.output / name)
        more = {"made_from": self.made_from(job), "pair_seconds": time.perf_counter() - started}
        return Outcome.of(job.output.name, "done", job.write(scans, result, more))

    def _represent(self) -> PairRepresenter:
        config = self.config
        return PairRepresenter(
            _representer(config.model, config.device, config.threads),
            config.spacing_mm,
            config.fixed_intensity,
            config.moving_intensity,
            shared=True,
            cache=self.cache,
        )


@lru_cache(maxsize=1)
def _representer(model: str, device: str, threads: int | None) -> Representer:
    """The model, opened once a process."""
    return Representer(model, device, threads)


def _complete(job: Job, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """What result.json says, where it and all else was written and made from the same."""
    try:
        report: dict[str, Any] = json.loads((job.output / "result.json").read_text(encoding="utf-8"))
        same = report["made_from"] == made_from
        whole = all((job.output / name).stat().st_size > 0 for name in ("transform.h5", *job.images))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if same and whole else None
