"""How far a run has come, in steps of the whole: a bar on a terminal, a line a chunk in a log file."""

from __future__ import annotations

import sys
from typing import Any

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar

__all__ = ["StepBar", "StepLines", "is_terminal"]


def is_terminal() -> bool:
    """Whether somebody watches; a bar would fill a log file, and leave its last line open when the run is killed."""
    return sys.stdout.isatty()


def _epoch(trainer: lightning.Trainer) -> str:
    """Which epoch of how many, as "2/8"; an epoch is what lies between two checkpoints."""
    size = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
    return f"Epoch {trainer.global_step // size + 1}/{-(-trainer.max_steps // size)}"


class StepLines(lightning.Callback):
    """A line at the beginning of each epoch, and the means of the one before."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        """Tell, in the first process."""
        if trainer.is_global_zero:
            figures = "".join(f", {name} {float(v):.3f}" for name, v in trainer.progress_bar_metrics.items())
            sys.stdout.write(f"{_epoch(trainer)}, step {trainer.global_step}/{trainer.max_steps}{figures}\n")
            sys.stdout.flush()


class StepBar(TQDMProgressBar):
    """Lightning's progress bar, over all steps."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Begin where the run is."""
        if self.is_disabled:  # in all processes but the first
            return
        bar = self.train_progress_bar
        bar.total, bar.initial = trainer.max_steps, bar.initial or trainer.global_step  # a resumed run is no faster
        bar.set_description(f"{_epoch(trainer)}, step")
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
