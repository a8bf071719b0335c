"""What every training run does: a checkpoint a chunk, written whole; resumed, as if never interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from dsir_metric.errors import ConfigError, DataError
from dsir_metric_train.journal import Journal, Saver
from dsir_metric_train.steps import StepBar, StepLines, is_terminal
from dsir_metric_train.stop import Stopper
from dsir_metric_train.together import Machines, together

__all__ = ["CHECKPOINT", "Chunked", "diverged", "mixed", "run"]

CHECKPOINT = "last.ckpt"
# Plain "ddp" packs the gradients anew after its first step; three or more numbers then add up in another order, and a
# run that was resumed ends with other bits.
_PARALLEL = "ddp_find_unused_parameters_true"


class Chunked(lightning.LightningModule):
    """A training whose epochs are chunks of steps; it has a `network`, whose weights must be finite to be saved."""

    network: torch.nn.Module

    def on_train_start(self) -> None:
        """Refuse processes that do not see the same files; from here on each ends by itself when another one does."""
        strategy, mine = self.trainer.strategy, (self.global_step, dict(self.hparams))
        same = strategy.broadcast(mine) == mine
        with together(strategy):
            if not same:
                raise ConfigError(
                    f"process {self.trainer.global_rank} has another recipe, other files or another checkpoint than "
                    "the first; give all nodes the same folders of data and output, on a disk they share"
                )
        # Lightning would kill this process at once, before it has told why, when one that it launched ends badly.
        getattr(strategy.launcher, "procs", []).clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse broken weights."""
        with together(self.trainer.strategy):
            if not all(torch.isfinite(value).all() for value in self.network.state_dict().values()):
                raise diverged("weights are no numbers", self.global_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Begin a whole chunk."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = True  # else Lightning would finish a chunk that a signal cut short
        batches = progress["current"]
        batches.update(dict.fromkeys(batches, 0))  # else Lightning counts those of the chunk before to the next one


def diverged(what: str, step: int) -> DataError:
    """The error of a run that cannot go on."""
    return DataError(f"{what} at step {step}; the last good checkpoint stays; lower the learning rate")


def mixed(precision: str, device: str) -> torch.autocast:
    """Within it layers compute in bfloat16, if that is asked for and the `device` (cuda, cpu) is quick at it.

    A CPU without AVX-512 is not: there a 3-D convolution in bfloat16 takes 17 times as long as in single precision.
    """
    quick = device != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(device, torch.bfloat16, enabled=precision == "mixed" and quick)


def run(
    module: Chunked,
    data: lightning.LightningDataModule,
    out: Path,
    *,
    steps: int,
    journal: Journal,
    resume: bool,
    progress: bool,
    machines: Machines | None = None,
    share: int = 1,
) -> Path:
    """Train `module` for `steps` steps in all and leave `last.ckpt` in `out`; its path.

    Each process of `machines` averages the gradients of `share` batches of `data` a step.

    Raises
    ------
    StoppedError
        In the first process, if a signal asked any to end; the checkpoint is that of the step it arrived in.
    """
    machines = machines or Machines()
    machines.check_launched()
    previous = out / CHECKPOINT
    for stale in out.glob(f".*-{CHECKPOINT}"):  # a run killed while it wrote
        stale.unlink(missing_ok=True)
    saver, stopper = Saver(previous), Stopper()
    watched = progress and is_terminal()
    told = [StepBar() if watched else StepLines()] if progress else []
    try:
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="auto",
            devices=machines.devices,
            num_nodes=machines.num_nodes,
            strategy="auto" if machines.processes == 1 else _PARALLEL,
            accumulate_grad_batches=share,
            logger=False,
            callbacks=[stopper, journal, saver, *told],
            plugins=[saver.files],
            enable_checkpointing=False,
            enable_progress_bar=watched,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except MisconfigurationException as error:
        raise ConfigError(f"{machines.devices} devices cannot be had: {' '.join(str(error).split())}") from error
    try:
        trainer.fit(module, datamodule=data, ckpt_path=previous if resume and previous.exists() else None)
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        raise DataError(
            f"process {trainer.global_rank} of {trainer.world_size} cannot reach another one at step "
            f"{trainer.global_step}: it ended, was killed or never began; the last good checkpoint stays: go on from it"
        ) from error
    if trainer.is_global_zero:
        stopper.check(previous, trainer.global_step, steps)
    elif stopper.signal is not None:
        raise SystemExit  # as `together`: the first one tells
    return previous
