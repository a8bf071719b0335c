"""The progress bar of a run, in steps of the whole."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar

__all__ = ["StepBar"]


class StepBar(TQDMProgressBar):
    """Lightning's progress bar, over all steps; an epoch is what lies between two checkpoints."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Begin where the run is."""
        if self.is_disabled:  # in all processes but the first
            return
        bar = self.train_progress_bar
        bar.total, bar.initial = trainer.max_steps, bar.initial or trainer.global_step  # a resumed run is no faster
        bar.set_description(f"Epoch {self._epoch(trainer)}, step")
        self._show(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        """Go on by a step."""
        if self.is_disabled:
            return
        self.train_progress_bar.set_postfix(self.get_metrics(trainer, module), refresh=False)
        self._show(trainer)

    def on_exception(self, *_: Any) -> None:
        """End the line, so that an error has one of its own."""
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()

    def get_metrics(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> dict[str, Any]:
        """What the training logs; without the version of a logger, for there is none."""
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        return metrics

    def _show(self, trainer: lightning.Trainer) -> None:
        self.train_progress_bar.n = trainer.global_step
        self.train_progress_bar.refresh()

    @staticmethod
    def _epoch(trainer: lightning.Trainer) -> str:
        """Which one of how many, as "2/8"."""
        size = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        return f"{trainer.global_step // size + 1}/{-(-trainer.max_steps // size)}"
