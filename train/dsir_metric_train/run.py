"""What every training run does: a checkpoint a chunk, written whole; resumed, as if never interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dsir_metric.errors import DataError
from dsir_metric_train.journal import Journal, WholeFiles

__all__ = ["CHECKPOINT", "Chunked", "diverged", "run"]

CHECKPOINT = "last.ckpt"


class Chunked(lightning.LightningModule):
    """A training whose epochs are chunks of steps; it has a `network`, whose weights must be finite to be saved."""

    network: torch.nn.Module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse broken weights."""
        if not all(torch.isfinite(value).all() for value in self.network.state_dict().values()):
            raise diverged("weights are no numbers", self.global_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Begin a whole chunk."""
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        batches.update(dict.fromkeys(batches, 0))  # else Lightning counts those of the chunk before to the next one


def diverged(what: str, step: int) -> DataError:
    """The error of a run that cannot go on."""
    return DataError(f"{what} at step {step}; the last good checkpoint stays; lower the learning rate")


def run(
    module: Chunked,
    data: lightning.LightningDataModule,
    out: Path,
    *,
    steps: int,
    journal: Journal,
    resume: bool,
    progress: bool,
) -> Path:
    """Train `module` for `steps` steps in all and leave `last.ckpt` in `out`; its path."""
    previous = out / CHECKPOINT
    for stale in out.glob(f".*-{CHECKPOINT}"):  # a run killed while it wrote
        stale.unlink()
    saver = ModelCheckpoint(
        out,
        filename="last",
        save_top_k=1,
        enable_version_counter=False,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
    )
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="auto",
        devices=1,
        logger=False,
        callbacks=[journal, saver],
        plugins=[WholeFiles()],
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data, ckpt_path=previous if resume and previous.exists() else None)
    return previous
