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

from dsir_metric.io import atomic, prepare_folder
from dsir_metric_train.loader import Loader

__all__ = ["Journal", "WholeFiles"]


class Journal(lightning.Callback):
    """Writes `metrics.csv`; a resumed run keeps the lines up to where it goes on.

    A line has the steps done, what the training logs (means over the chunk) and pairs a second; where a `Loader` draws
    them, the seconds the steps waited for it and how many files could not be used so far.

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
        prepare_folder(self.path.parent)
        if self._step and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= self._step]

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Add the line of a chunk."""
        now = time.perf_counter()
        rate = round((trainer.global_step - self._step) / (now - self._begin), 3)
        row: dict[str, Any] = {"step": trainer.global_step}
        row |= {name: float(trainer.callback_metrics[name]) for name in self.figures}
        row |= {"pairs_per_second": rate, **self._of_loader(trainer.train_dataloader)}
        self.rows.append(row)
        self._step, self._begin = trainer.global_step, now
        with atomic(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(row), extrasaction="ignore", restval="")
            table.writeheader()
            table.writerows(self.rows)

    def _of_loader(self, loader: object) -> dict[str, Any]:
        if not isinstance(loader, Loader):
            return {}
        waited, self._waited = loader.waited_s - self._waited, loader.waited_s
        return {"waited_s": round(waited, 3), "unusable": len(loader.unusable)}


class WholeFiles(TorchCheckpointIO):
    """Checkpoints written whole or not at all, on the disk they end on."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside `path` and rename; DataError if that fails."""
        with atomic(path) as temporary:
            torch.save(checkpoint, temporary)
