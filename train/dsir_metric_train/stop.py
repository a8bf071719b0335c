"""A run that is asked to end: it finishes its step, saves, and says so."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch

from dsir_metric.errors import StoppedError

__all__ = ["Stopper", "outlast_signals"]

# What schedulers, terminals and lost connections send; Windows has no SIGHUP.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))

_LINGER_S = 15  # that a process which draws views goes on after SIGTERM, so that the step under way is completed


class Stopper(lightning.Callback):
    """Ends a chunk after the step in which a signal arrives, so that the `Saver` writes a checkpoint there.

    Only the first signal waits for the step; a second one acts as it would have without this callback. A signal that
    the process ignores, as SIGHUP under nohup, stays ignored. Lightning puts the former handlers back after the run.

    Attributes
    ----------
    signal : signal.Signals or None
        What any of the processes received.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        """Take over from Lightning's handler of SIGTERM, which ends a run with exit code 0 and saves nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for other, handler in self._before.items():
            signal.signal(other, handler if other == signal.SIGINT else signal.SIG_DFL)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Stop in all processes if any has been asked to, where a step is complete."""
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        strategy = trainer.strategy
        mine = torch.tensor(int(self.signal or 0), device=strategy.root_device)
        found = int(strategy.reduce(mine, reduce_op="max"))
        if found:
            self.signal = signal.Signals(found)
            trainer.should_stop = True

    def check(self, checkpoint: Path, step: int, steps: int) -> None:
        """Raise if the run was asked to end.

        Raises
        ------
        StoppedError
            With the step that the checkpoint holds.
        """
        if self.signal is not None:
            raise StoppedError(
                f"stopped by {self.signal.name} at step {step} of {steps}; {checkpoint} holds the training so far: "
                "go on with --resume",
                self.signal,
            )


def outlast_signals(_: int) -> None:
    """Let a process that draws views go on when the whole group is signalled: the one that trains ends it.

    SIGTERM, which also comes from the process that trains, ends it after a while.
    """
    for number in _SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not on Windows
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_LINGER_S))
