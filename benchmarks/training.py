"""Speed of training: how fast views are drawn, how fast the network steps, and how fast both go together.

Run with: python benchmarks/training.py [--recipe RECIPE] [--data SCANS] [--workers 0 1 2] [--steps 40]
      or: python benchmarks/training.py --devices 1 2 [--workers 1] [...]

The second compares the whole in so many processes (CPU) or on so many GPUs, which share the same batches. Without
`--data`, scans and label maps are phantoms of 180 mm. Each measurement is a process of its own, because a peak of
memory is never given back; on a machine with CUDA, network and training are measured with it and without.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import SimpleITK as sitk
import torch
from dsir_metric_train.loader import Loader, ViewPairs
from dsir_metric_train.loop import Contrast, train
from dsir_metric_train.recipe import Recipe
from dsir_metric_train.together import is_first

from dsir_metric.config import dump_toml, load_toml
from dsir_metric.phantom import make_pair

DEFAULT = Path(__file__).parents[1] / "train" / "recipes" / "default.toml"
FILES = {
    "scans": {"files": ("phantom/scan*.nii.gz",)},
    "labels": {"files": ("phantom/labels*.nii.gz",)},
    "pairs": {"files": ("phantom/scan_a.nii.gz",), "partners": ("phantom/scan_b.nii.gz",)},
}
PLAIN = {"outlines": (), "partner_outlines": (), "assume_spacing_mm": 0.0, "intensity": "mr"}


def write_phantoms(folder: Path) -> None:
    """Two scans and a label map of 180 voxels of 1 mm."""
    (folder / "phantom").mkdir()
    pair = make_pair(180, 1.0)
    for name, image in (("scan_a", pair.fixed), ("scan_b", pair.moving), ("labels", pair.fixed_labels)):
        sitk.WriteImage(image, str(folder / f"phantom/{name}.nii.gz"))


def of_phantoms(recipe: Recipe) -> Recipe:
    """The same shares of every kind of source, with the phantoms for files."""
    sources = [replace(s, **PLAIN, **FILES.get(s.kind, {})) for s in recipe.sources]
    return replace(recipe, sources=tuple(sources))


def measure_loader(recipe: Recipe, data: Path, kind: str, workers: int, steps: int) -> dict[str, float]:
    """Pairs a second of one kind of source, once its files are read."""
    chosen = replace(recipe, sources=tuple(s for s in recipe.sources if kind in (s.kind, "all")))
    chosen = replace(chosen, optimisation=replace(chosen.optimisation, chunk=steps))
    pairs = iter(Loader(ViewPairs(chosen, chosen.open_sources(data), 0, 2 * steps), workers, {}))
    for _ in range(steps // 2):
        next(pairs)
    start = time.perf_counter()
    count = sum(1 for _ in pairs)
    return {"pairs_per_second": count / (time.perf_counter() - start)}


def measure_network(recipe: Recipe, data: Path, steps: int) -> dict[str, float]:
    """Steps a second on one pair of views that is there already."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = Contrast(recipe, data).to(device)
    made = replace(recipe, sources=tuple(s for s in recipe.sources if not s.files))
    batch = tuple(t.to(device) for t in ViewPairs(made, made.open_sources(data), 0, 1).draw(0))
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-4)
    for k in range(steps + 3):
        if k == 3:
            start = _now(device)
        optimiser.zero_grad()
        module.contrast(batch)[0].backward()
        optimiser.step()
    return {"pairs_per_second": steps / (_now(device) - start)}


def measure_training(
    recipe: Recipe, data: Path, out: Path, workers: int, steps: int, devices: int = 1
) -> dict[str, float]:
    """The whole: the last three quarters of a short run, as its metrics.csv has them."""
    steps = 4 * max(1, steps // 4)
    short = replace(recipe, optimisation=replace(recipe.optimisation, steps=steps, chunk=steps // 4))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.toml"
        file.write_text(dump_toml(short))
        train(file, out, data_root=data, workers=workers, devices=devices, progress=False)
    if not is_first():  # began as the first one did, which tells
        raise SystemExit
    with (out / "log" / "metrics.csv").open() as table:
        rows = list(csv.DictReader(table))[1:]
    pairs = steps // 4 * recipe.optimisation.batch
    seconds = sum(pairs / float(row["pairs_per_second"]) for row in rows)
    return {
        "pairs_per_second": len(rows) * pairs / seconds,
        "waited_percent": 100 * sum(float(row["waited_s"]) for row in rows) / seconds,
    }


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def work(job: dict[str, object]) -> dict[str, float]:
    """One measurement, with the memory it needed, of this process and of its largest worker."""
    data, steps = Path(str(job["data"])), int(str(job["steps"]))
    recipe = replace(load_toml(str(job["recipe"]), Recipe), base="")  # any weights are as fast
    if job["phantoms"]:
        recipe = of_phantoms(recipe)
    if job["what"] == "loader":
        found = measure_loader(recipe, data, str(job["kind"]), int(str(job["workers"])), steps)
    elif job["what"] == "network":
        found = measure_network(recipe, data, steps)
    else:
        devices, batch = int(str(job.get("devices", 1))), int(str(job.get("batch", 1)))
        recipe = replace(recipe, optimisation=replace(recipe.optimisation, batch=batch))
        found = measure_training(recipe, data, Path(str(job["out"])), int(str(job["workers"])), steps, devices)
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found |= {"memory_mb": peaks[0] / 1024, "worker_mb": peaks[1] / 1024}
    if torch.cuda.is_available():
        found["gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def run(job: dict[str, object], device: str) -> dict[str, float]:
    """`work` in a process of its own."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    answer = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], env=os.environ | hidden, capture_output=True, text=True
    )
    if answer.returncode:
        raise SystemExit(answer.stderr)
    result: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return result


def jobs(options: argparse.Namespace, kinds: list[str]) -> list[tuple[str, str, dict[str, object]]]:
    """Name, device and settings of every measurement."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if options.devices:
        whole = {"what": "training", "workers": options.workers[0], "batch": math.lcm(*options.devices)}
        return [(f"training, {n} at once", devices[-1], {**whole, "devices": n}) for n in options.devices]
    listed = [
        (f"views from {kind}, {_processes(n)}", "cpu", {"what": "loader", "kind": kind, "workers": n})
        for kind in (*kinds, "all")
        for n in options.workers
    ]
    for device in devices:
        listed.append(("network alone", device, {"what": "network"}))
        listed += [(f"training, {_processes(n)}", device, {"what": "training", "workers": n}) for n in options.workers]
    return listed


def _processes(workers: int) -> str:
    return "no worker" if workers == 0 else f"{workers} worker{'s' if workers > 1 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=DEFAULT)
    parser.add_argument("--data", type=Path, help="folder of the recipe's files; phantoms by default")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--devices", type=int, nargs="+", help="compare the whole in so many processes")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        print(json.dumps(work(options.job)))
        return
    kinds = list(dict.fromkeys(source.kind for source in load_toml(options.recipe, Recipe).sources))
    print("| what | device | pairs/s | waited for views, % | memory, MB | a worker's, MB | GPU memory, MB |")
    print("|---|---|---|---|---|---|---|")
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        if options.data is None:
            write_phantoms(Path(scratch))
        common = {"recipe": str(options.recipe), "data": str(options.data or scratch), "steps": options.steps}
        for name, device, job in jobs(options, kinds):
            with tempfile.TemporaryDirectory() as out:
                found = run({**job, **common, "phantoms": options.data is None, "out": out}, device)
            columns = ("waited_percent", "memory_mb", "worker_mb", "gpu_mb")
            rest = " | ".join(f"{found[c]:.0f}" if c in found else "" for c in columns)
            print(f"| {name} | {device} | {found['pairs_per_second']:.2f} | {rest} |", flush=True)
            rates.append(found["pairs_per_second"])
    if options.devices:
        print(f"times as fast as with {options.devices[0]}:", *(f"{rate / rates[0]:.2f}" for rate in rates))


if __name__ == "__main__":
    main()
