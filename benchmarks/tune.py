"""Smoothness weights of each representation, chosen on pairs that are not judged: fair to all of them.

Run with: regbench.py prepare --tasks benchmarks/tuning.json --data DATA --out TUNE
          python benchmarks/tune.py --judge regbench.py --work TUNE --representation mind [--representation default]
              [--factor 2] [--settings benchmarks/settings.json]

From the default weights of diffusion and bending energy one walks over a lattice of factors to the neighbour with the
smallest error, until none is clearly better. The error is that of the deformable stage, relative to the start, mean
over the tasks; where labels are all that is known it is what Dice lacks to 1. The linear stages, which know no weights,
run once. The choice is written into the settings file, which `accuracy.py` reads; what is there for other
representations stays. `people.py` makes pairs with labels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from accuracy import Record, Represent, find_tasks, label, load_judge, read_pair, task_facts
from representations import represent

from dsir_metric.io import write_json
from dsir_metric.register import DeformableConfig, RegisterConfig, register

Place = tuple[int, int]
NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, 1))
WORTH = 0.995  # a step must make the error at least this much smaller: towards 0 a weight hardly matters


def walk(error: Callable[[Place], float]) -> Place:
    """Down the lattice from (0, 0) to a place from which no neighbour has a clearly smaller error."""
    seen = cache(error)
    here = (0, 0)
    while True:
        best = min(((here[0] + i, here[1] + j) for i, j in NEIGHBOURS), key=seen)
        if seen(best) > WORTH * seen(here):
            return here
        here = best


def tune(judge: ModuleType, tasks: list[Path], make: Represent, factor: float, threads: int) -> DeformableConfig:
    """The weights with the smallest error on the tasks, which are represented and aligned once."""
    deformable = RegisterConfig(threads=threads, stages=("deformable",))
    starts = [_aligned(task, make, threads) for task in tasks]

    def error(place: Place) -> float:
        config = replace(deformable, deformable=weights(place, factor))
        left = []
        for task, start in zip(tasks, starts, strict=True):
            score = judge.evaluate(str(task), register(config=config, **start).transform)
            left.append(_amiss(score) / _amiss(task_facts(task)["identity"]))
        print(f"  {told(config.deformable)}: {np.mean(left):.4f}", file=sys.stderr, flush=True)
        return float(np.mean(left))

    return weights(walk(error), factor)


def _amiss(score: Record) -> float:
    """The error of a known deformation, or what is lacking to a Dice of 1."""
    amiss: float = score["epe_mean"] if "epe_mean" in score else 1 - score["dice"]
    return amiss


def _aligned(task: Path, make: Represent, threads: int) -> dict[str, Any]:
    """What `register` needs to go on from the linear stages, which know no weights."""
    fixed, moving = read_pair(task)
    pair = make(fixed, moving)
    config = RegisterConfig(threads=threads, stages=("centre", "search", "rigid", "affine"))
    linear = register(fixed, moving, config, representations=pair).transform
    return {"fixed": fixed, "moving": moving, "representations": pair, "initial_transform": linear}


def weights(place: Place, factor: float) -> DeformableConfig:
    """The default weights times powers of `factor`, to two digits."""
    default = DeformableConfig()
    diffusion, bending = (
        float(f"{value * factor**k:.2g}")
        for value, k in zip((default.diffusion, default.bending_mm2), place, strict=True)
    )
    return replace(default, diffusion=diffusion, bending_mm2=bending, adaptive=False)


def told(config: DeformableConfig) -> str:
    """The weights in words."""
    return f"diffusion {config.diffusion:g}, bending {config.bending_mm2:g} mm2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", type=Path, required=True, help="path of regbench.py")
    parser.add_argument("--work", type=Path, required=True, help="folder of prepared tuning tasks")
    parser.add_argument("--representation", action="append", required=True, dest="names")
    parser.add_argument("--factor", type=float, default=2.0, help="step of the lattice")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_name("settings.json"))
    options = parser.parse_args()
    judge, tasks = load_judge(options.judge), find_tasks(options.work)
    for name in options.names:
        print(f"{name}: share of the error left, mean of {len(tasks)} tasks", file=sys.stderr, flush=True)
        chosen = tune(judge, tasks, partial(represent, name, threads=options.threads), options.factor, options.threads)
        print(f"{name}: {told(chosen)}")
        known = json.loads(options.settings.read_text()) if options.settings.exists() else {}
        table = {"deformable": {"diffusion": chosen.diffusion, "bending_mm2": chosen.bending_mm2}}
        write_json({**known, label(name): table}, options.settings)


if __name__ == "__main__":
    main()
