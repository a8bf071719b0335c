"""What a run did, one line a chunk."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from dsir_metric.errors import DataError
from dsir_metric.io import atomic, prepare_folder
from dsir_metric_train.loader import Loader
from dsir_metric_train.together import together

__all__ = ["Journal", "Saver", "WholeFiles"]


class Journal(lightning.Callback):
    """Writes `metrics.csv`; a resumed run keeps the lines up to where it goes on.

    A line has the steps done, what the training logs (means over the chunk and all processes) and pairs a second; where
    a `Loader` draws them, the seconds the steps of the first process waited for it and how many files could not be used
    so far.

    Parameters
    ----------
    path : Path
    figures : sequence of str
        What the training logs.
    """

    def __init__(self, path: Path, figures: Sequence[str]) -> None:
        self.path, self.figures = path, figures
        self.rows: list[dict[str, Any]] = []
        self._step, self._begin, self._waited = 0, 0.0, 0.0

    def on_train_start(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        """Take over the lines of the run that is resumed."""
        self._step, self._begin = trainer.global_step, time.perf_counter()
        with together(trainer.strategy):
            if trainer.is_global_zero:
                prepare_folder(self.path.parent)
                self.rows = self._lines_up_to(self._step)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Add the line of a chunk."""
        now = time.perf_counter()
        pairs = (trainer.global_step - self._step) * trainer.accumulate_grad_batches * trainer.world_size
        means = trainer.callback_metrics  # all processes have to ask: the means are over all of them
        row: dict[str, Any] = {"step": trainer.global_step}
        row |= {name: float(means[name]) for name in self.figures}
        row |= {"pairs_per_second": round(pairs / (now - self._begin), 3), **self._of_loader(trainer.train_dataloader)}
        self.rows.append(row)
        self._step, self._begin = trainer.global_step, now
        with together(trainer.strategy):
            if trainer.is_global_zero:
                self._write()

    def _lines_up_to(self, step: int) -> list[dict[str, Any]]:
        if not step or not self.path.exists():
            return []
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                return [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise DataError(f"{self.path}: is no log of a training; move it away, and resume again") from error

    def _write(self) -> None:
        with atomic(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(self.rows[-1]), extrasaction="ignore", restval="")
            table.writeheader()
            table.writerows(self.rows)

    def _of_loader(self, loader: object) -> dict[str, Any]:
        if not isinstance(loader, Loader):
            return {}
        waited, self._waited = loader.waited_s - self._waited, loader.waited_s
        return {"waited_s": round(waited, 3), "unusable": len(loader.unusable)}


class WholeFiles(TorchCheckpointIO):
    """Checkpoints written whole or not at all, on the disk they end on.

    Attributes
    ----------
    failure : DataError or None
        Why the last one could not be written. Not raised at once, for other processes wait until it is.
    """

    failure: DataError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside `path` and rename."""
        try:
            with atomic(path) as temporary:
                torch.save(checkpoint, temporary)
        except DataError as error:
            self.failure = error


class Saver(lightning.Callback):
    """A checkpoint at the end of each chunk, over the one before.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        While training, if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, WholeFiles()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write it, in the first process."""
        trainer.save_checkpoint(self.path)
        with together(trainer.strategy):
            if self.files.failure is not None:
                raise self.files.failure
