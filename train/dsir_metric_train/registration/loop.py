"""The training loop of a registration network: one deformed pair a step; validated on known deformations."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from dsir_metric.config import from_dict, load_toml, to_dict
from dsir_metric.errors import ConfigError, ModelFileError
from dsir_metric.io import prepare_folder
from dsir_metric.torch.lapirn import RegistrationNetwork
from dsir_metric.torch.mind import mind_ssc_loss
from dsir_metric.torch.regularity import diffusion, jacobian_determinant
from dsir_metric.torch.similarity import dns_cosine, nmi
from dsir_metric.torch.warp import warp
from dsir_metric_train.checkpoint import network_weights, read_content, refuse_other_recipe
from dsir_metric_train.journal import Journal
from dsir_metric_train.registration.data import Pair, Preparation, Volume, deformed_pair, two_of
from dsir_metric_train.registration.recipe import RegistrationRecipe
from dsir_metric_train.run import CHECKPOINT, Chunked, diverged, mixed, run

__all__ = ["Registration", "read_registration", "train_registration"]

_COMMAND = "train-registration"
_VALIDATED = ("before_mm", "error_mm", "cosine", "folded_percent", "sd_log_jacobian")
_PAIRS = 6  # validated on
_APART = 1 << 40  # steps that no training reaches: seeds of the validation


class Registration(Chunked):
    """A registration network under a similarity and a smoothness.

    Parameters
    ----------
    recipe : RegistrationRecipe
    trained, held : list of Volume
        To train on and to validate on.
    facts : dict
        What the checkpoint is to tell besides the recipe: "channels", "representation", "data".
    network : RegistrationNetwork, optional
        Where to begin; random weights by default.
    """

    network: RegistrationNetwork

    def __init__(
        self,
        recipe: RegistrationRecipe,
        trained: list[Volume],
        held: list[Volume],
        facts: dict[str, Any],
        network: RegistrationNetwork | None = None,
    ) -> None:
        super().__init__()
        self.recipe, self.held = recipe, held
        self.network = network or recipe.make_network(facts["channels"])
        self.trained = {self.network.levels: trained}  # by resolution: no coarser level needs all of it
        for resolution in range(self.network.levels, min(2, self.network.levels), -1):
            self.trained[resolution - 1] = [volume.halved() for volume in self.trained[resolution]]
        self.seconds, self._begin = 0.0, 0.0
        self.save_hyperparameters({"recipe": to_dict(recipe), **facts})

    def on_train_batch_start(self, batch: int, index: int) -> None:
        """Let learn what this step trains."""
        self._begin = time.perf_counter()
        level, since = self.recipe.level(self.global_step), self.recipe.since(self.global_step)
        for k, stage in enumerate(self.network.stages()):
            stage.requires_grad_(k + 1 == level or (k + 1 < level and since >= self.recipe.frozen))

    def on_train_batch_end(self, outputs: Any, batch: int, index: int) -> None:
        """Count the time; validate at the end of a chunk, also of one that is cut short."""
        self.seconds += time.perf_counter() - self._begin
        last = batch + 1 == self.recipe.chunk or self.global_step == sum(self.recipe.steps)
        if last or self.trainer.should_stop:
            found = [self.validate(k) for k in range(_PAIRS)]
            means = {name: float(np.mean([figures[name] for figures in found])) for name in _VALIDATED}
            self.log_dict(means, on_step=False, on_epoch=True, batch_size=1)

    def training_step(self, batch: int, index: int) -> Tensor:
        """Register one pair."""
        rng = np.random.default_rng([self.recipe.seed, self.global_step])
        levels = self.recipe.level(self.global_step)
        resolution = max(levels, min(self.trained))
        pair = self._deformed(rng, *two_of(rng, self.trained[resolution], self.recipe.same), resolution)
        field = self._field(pair, levels, resolution)
        similarity = self._similarity(pair, self.network.displacement(field))
        smoothness = diffusion(field)
        loss = similarity + self.recipe.smoothness * smoothness
        if not torch.isfinite(loss):
            raise diverged(f"the loss is {loss.item()}", self.global_step)
        size = float(field.detach().abs().mean())
        if size > min(field.shape[2:]) / 4:
            raise diverged(f"displacements are {size:.0f} voxels on average", self.global_step)
        figures = {"loss": loss, "similarity": similarity, "smoothness": smoothness}
        self.log_dict(figures, prog_bar=True, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep one pair from throwing the weights away."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.largest_gradient)

    @torch.no_grad()
    def validate(self, number: int) -> dict[str, float]:
        """How far a known deformation between two volumes of one anatomy is undone, mm; other figures in `_VALIDATED`.

        Parameters
        ----------
        number : int
            Of the pair; the same number is always the same pair.
        """
        rng = np.random.default_rng([self.recipe.seed, _APART + number])
        fixed = self.held[number % len(self.held)]
        others = [v for v in self.held if v.file == fixed.file and v is not fixed] or [fixed]
        pair = self._deformed(rng, fixed, others[int(rng.integers(len(others)))], self.network.levels)
        levels = self.recipe.level(self.global_step - 1)
        field = self.network.displacement(self._field(pair, levels, self.network.levels))
        inside = pair.mask[:, 0] > 0.5
        determinant = jacobian_determinant(field)[inside]
        spacing = self.recipe.volumes.spacing_mm
        figures = {
            "before_mm": spacing * pair.truth.norm(dim=1)[inside].mean(),
            "error_mm": spacing * (field - pair.truth).norm(dim=1)[inside].mean(),
            "cosine": -dns_cosine(pair.fixed, warp(pair.moving, field), pair.mask),
            "folded_percent": 100 * (determinant <= 0).float().mean(),
            "sd_log_jacobian": determinant.clamp(1e-3, 1e3).log().std(),
        }
        return {name: float(value) for name, value in figures.items()}

    def _deformed(self, rng: np.random.Generator, fixed: Volume, moving: Volume, resolution: int) -> Pair:
        spacing = self.recipe.volumes.spacing_mm * 2 ** (self.network.levels - resolution)
        return deformed_pair(rng, fixed, moving, self.recipe.deformations, spacing, self.device)

    def _field(self, pair: Pair, levels: int, resolution: int) -> Tensor:
        with mixed(self.recipe.precision, pair.fixed.device.type):
            field: Tensor = self.network(pair.fixed, pair.moving, levels, resolution)
        return field

    def _similarity(self, pair: Pair, displacement: Tensor) -> Tensor:
        if self.recipe.loss == "dns":
            return dns_cosine(pair.fixed, warp(pair.moving, displacement), pair.mask)
        loss = nmi if self.recipe.loss == "nmi" else mind_ssc_loss
        return loss(pair.fixed_image, warp(pair.moving_image, displacement), pair.mask)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.recipe.learning_rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what has come of it so far."""
        super().on_save_checkpoint(checkpoint)
        found = {name: float(self.trainer.callback_metrics[name]) for name in _VALIDATED}
        checkpoint["hyper_parameters"] |= {"seconds": self.seconds, "steps": self.global_step, "validation": found}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting the time."""
        super().on_load_checkpoint(checkpoint)
        self.seconds = checkpoint["hyper_parameters"]["seconds"]


class _Counted(lightning.LightningDataModule):
    """Numbers alone: a pair depends on the seed and the step."""

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk

    def train_dataloader(self) -> range:
        """Steps of a chunk."""
        return range(self.chunk)


def train_registration(
    recipe_path: str | Path,
    out: str | Path,
    *,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    network: RegistrationNetwork | None = None,
    resume: bool = False,
    progress: bool = True,
    on_note: Callable[[str], None] | None = None,
) -> Path:
    """Train a registration network and leave `last.ckpt` and `log/metrics.csv` in `out`.

    Parameters
    ----------
    recipe_path : path
        TOML file, see `RegistrationRecipe`.
    out : path
        Folder of checkpoints, figures and, unless told otherwise, prepared volumes; made if absent.
    data_root : path, optional
        Folder below which the recipe's file patterns are looked up; the recipe's own folder by default.
    cache : path, optional
        Folder of prepared volumes, which several trainings may share; `out/cache` by default.
    network : RegistrationNetwork, optional
        Weights to begin with, of the architecture in the recipe; random ones by default.
    resume : bool
        Go on from `out/last.ckpt` when it is there. On the CPU the weights end up the same as without the interruption.
    progress : bool
        Show Lightning's progress bar.
    on_note : callable, optional
        Receives a line on each file that is prepared.

    Returns
    -------
    Path of the checkpoint.

    Raises
    ------
    ConfigError
        If the recipe is unusable, or not the one that made the checkpoint to go on from, or it has a `base` and no
        network is given.
    DataError, ShapeError, GeometryError
        If the data or the folders are unusable, or the loss is no number; then the last good checkpoint stays.
    ModelFileError, MissingDependencyError
        If the model of the representations, or the checkpoint, is unusable, or MONAI is absent.
    """
    recipe, out = load_toml(recipe_path, RegistrationRecipe), prepare_folder(out)
    if recipe.base and network is None:
        raise ConfigError(f"{recipe_path}: begins with the weights {recipe.base[:12]}; give the network that has them")
    root = Path(data_root) if data_root else Path(recipe_path).parent
    preparation = Preparation(recipe, root, prepare_folder(cache or out / "cache"), on_note)
    card = preparation.representer.card
    facts = {"channels": card.channels, "representation": card.weights_hash, "data": recipe.manifest(root)}
    if resume and (out / CHECKPOINT).exists():
        before = read_registration(out / CHECKPOINT)[1]["hyper_parameters"]
        refuse_other_recipe(out / CHECKPOINT, from_dict(RegistrationRecipe, before["recipe"]), recipe)
        if before["representation"] != facts["representation"]:
            raise ConfigError(f"{out / CHECKPOINT}: was trained on other representations; do not resume")
    lightning.seed_everything(recipe.seed, verbose=False)
    module = Registration(recipe, *preparation.volumes(), facts, network)
    journal = Journal(out / "log" / "metrics.csv", ("loss", "similarity", "smoothness", *_VALIDATED))
    data = _Counted(recipe.chunk)
    return run(module, data, out, steps=sum(recipe.steps), journal=journal, resume=resume, progress=progress)


def read_registration(path: str | Path) -> tuple[RegistrationNetwork, dict[str, Any]]:
    """Network of a checkpoint, in evaluation mode on the CPU, and all of its content.

    Raises
    ------
    DataError
        If it cannot be read.
    ModelFileError
        If it is damaged or not one of this training.
    MissingDependencyError
        If it is a VoxelMorph and MONAI is absent.
    """
    content = read_content(path, _COMMAND)
    try:
        settings = content["hyper_parameters"]
        if not {"representation", "data", "seconds", "steps", "validation"} <= set(settings):
            raise KeyError("some of its facts are absent")
        network = from_dict(RegistrationRecipe, settings["recipe"]).make_network(settings["channels"])
        network.load_state_dict(network_weights(content))
    except (ConfigError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFileError(f"{path}: is no checkpoint of `dsir-metric {_COMMAND}` ({reason})") from error
    return network.eval(), content
