"""The training loop: the two views of a pair, contrasted; checkpoint, resume, exactly."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from torch import Tensor

from dsir_metric.config import load_toml, to_dict
from dsir_metric.errors import ConfigError
from dsir_metric.io import prepare_folder
from dsir_metric_train.calibration import calibration
from dsir_metric_train.checkpoint import check_resumable, keep_mixture, mixture_of, read_checkpoint
from dsir_metric_train.journal import Journal
from dsir_metric_train.loader import Loader, Pair, ViewPairs
from dsir_metric_train.loss import alignment_loss, contrastive_loss, descriptors_at
from dsir_metric_train.model import MasrNet
from dsir_metric_train.recipe import Recipe
from dsir_metric_train.run import CHECKPOINT, Chunked, diverged, mixed, run
from dsir_metric_train.together import Machines, is_first, together

__all__ = ["CHECKPOINT", "Contrast", "train"]


class Contrast(Chunked):
    """MASR-Net under the contrastive loss.

    Parameters
    ----------
    recipe : Recipe
    root : Path
        Folder of the training files. Which were used is kept in the checkpoint for the model card.
    network : MasrNet, optional
        Where to begin; random weights by default.
    """

    network: MasrNet

    def __init__(self, recipe: Recipe, root: Path, network: MasrNet | None = None) -> None:
        super().__init__()
        self.recipe, self.root, self.files = recipe, root, recipe.manifest(root)
        self.unusable: dict[str, str] = {}
        self.network = network or MasrNet(recipe.model)
        for weight in self.network.head.parameters():
            if weight.ndim == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)  # a tenth faster on CPUs
        self.save_hyperparameters({"model": to_dict(recipe.model), "recipe": to_dict(recipe), "data": self.files})

    def training_step(self, batch: Pair, _: int) -> Tensor:
        """Contrast the two views of a pair."""
        with together(self.trainer.strategy):
            loss, retrieval = self.contrast(batch)
        figures = {"loss": loss, "retrieval": retrieval}
        self.log_dict(figures, prog_bar=True, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        return loss

    def contrast(self, batch: Pair) -> tuple[Tensor, Tensor]:
        """Loss of a pair, and the share of its points whose true match is the nearest; DataError without a number."""
        views, *points = batch
        settings = self.recipe.optimisation
        features = self.network.features(views)
        with mixed(settings.precision, views.device.type):
            descriptors = self.network.describe(features)
        first, second = (descriptors_at(d, p) for d, p in zip(descriptors, points, strict=True))
        loss = contrastive_loss(first, second, settings.temperature, symmetric=settings.symmetric)
        if settings.alignment:
            loss = loss + settings.alignment * alignment_loss(first, descriptors[1], points[0], points[1])
        if not torch.isfinite(loss):
            raise diverged(f"the loss is {loss.item()}", self.global_step)
        with torch.no_grad():
            hits = (first @ second.T).argmax(dim=1) == torch.arange(len(first), device=first.device)
        return loss, hits.float().mean()

    def configure_optimizers(self) -> Any:
        """Adam, with cosine decay where the recipe asks for it."""
        settings = self.recipe.optimisation
        optimiser = torch.optim.Adam(self.parameters(), lr=settings.learning_rate)
        if not settings.decay:
            return optimiser
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps, settings.learning_rate / 100)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse broken weights; add the files of the recipe, but for those that could not be used."""
        super().on_save_checkpoint(checkpoint)
        used = [entry for entry in self.files if str(self.root / entry["file"]) not in self.unusable]
        checkpoint["hyper_parameters"]["data"] = used
        checkpoint["unusable"] = self.unusable

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the files that could not be used, and begin a whole chunk."""
        super().on_load_checkpoint(checkpoint)
        self.unusable.update(checkpoint.get("unusable", {}))


class _Pairs(lightning.LightningDataModule):
    """One epoch is one chunk of steps; a resumed run draws what an uninterrupted one would have."""

    def __init__(self, recipe: Recipe, root: Path, workers: int, unusable: dict[str, str]) -> None:
        super().__init__()
        self.recipe, self.workers, self.unusable = recipe, workers, unusable
        self.sources = recipe.open_sources(root)
        self.loader: Loader | None = None
        for source in self.sources:  # a source none of whose files can be used is told before the run
            source.draw(np.random.default_rng(0))

    def train_dataloader(self) -> Loader:
        """Loader of the steps that are left."""
        trainer = cast(lightning.Trainer, self.trainer)
        count = max(1, self.recipe.optimisation.steps - trainer.global_step)
        part = trainer.global_rank, trainer.world_size
        pairs = ViewPairs(self.recipe, self.sources, trainer.global_step, count, *part)
        self.loader = Loader(pairs, self.workers, self.unusable, trainer.strategy)
        return self.loader

    def close(self) -> None:
        """End what draws, also when an error is still being told."""
        if self.loader is not None:
            self.loader.close()


def train(
    recipe_path: str | Path,
    out: str | Path,
    *,
    data_root: str | Path | None = None,
    network: MasrNet | None = None,
    resume: bool = False,
    workers: int = 1,
    devices: int = 1,
    num_nodes: int = 1,
    progress: bool = True,
) -> Path:
    """Train a MASR-Net and leave `last.ckpt` and `log/metrics.csv` in `out`.

    With more than one device or node each is a process, and they share every batch of the recipe (distributed data
    parallel): the pairs are the same as with one, and the weights up to rounding. Unless torchrun or srun has started
    all of them, this one starts the others of its machine, which run the same script up to here; only the first one
    writes, and on errors the others end with `SystemExit`.

    Parameters
    ----------
    recipe_path : path
        TOML file, see `Recipe`.
    out : path
        Folder of checkpoints and the loss curve; made if absent.
    data_root : path, optional
        Folder below which the recipe's file patterns are looked up; the recipe's own folder by default.
    network : MasrNet, optional
        Weights to begin with; random ones by default.
    resume : bool
        Go on from `out/last.ckpt` when it is there. The weights end up the same as without the interruption.
    workers : int
        Processes that draw views, for each one that trains; 0 draws them in that one.
    devices : int
        GPUs to train on, of each machine, or processes where it has none.
    num_nodes : int
        Machines. All need the same folders, on a disk they share.
    progress : bool
        Show Lightning's progress bar.

    Returns
    -------
    Path of the checkpoint.

    Raises
    ------
    ConfigError
        If the recipe is unusable, or not the one that made the checkpoint to go on from; or if there are no such
        devices, or they cannot share a batch evenly.
    ModelFileError
        If that checkpoint is damaged.
    DataError, ShapeError, GeometryError
        If the data or the folder are unusable, more than a tenth of the scans cannot be read, the disk is full, the
        loss is no number, or another process was killed; then the last good checkpoint stays.

    Warns
    -----
    RuntimeWarning
        At the end, if scans were passed over.
    """
    recipe, out = load_toml(recipe_path, Recipe), prepare_folder(out)
    if recipe.base and network is None:
        raise ConfigError(f"{recipe_path}: begins with the weights {recipe.base[:12]}; give the model that has them")
    if network is not None and network.config != recipe.model:
        raise ConfigError(f"{recipe_path}: [model] is not that of the given weights; write {network.config.to_dict()}")
    if resume:
        check_resumable(out / CHECKPOINT, recipe)
    settings = recipe.optimisation
    machines = Machines(devices, num_nodes)
    share = machines.share_of(settings.batch)
    root = Path(data_root) if data_root else Path(recipe_path).parent
    lightning.seed_everything(settings.seed, verbose=False)
    module = Contrast(recipe, root, network)
    pairs = _Pairs(recipe, root, workers, module.unusable)
    journal = Journal(out / "log" / "metrics.csv", ("loss", "retrieval"))
    try:
        checkpoint = run(
            module,
            pairs,
            out,
            steps=settings.steps,
            journal=journal,
            resume=resume,
            progress=progress,
            machines=machines,
            share=share,
        )
        if is_first() and settings.calibration:
            _calibrate(checkpoint, ViewPairs(recipe, pairs.sources, settings.steps, settings.calibration))
    finally:
        pairs.close()
    if module.unusable and is_first():
        warnings.warn(_told(module.unusable), RuntimeWarning, stacklevel=2)
    return checkpoint


def _calibrate(checkpoint: Path, pairs: ViewPairs) -> None:
    """End a run, unless it has ended before: `calibration` on pairs of views that come after those of the steps."""
    network, content = read_checkpoint(checkpoint)
    if not mixture_of(content):
        keep_mixture(checkpoint, calibration(network, (pairs.draw(k) for k in range(pairs.count))))


def _told(unusable: dict[str, str]) -> str:
    reasons = list(unusable.values())
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return f"{len(reasons)} scans could not be used and were left out: {'; '.join(reasons[:3])}{more}"
