"""What a run did, one line a chunk."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from dsir_metric.io import atomic, prepare_folder
from dsir_metric_train.loader import Loader

__all__ = ["Journal", "WholeFiles"]

FIELDS = ("step", "loss", "retrieval", "pairs_per_second", "waited_s", "unusable")


class Journal(lightning.Callback):
    """Writes `metrics.csv`; a resumed run keeps the lines up to where it goes on.

    A line has the steps done, the mean loss (nats) and retrieval (share of points whose true match is the nearest) of
    its chunk, pairs of views a second, seconds the steps waited for them, and how many files could not be used so far.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
        loader, now = cast(Loader, trainer.train_dataloader), time.perf_counter()
        self.rows.append(
            {
                "step": trainer.global_step,
                "loss": float(trainer.callback_metrics["loss"]),
                "retrieval": float(trainer.callback_metrics["retrieval"]),
                "pairs_per_second": round((trainer.global_step - self._step) / (now - self._begin), 3),
                "waited_s": round(loader.waited_s - self._waited, 3),
                "unusable": len(loader.unusable),
            }
        )
        self._step, self._begin, self._waited = trainer.global_step, now, loader.waited_s
        with atomic(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, FIELDS, extrasaction="ignore", restval="")
            table.writeheader()
            table.writerows(self.rows)


class WholeFiles(TorchCheckpointIO):
    """Checkpoints written whole or not at all, on the disk they end on."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside `path` and rename; DataError if that fails."""
        with atomic(path) as temporary:
            torch.save(checkpoint, temporary)
