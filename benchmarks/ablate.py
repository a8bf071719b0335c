"""What each part of the method is worth: the paper's tables 3 and 5, trained, registered and scored in one go.

Run with: python benchmarks/ablate.py benchmarks/ablation.toml --data DATA --steps 350 --out ABLATION
              --judge regbench.py --work WORK [--tasks a,b] [--tuning TUNE] [--paper train/recipes/paper.toml]

Table 3 goes from the features of an untrained network to the finished representation, table 5 changes the layouts of
the self-similarity; the paper's own recipe stands beside ours. Every trained row has the same number of steps and a
folder of its own below ABLATION with its recipe and checkpoint: a run that was interrupted goes on where it was. With
--tuning each row gets the smoothness weights that suit it on those tasks (see tune.py), otherwise the defaults.
ABLATION/ablation.json has every score, ablation.md the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from accuracy import Methods, Record, Represent, compare, find_tasks, load_judge, settings
from dsir_metric_train.checkpoint import load_network
from dsir_metric_train.loop import train
from dsir_metric_train.model import MasrNet
from dsir_metric_train.recipe import Recipe
from representations import Describer, Values
from tune import told, tune

from dsir_metric.config import dump_toml, load_toml
from dsir_metric.io import prepare_folder
from dsir_metric.represent import Representation, represent_pair

Read = Callable[[MasrNet, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One line of the tables.

    Parameters
    ----------
    name : str
    folder : str
        Of the training run, shared by rows that read one network in different ways; none: random weights.
    model : dict
        Fields of `ModelConfig` that differ from those of the recipe.
    read : callable
        From a network and images (1, 1, z, y, x) to channels (1, c, z, y, x), of any length.
    smoothed : bool
        Whether the channels go under a Gaussian before they are compared (psi of equation 5).
    """

    name: str
    folder: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    read: Read = MasrNet.forward
    smoothed: bool = False


ROWS = (
    Row("random features", read=MasrNet.features),
    Row("+ DNS", read=lambda network, image: network.embed(network.features(image))),
    Row("+ contrastive training (N and N_d)", "both"),
    Row("+ Gaussian", "both", smoothed=True),
    Row("trained, no DNS", "none", {"dilations": ()}),
    Row("trained, N alone", "direct", {"dilations": (1,)}),
    Row("trained, N_d alone", "dilated", {"dilations": (2,)}),
)
PAPER = Row("the paper's recipe", "paper")


def network_of(row: Row, recipe: Path, options: argparse.Namespace) -> MasrNet:
    """The network a row reads, trained to the end if it is not yet."""
    if not row.folder:
        plan = load_toml(recipe, Recipe)
        torch.manual_seed(plan.optimisation.seed)
        return MasrNet(plan.model).eval()
    folder, wanted = prepare_folder(options.out / row.folder), changed(load_toml(recipe, Recipe), row, options.steps)
    file = folder / "recipe.toml"
    if file.exists() and load_toml(file, Recipe) != wanted:
        sys.exit(f"{file} is another recipe than the one asked for; give an --out of its own")
    file.write_text(dump_toml(wanted), encoding="utf-8")
    return load_network(
        train(file, folder, data_root=options.data, resume=True, workers=options.workers, progress=False)
    )


def changed(recipe: Recipe, row: Row, steps: int) -> Recipe:
    """The recipe of a row: other values in [model], and the number of steps that all rows have."""
    return replace(
        recipe,
        model=replace(recipe.model, **row.model),
        optimisation=replace(recipe.optimisation, steps=steps),
    )


def representing(row: Row, network: MasrNet, sigma_vox: float) -> Represent:
    """Two scans to their representations, as a row has it."""

    def describe(volume: Values) -> Values:
        with torch.inference_mode():
            channels = row.read(network, torch.from_numpy(volume)[None, None])[0].movedim(0, -1).numpy()
        return channels / np.maximum(np.linalg.norm(channels, axis=-1, keepdims=True), 1e-12)

    def make(fixed: sitk.Image, moving: sitk.Image) -> tuple[Representation, Representation]:
        first, second = represent_pair(fixed, moving, Describer(row.name, describe))
        sigma_mm = sigma_vox * first.grid.spacing_mm[0] if row.smoothed else 0.0
        return first.smoothed(sigma_mm), second.smoothed(sigma_mm)

    return make


def table(records: list[Record], names: list[str]) -> str:
    """Markdown, one line a row: error left of the known deformations, mean Dice of the label tasks, then every task."""
    by = {(r["representation"], r["task"]): r for r in records}
    tasks = list(dict.fromkeys(r["task"] for r in records))
    known = [t for t in tasks if "epe_mean" in by["start", t]]
    rest = [t for t in tasks if t not in known]
    head = ["row", *(["error left"] if known else []), *(["Dice"] if rest else [])]
    head += [f"{t}, mm" for t in known] + [f"{t}, Dice" for t in rest]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in ("start", *names):
        mm, dice = [by[name, t]["epe_mean"] for t in known], [by[name, t]["dice"] for t in rest]
        left = [m / by["start", t]["epe_mean"] for m, t in zip(mm, known, strict=True)]
        cells = [*([f"{np.mean(left):.3f}"] if known else []), *([f"{np.mean(dice):.3f}"] if rest else [])]
        lines.append(f"| {' | '.join([name, *cells, *(f'{m:.2f}' for m in mm), *(f'{d:.3f}' for d in dice)])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder below which the recipe's files lie")
    parser.add_argument("--steps", type=int, required=True, help="of every trained row")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True, help="path of regbench.py")
    parser.add_argument("--work", type=Path, required=True, help="folder of prepared tasks")
    parser.add_argument("--tasks", help="only these, separated by commas")
    parser.add_argument("--tuning", type=Path, help="folder of prepared tuning tasks")
    parser.add_argument("--paper", type=Path, help="the paper's recipe, for a row of its own")
    parser.add_argument("--sigma-vox", type=float, default=1.0, help="of the Gaussian, in voxels")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw training views")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    judge, tasks = load_judge(options.judge), find_tasks(options.work, options.tasks)
    tuning = find_tasks(options.tuning) if options.tuning else []

    methods: Methods = {}
    for row, recipe in [*((r, options.recipe) for r in ROWS), *([(PAPER, options.paper)] if options.paper else [])]:
        print(f"{row.name}: training, tuning", flush=True)
        make = representing(row, network_of(row, recipe, options), options.sigma_vox)
        config = settings(row.name, threads=options.threads)
        if tuning:
            config = replace(config, deformable=tune(judge, tuning, make, 2.0, options.threads))
        print(f"{row.name}: {told(config.deformable)}", flush=True)
        methods[row.name] = make, config
    records = compare(judge, tasks, methods, options.out / "ablation.json")
    text = table(records, list(methods))
    (options.out / "ablation.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
