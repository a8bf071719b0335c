"""The training loop: one pair of views a step, contrasted; checkpoint, resume, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dsir_metric.config import from_dict, load_toml, to_dict
from dsir_metric.errors import DataError
from dsir_metric.io import prepare_folder
from dsir_metric_train.loss import contrastive_loss, descriptors_at, sample_points
from dsir_metric_train.model import MasrNet, ModelConfig
from dsir_metric_train.recipe import Recipe
from dsir_metric_train.views import Source

__all__ = ["Contrast", "ViewPairs", "load_network", "train"]

CHECKPOINT = "last.ckpt"
Pair = tuple[Tensor, Tensor, Tensor]


class ViewPairs(Dataset[Pair]):
    """Views of the steps `start` to `start + count`: item k depends on the seed and the step alone.

    Parameters
    ----------
    recipe : Recipe
    sources : sequence of Source
    start, count : int
        First step and number of steps.
    """

    def __init__(self, recipe: Recipe, sources: list[Source], start: int, count: int) -> None:
        self.recipe, self.sources, self.start, self.count = recipe, sources, start, count
        self.shares = recipe.shares()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> Pair:
        """Two views (2, 1, z, y, x) and the sampled points in the first and the second (points, 3), z, y, x."""
        settings = self.recipe.optimisation
        rng = np.random.default_rng([settings.seed, self.start + item])
        for _ in range(50):
            views = self.sources[int(rng.choice(len(self.sources), p=self.shares))].draw(rng)
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            foreground, warp = torch.from_numpy(views.foreground), torch.from_numpy(views.warp)
            first, second = sample_points(foreground, warp, settings.points, generator)
            if len(first) >= min(settings.points, 0.05 * foreground.numel()):
                return torch.from_numpy(np.stack([views.first, views.second])[:, None]), first, second
        raise DataError("50 crops in a row were almost all background; check the training images or the crop size")


class Contrast(lightning.LightningModule):
    """MASR-Net under the contrastive loss.

    Parameters
    ----------
    recipe : Recipe
    data : list of dict
        Manifest of the training files, kept in the checkpoint for the model card.
    """

    def __init__(self, recipe: Recipe, data: list[dict[str, str]]) -> None:
        super().__init__()
        self.recipe = recipe
        self.network = MasrNet(recipe.model)
        for weight in self.network.head.parameters():
            if weight.ndim == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)  # a tenth faster on CPUs
        self.save_hyperparameters({"model": to_dict(recipe.model), "recipe": to_dict(recipe), "data": data})

    def training_step(self, batch: Pair, _: int) -> Tensor:
        """Contrast the two views of one step."""
        views, *points = batch
        settings = self.recipe.optimisation
        features = self.network.features(views)
        with torch.autocast(views.device.type, torch.bfloat16, enabled=settings.precision == "mixed"):
            descriptors = self.network.describe(features)
        first, second = (descriptors_at(d, p) for d, p in zip(descriptors, points, strict=True))
        loss = contrastive_loss(first, second, settings.temperature, symmetric=settings.symmetric)
        if not torch.isfinite(loss):
            raise DataError(f"the loss is {loss.item()} at step {self.global_step}; lower the learning rate")
        with torch.no_grad():
            hits = ((first @ second.T).argmax(dim=1) == torch.arange(len(first), device=first.device)).float().mean()
        self.log_dict({"loss": loss, "retrieval": hits}, prog_bar=True, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam, with cosine decay where the recipe asks for it."""
        settings = self.recipe.optimisation
        optimiser = torch.optim.Adam(self.parameters(), lr=settings.learning_rate)
        if not settings.decay:
            return optimiser
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps, settings.learning_rate / 100)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Chunks(lightning.LightningDataModule):
    """One epoch is one chunk of steps, so that a resumed run draws what an uninterrupted one would have."""

    def __init__(self, recipe: Recipe, root: Path, workers: int) -> None:
        super().__init__()
        self.recipe, self.workers = recipe, workers
        self.sources = list(recipe.open_sources(root))
        ViewPairs(recipe, self.sources, 0, 1)[0]  # what cannot be drawn is told here, in one line, by no worker

    def train_dataloader(self) -> DataLoader[Pair]:
        """Loader of the current chunk."""
        settings = self.recipe.optimisation
        start = self.trainer.global_step if self.trainer else 0  # no epoch: Lightning begins a resumed one anew
        count = max(1, min(settings.chunk, settings.steps - start))
        pairs = ViewPairs(self.recipe, self.sources, start, count)
        return DataLoader(pairs, batch_size=None, num_workers=self.workers, prefetch_factor=4 if self.workers else None)


def train(
    recipe_path: str | Path,
    out: str | Path,
    *,
    data_root: str | Path | None = None,
    resume: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Train a MASR-Net and leave `last.ckpt` and `log/metrics.csv` in `out`.

    Parameters
    ----------
    recipe_path : path
        TOML file, see `Recipe`.
    out : path
        Folder of checkpoints and the loss curve; made if absent.
    data_root : path, optional
        Folder below which the recipe's file patterns are looked up; the recipe's own folder by default.
    resume : bool
        Go on from `out/last.ckpt` when it is there. The weights end up the same as without the interruption.
    workers : int
        Processes that draw views; 0 draws them in this one.
    progress : bool
        Show Lightning's progress bar.

    Returns
    -------
    Path of the checkpoint.

    Raises
    ------
    ConfigError
        If the recipe is unusable.
    DataError, ShapeError, GeometryError
        If the data or the folder are unusable, or the loss is no number; then the last good checkpoint stays.
    """
    recipe, out = load_toml(recipe_path, Recipe), prepare_folder(out)
    root = Path(data_root) if data_root else Path(recipe_path).parent
    settings = recipe.optimisation
    lightning.seed_everything(settings.seed, verbose=False)
    module = Contrast(recipe, recipe.manifest(root))
    saver = ModelCheckpoint(out, filename="last", save_top_k=1, enable_version_counter=False, every_n_epochs=1)
    trainer = lightning.Trainer(
        max_steps=settings.steps,
        accelerator="auto",
        devices=1,
        logger=CSVLogger(out, name="", version="log", flush_logs_every_n_steps=1),
        log_every_n_steps=settings.chunk,
        callbacks=[saver],
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    previous = out / CHECKPOINT
    trainer.fit(
        module,
        datamodule=_Chunks(recipe, root, workers),
        ckpt_path=previous if resume and previous.exists() else None,
        weights_only=False,
    )
    return previous


def load_network(checkpoint: str | Path) -> MasrNet:
    """The trained network of a checkpoint, in evaluation mode on the CPU."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)
    network = MasrNet(from_dict(ModelConfig, state["hyper_parameters"]["model"]))
    weights = {k.removeprefix("network."): v for k, v in state["state_dict"].items() if k.startswith("network.")}
    network.load_state_dict(weights)
    return network.eval()
