"""Representations side by side: one solver, each with its own smoothness weights if you like, scored by a judge.

Run with: python benchmarks/accuracy.py --judge regbench.py --work WORK --representation default --representation mind
              [--tasks a,b] [--settings benchmarks/settings.json] [--set deformable.diffusion=0.1] [--again]
              [--out accuracy.json]

WORK holds the tasks that `regbench.py prepare` made. A representation is a name of representations.py or a model. The
settings file has a table of `RegisterConfig` for each of them (`tune.py` writes it); `--set` goes for all. The last
representation named is the one the others are compared with. With `--again` scans are represented again as `register`
does it: along turned axes where they lie askew, and in smaller voxels for the refine stage. Records go to the JSON file
one by one, the table to standard output.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import SimpleITK as sitk
from representations import represent, representer

from dsir_metric.config import from_dict
from dsir_metric.errors import DsirError
from dsir_metric.io import write_json
from dsir_metric.register import RegisterConfig, register
from dsir_metric.represent import PairRepresenter, Representation

Represent = Callable[[sitk.Image, sitk.Image], tuple[Representation, Representation]]
Methods = Mapping[str, tuple[Represent | PairRepresenter, RegisterConfig]]
Record = dict[str, Any]


def load_judge(path: Path) -> ModuleType:
    """The judge's script as a module."""
    spec = importlib.util.spec_from_file_location("judge", path)
    if spec is None or spec.loader is None:
        sys.exit(f"{path} is no Python file; give the judge's regbench.py")
    judge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judge)
    return judge


def find_tasks(work: Path, only: str | None = None) -> list[Path]:
    """Folders of prepared tasks; those of full resolution only where they are named."""
    folders = {p.parent.name: p.parent for p in sorted(work.glob("*/task.json"))}
    names = only.split(",") if only else [n for n, p in folders.items() if not task_facts(p).get("full")]
    unknown = [n for n in names if n not in folders]
    if unknown or not names:
        sys.exit(f"{work} has no task {', '.join(unknown)}; there are {', '.join(folders) or 'none: prepare some'}")
    return [folders[n] for n in names]


def task_facts(task: Path) -> Record:
    """What the judge wrote about a task."""
    facts: Record = json.loads((task / "task.json").read_text())
    return facts


def read_pair(task: Path) -> tuple[sitk.Image, sitk.Image]:
    """Fixed and moving scan of a task."""
    fixed, moving = (sitk.ReadImage(str(task / "in" / f"{k}.nii.gz"), sitk.sitkFloat32) for k in ("fixed", "moving"))
    return fixed, moving


def settings(name: str, file: Path | None = None, assignments: Iterable[str] = (), threads: int = 1) -> RegisterConfig:
    """Settings of a representation: its table in the file, then the assignments `a.b=value`, in place of the defaults.

    Those are the cosine alone and fixed weights of smoothness: what these should be follows from the pair by a rule
    that was made for one representation.
    """
    tree: Record = {"threads": threads, "deformable": {"information": 0.0, "adaptive": False}}
    if file is not None:
        for key, value in json.loads(file.read_text()).get(name, {}).items():
            tree[key] = tree.get(key, {}) | value if isinstance(value, dict) else value
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        *path, last = key.split(".")
        table = tree
        for part in path:
            table = table.setdefault(part, {})
        table[last] = _value(value)
    return from_dict(RegisterConfig, tree)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def measure(judge: ModuleType, task: Path, represent: Represent | PairRepresenter, config: RegisterConfig) -> Record:
    """Register one task and have it scored; a registration that fails is scored as the identity.

    `register` asks a `PairRepresenter` as often as it likes; anything else is asked once.
    """
    fixed, moving = read_pair(task)
    start = time.perf_counter()
    record: Record = {"task": task.name, "hash": None, "represent_seconds": 0.0}
    made: Any = represent
    if not isinstance(represent, PairRepresenter):
        made = represent(fixed, moving)
        record |= {"hash": made[0].provenance.get("model_hash"), "represent_seconds": time.perf_counter() - start}
    transform = sitk.Transform(3, sitk.sitkIdentity)
    try:
        result = register(fixed, moving, config, representations=made)
        transform = result.transform
        told: Any = result.details
        record |= {"cosine": told["mean_cosine"], "undone": list(result.undone)}
        record["hash"] = told["fixed_representation"].get("model_hash")
        record["represent_seconds"] += told["seconds"]["represent"]
    except DsirError as error:
        record["failed"] = str(error)
    record["seconds"] = time.perf_counter() - start
    weights = {"diffusion": config.deformable.diffusion, "bending_mm2": config.deformable.bending_mm2}
    return {**record, **weights, **judge.evaluate(str(task), transform)}


def compare(judge: ModuleType, tasks: list[Path], methods: Methods, out: Path) -> list[Record]:
    """Measure every method on every task; the JSON file `out` has all records so far at any moment."""
    records: list[Record] = []
    for task in tasks:
        identity = task_facts(task)["identity"]
        records.append({"task": task.name, "representation": "start", **identity})
        for name, (make, config) in methods.items():
            records.append({"representation": name, **measure(judge, task, make, config)})
            write_json({"records": records}, out)
            print(f"{task.name} {name}: {_error(records[-1])} {_dice(records[-1])}", file=sys.stderr, flush=True)
    return records


def table(records: list[Record], reference: str) -> str:
    """Markdown: one line a task and representation, and how each compares with `reference`."""
    lines = [
        f"| task | representation | mean / 95 % error, mm | Dice | folded % | cosine | s | against {reference} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = {r["task"]: r for r in records if r["representation"] == reference}
    for r in records:
        cells = [r["task"], r["representation"], _error(r), _dice(r)]
        cells += [_number(r, "fold_pct", 2), _number(r, "cosine", 3), _number(r, "seconds", 1)]
        cells.append(_against(r, base[r["task"]]) if r["representation"] not in ("start", reference) else "")
        lines.append(f"| {' | '.join(cells)} |")
    names = dict.fromkeys(r["representation"] for r in records)
    return "\n".join([*lines, "", *(summary(records, name, base) for name in names if name != "start")])


def summary(records: list[Record], name: str, base: Mapping[str, Record]) -> str:
    """One line: what was measured, the error left and set against the reference, Dice where there is no error."""
    mine = [r for r in records if r["representation"] == name]
    start = {r["task"]: r for r in records if r["representation"] == "start"}
    known = [r for r in mine if "epe_mean" in r]
    labels = [r for r in mine if "epe_mean" not in r]
    parts = []
    if known:
        left = [r["epe_mean"] / start[r["task"]]["epe_mean"] for r in known]
        ratio = [r["epe_mean"] / base[r["task"]]["epe_mean"] for r in known]
        parts.append(
            f"{np.mean(left):.3f} of the error left, {np.mean(ratio):.3f} of the reference's (worst {max(ratio):.3f})"
        )
    if labels:
        gain = [r["dice"] - base[r["task"]]["dice"] for r in labels]
        mean = np.mean([r["dice"] for r in labels])
        parts.append(f"Dice of label tasks {mean:.3f}, {np.mean(gain):+.3f} on the reference (worst {min(gain):+.3f})")
    return f"- {name} ({_made_of(mine[0])}): {'; '.join(parts)}"


def _made_of(record: Record) -> str:
    """Weights of the model and of the smoothness."""
    weights = f"diffusion {record['diffusion']:g}, bending {record['bending_mm2']:g} mm2"
    return f"model {record['hash'][:12]}, {weights}" if record["hash"] else weights


def _against(record: Record, reference: Record) -> str:
    if "epe_mean" in record:
        return f"{record['epe_mean'] / reference['epe_mean']:.2f}"
    return f"{record['dice'] - reference['dice']:+.3f}"


def _error(record: Record) -> str:
    if "failed" in record:
        return f"failed: {record['failed']}"
    return f"{record['epe_mean']:.2f} / {record['epe_p95']:.2f}" if "epe_mean" in record else ""


def _dice(record: Record) -> str:
    return _number(record, "dice", 3)


def _number(record: Record, key: str, digits: int) -> str:
    return f"{record[key]:.{digits}f}" if key in record else ""


def label(name: str) -> str:
    """What a representation is called in tables and settings: the stem of a model's path."""
    return Path(name).stem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", type=Path, required=True, help="path of regbench.py")
    parser.add_argument("--work", type=Path, required=True, help="folder of prepared tasks")
    parser.add_argument("--representation", action="append", required=True, dest="names")
    parser.add_argument("--tasks", help="only these, separated by commas")
    parser.add_argument("--settings", type=Path, help="JSON file with settings of each representation")
    parser.add_argument("--set", action="append", default=[], dest="assignments", help="a setting, for all")
    parser.add_argument("--again", action="store_true", help="represent again: along turned axes, in smaller voxels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("accuracy.json"))
    options = parser.parse_args()
    if options.again and "mind-mixed" in options.names:
        sys.exit("mind-mixed suits the voxels it was made in; leave it or --again out")
    methods = {}
    for name in options.names:
        config = settings(label(name), options.settings, options.assignments, options.threads)
        how = {"spacing_mm": config.spacing_mm, "threads": config.threads}
        make = representer(name, **how) if options.again else partial(represent, name, **how)
        methods[label(name)] = make, config
    tasks = find_tasks(options.work, options.tasks)
    records = compare(load_judge(options.judge), tasks, methods, options.out)
    print(table(records, list(methods)[-1]))


if __name__ == "__main__":
    main()
