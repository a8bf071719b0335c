"""Fine-tune a model on scans without labels, and say on scans held back whether that made it better."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from dsir_metric_train.checkpoint import check_resumable, mixture_of, read_checkpoint
from dsir_metric_train.loop import CHECKPOINT, train
from dsir_metric_train.model import MasrNet, ModelConfig
from dsir_metric_train.recipe import DataSource, Optimisation, Recipe
from dsir_metric_train.views import Appearance, Paint, Placement, find_images
from dsir_metric_train.views.scans import check_headers

from dsir_metric.config import dump_toml, from_dict, to_dict
from dsir_metric.errors import DataError, DsirError
from dsir_metric.io import atomic, check_apart, content_hash, prepare_folder, remove, scratch_folder, write_json
from dsir_metric.represent import ModelCard, Representer, load_card
from dsir_metric.torch.threads import torch_threads
from dsir_metric_export.export import export_network
from dsir_metric_export.read import read_network
from dsir_metric_export.trials import Figure, Score, Trial, compare, make_trial, score

__all__ = ["Adaptation", "Keep", "adapt"]

Keep = Literal["better", "always"]
FEWEST, MOST_HELD_BACK, TRIALS = 3, 8, 8
YOURS = "yours"  # origin of the scans, in the card
_WRITTEN = ("model.onnx", "report.json", "recipe.toml", CHECKPOINT, "log/metrics.csv")
RATE = 2e-4  # the end of a long training, not its beginning


@dataclass(frozen=True)
class Adaptation:
    """Outcome of `adapt`.

    Parameters
    ----------
    figures : mapping
        "retrieval" and "error_mm", each before and after.
    model : Path or None
        The new model file, where one was written.
    checkpoint : Path
        The last checkpoint, kept in any case.
    """

    figures: Mapping[str, Figure]
    model: Path | None
    checkpoint: Path

    @property
    def better(self) -> bool:
        """Whether a figure became better and none worse."""
        verdicts = {figure.verdict for figure in self.figures.values()}
        return "better" in verdicts and "worse" not in verdicts


def adapt(
    folder: str | Path,
    out: str | Path,
    *,
    model: str | Path = "default",
    steps: int = 500,
    crop: int | None = None,
    seed: int = 0,
    keep: Keep = "better",
    resume: bool = False,
    workers: int = 1,
    threads: int | None = None,
    progress: bool = True,
    on_note: Callable[[str], None] = lambda _: None,
) -> Adaptation:
    """Fine-tune a model on the scans of a folder.

    Every fifth scan, at most eight, is held back and never trained on. Before and after, the model is put to eight
    trials on them: two random appearances of a scan, one of them deformed by a known transform. How often does a
    descriptor find its place, and how far off is a registration with default settings? A figure changed if the mean
    change over the trials exceeds 2 % and two standard errors; the model became better if one did and none got worse.

    Leaves in `out` the recipe, `last.ckpt`, `log/metrics.csv`, `report.json` and, if the model became better (or with
    `keep` "always"), `model.onnx`. Nothing else is replaced.

    Parameters
    ----------
    folder : path
        Scans, at least three, in it and below; NIfTI, NRRD or MetaImage.
    out : path
        Folder for the results.
    model : str or path
        Where to begin: a shipped model or an .onnx file.
    steps : int
        Optimiser steps, one pair of views each.
    crop : int, optional
        Edge of the crops in voxels; that of the model's recipe by default.
    seed : int
        Of the split, the training and the trials.
    keep : {"better", "always"}
        When to write the new model.
    resume : bool
        Go on from `out/last.ckpt`.
    workers : int
        Processes that draw views.
    threads : int, optional
        CPU threads; all cores by default.
    progress : bool
        Show Lightning's progress bar.
    on_note : callable
        Receives a line for a human now and then.

    Returns
    -------
    Adaptation

    Raises
    ------
    DataError, ShapeError, GeometryError
        If there are fewer than three scans, or they are unusable; see `dsir_metric_train.loop.train`.
    ConfigError
        If steps or crop are out of range, what is resumed was begun otherwise, or `out` has the model or a scan in the
        place of a file to be written.
    ModelFileError
        If there is no such model, or the checkpoint to resume is damaged.
    """
    begin, folder, out = time.perf_counter(), Path(folder), Path(out)
    files = [f for f in find_images(folder, ["**/*"]) if not f.name.startswith(".")]
    check_apart([("the model", Path(model)), *(("the scan", f) for f in files)], (out / name for name in _WRITTEN))
    prepare_folder(out)
    card = load_card(model)
    trained, held = _split(files, folder, seed)
    recipe = _recipe(card, [f.relative_to(folder) for f in trained], steps, crop, seed)
    check_headers(files, recipe.placement)
    if resume:
        check_resumable(out / CHECKPOINT, recipe)
    with atomic(out / "recipe.toml") as temporary:
        temporary.write_text(dump_toml(recipe), encoding="utf-8")
    trials, unusable = _trials(held, recipe.appearance, seed)
    on_note(f"{len(files)} scans: {len(trained)} to train on, {len(held)} held back; begins with {card.name!r}")
    before = _scores(trials, model, threads)
    on_note(f"before: {_told(before)}")
    with torch_threads(threads):
        checkpoint = train(
            out / "recipe.toml",
            out,
            data_root=folder,
            network=read_network(model).train(),
            resume=resume,
            workers=workers,
            progress=progress,
        )
    trained_network, content = read_checkpoint(checkpoint)
    with scratch_folder(out) as scratch:
        made = scratch / "model.onnx"
        _export(trained_network, content, recipe, card, made, out.name)
        after = _scores(trials, made, threads)
        on_note(f"after: {_told(after)}")
        outcome = Adaptation(_figures(before, after), None, checkpoint)
        remove(out / "report.json")  # of a run before: never beside a model of this one
        if outcome.better or keep == "always":
            os.replace(made, out / "model.onnx")
            outcome = replace(outcome, model=out / "model.onnx")
    report = _verdict(outcome, before, after) | {
        "model": None if outcome.model is None else content_hash(outcome.model),
        "base": {"name": card.name, "weights_hash": card.weights_hash},
        "steps": steps,
        "held_back": [f.relative_to(folder).as_posix() for f in held],
        "unusable": unusable | content["unusable"],
        "seconds": time.perf_counter() - begin,
    }
    write_json(report, out / "report.json")
    return outcome


def _verdict(outcome: Adaptation, before: Sequence[Score], after: Sequence[Score]) -> dict[str, object]:
    """What the trials say, for the report."""
    return {
        "better": outcome.better,
        "figures": {name: asdict(f) | {"verdict": f.verdict} for name, f in outcome.figures.items()},
        "trials": [{"before": asdict(b), "after": asdict(a)} for b, a in zip(before, after, strict=True)],
    }


def _split(files: Sequence[Path], folder: Path, seed: int) -> tuple[list[Path], list[Path]]:
    """Files to train on and files held back: every fifth, at least one, at most eight."""
    if len(files) < FEWEST:
        raise DataError(
            f"{folder}: has {len(files)} scans; {FEWEST} are needed, since one is held back to judge the result"
        )
    order = np.random.default_rng(seed).permutation(len(files))
    held = set(order[: min(MOST_HELD_BACK, max(1, len(files) // 5))].tolist())
    return [f for k, f in enumerate(files) if k not in held], [files[k] for k in sorted(held)]


def _recipe(card: ModelCard, files: Sequence[Path], steps: int, crop: int | None, seed: int) -> Recipe:
    """As the model was trained, but gently: on these scans, and on shapes and bodies so that it does not forget."""
    made_with, patterns = card.recipe, tuple(glob.escape(f.as_posix()) for f in files)
    placement = from_dict(Placement, made_with.get("placement", {}))
    before = from_dict(Optimisation, made_with.get("optimisation", {}))
    optimisation = replace(
        before,
        steps=steps,
        calibration=min(before.calibration, steps),
        batch=1,
        learning_rate=RATE,
        decay=True,
        chunk=50,
        seed=seed,
    )
    return Recipe(
        sources=(
            DataSource("scans", patterns, weight=4.0, origin=YOURS, licence=YOURS),
            DataSource("shapes", weight=1.0, origin="random shapes", licence="Apache-2.0"),
            DataSource("bodies", weight=1.0, origin="random bodies", licence="Apache-2.0"),
        ),
        name=f"{card.name}, fine-tuned",
        base=card.weights_hash,
        model=from_dict(ModelConfig, card.config),
        placement=placement if crop is None else replace(placement, crop=crop),
        paint=from_dict(Paint, made_with.get("paint", {})),
        appearance=from_dict(Appearance, made_with.get("appearance", {})),
        optimisation=optimisation,
    )


def _trials(held: Sequence[Path], appearance: Appearance, seed: int) -> tuple[list[Trial], dict[str, str]]:
    """Eight trials over the held-back scans, in turn, and the scans that cannot be used."""
    trials, unusable = [], {}
    for k in range(TRIALS):
        file = held[k % len(held)]
        try:
            trials.append(make_trial(file, appearance, (seed, k)))
        except DsirError as error:
            unusable[str(file)] = str(error)
    if len(trials) < 2:
        reason = next(iter(unusable.values()))
        raise DataError(f"{len(unusable)} of {len(held)} scans that were held back cannot be used; the first: {reason}")
    return trials, unusable


def _scores(trials: Sequence[Trial], model: str | Path, threads: int | None) -> list[Score]:
    representer = Representer(model, threads=threads)
    return [score(trial, representer, threads) for trial in trials]


def _figures(before: Sequence[Score], after: Sequence[Score]) -> dict[str, Figure]:
    return {
        "retrieval": compare([s.retrieval for s in before], [s.retrieval for s in after], larger_is_better=True),
        "error_mm": compare([s.error_mm for s in before], [s.error_mm for s in after], larger_is_better=False),
    }


def _told(scores: Sequence[Score]) -> str:
    rate, error = np.mean([(s.retrieval, s.error_mm) for s in scores], axis=0)
    return f"{rate:.1%} of points find their match, registrations are {error:.2f} mm off"


def _export(
    network: MasrNet, content: Mapping[str, Any], recipe: Recipe, card: ModelCard, file: Path, name: str
) -> None:
    """Write the model file; its card tells the user's files by name alone, since folders may name people."""
    used = [{**entry, "file": Path(entry["file"]).name} for entry in content["hyper_parameters"]["data"]]
    data = [dict(entry) for entry in card.data]
    shown = to_dict(recipe)
    shown["sources"][0]["files"] = [entry["file"] for entry in used if entry["source"] == YOURS]
    data += [entry for entry in used if entry not in data]
    export_network(network, file, name=name, recipe=shown, data=data, mixture=mixture_of(content))
