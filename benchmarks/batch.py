"""Studies of phantoms: pairs a minute, what the cache saves and changes, and what happens when workers are killed.

Run with: python benchmarks/batch.py [speed] [cache] [kill] [axes] (two minutes or less each on two cores)
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import SimpleITK as sitk

from dsir_metric import io
from dsir_metric.batch.outcome import Outcome
from dsir_metric.batch.pairs import Pair, read_pairs
from dsir_metric.batch.run import run_batch
from dsir_metric.geometry import Grid
from dsir_metric.phantom import make_pair
from dsir_metric.register import RegisterConfig, register
from dsir_metric.represent import Cache, Representer, represent_pair

QUICK = RegisterConfig(stages=("centre", "search", "rigid", "affine"), spacing_mm=6.0, threads=1)
WHOLE = RegisterConfig(spacing_mm=5.0, threads=1)
KILL_EVERY_S = 20.0


@dataclass(frozen=True)
class Study:
    """One fixed and many moving phantoms in a folder."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, count: int) -> Study:
        rows = ["id,fixed,moving"]
        for k in range(count):
            pair = make_pair(50, 4.0, ("t1", "flair"), seed=k)
            if k == 0:
                io.write_image(pair.fixed, folder / "fixed.nii.gz")
            io.write_image(pair.moving, folder / f"m{k}.nii.gz")
            rows.append(f"s{k:02},fixed.nii.gz,m{k}.nii.gz")
        (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
        return cls(folder)

    def pairs(self, out: str, config: RegisterConfig) -> tuple[Pair, ...]:
        return read_pairs(self.folder / "pairs.csv", self.folder / out, config.spacing_mm)

    def run(
        self, out: str, config: RegisterConfig, workers: int, cache: str | None
    ) -> tuple[float, tuple[Outcome, ...]]:
        """Seconds of a study, with the start of its workers, and its outcomes."""
        kept = None if cache is None else Cache(self.folder / cache)
        started, cpu = time.perf_counter(), cpu_seconds()
        outcomes = run_batch(self.pairs(out, config), self.folder / out, config, workers=workers, cache=kept)
        return time.perf_counter() - started, cpu_seconds() - cpu, outcomes


def speed(folder: Path, count: int = 6) -> None:
    """Pairs a minute: a plain loop, one worker, two."""
    study = Study.make(folder, count)
    started, cpu = time.perf_counter(), cpu_seconds()
    for pair in study.pairs("loop", QUICK):
        scans = pair.job.read()
        pair.job.output.mkdir(parents=True)
        pair.job.write(scans, scans.register(QUICK))
    show("plain loop", time.perf_counter() - started, cpu_seconds() - cpu, count)
    for workers in (1, 2):
        seconds, cpu, outcomes = study.run(f"out{workers}", QUICK, workers, f"cache{workers}")
        assert all(o.state == "done" for o in outcomes)
        show(f"{workers} worker(s)", seconds, cpu, count)


def cache(folder: Path) -> None:
    """One fixed, four moving: without the cache, with an empty one, with a full one; and how far results differ."""
    study = Study.make(folder, 4)
    for name, out, kept in (("no cache", "bare", None), ("empty cache", "cold", "c"), ("full cache", "warm", "c")):
        show(name, *study.run(out, WHOLE, 1, kept)[:2], 4)
    grid = Grid.of(io.read_image(folder / "fixed.nii.gz"))
    points = [tuple(p) for p in grid.points_mm().reshape(-1, 3)[::97].tolist()]
    away, apart = [], []
    for k in range(4):
        found = {out: io.read_transform(folder / out / f"s{k:02}" / "transform.h5") for out in ("bare", "cold", "warm")}
        mapped = {out: np.array([t.TransformPoint(p) for p in points]) for out, t in found.items()}
        away.append(np.linalg.norm(mapped["bare"] - mapped["cold"], axis=1))
        apart.append(np.abs(mapped["cold"] - mapped["warm"]).max())
    all_mm = np.concatenate(away)
    print(f"with and without: mean {all_mm.mean():.4f} mm, 99 % below {np.percentile(all_mm, 99):.4f} mm", end=", ")
    print(f"most {all_mm.max():.4f} mm")
    print(f"empty and full: {np.max(apart):.1e} mm")


def kill(folder: Path, count: int = 40) -> None:
    """A worker is killed at random every 20 s."""
    study = Study.make(folder, count)
    over, killed = threading.Event(), 0

    def killer() -> None:
        nonlocal killed
        while not over.wait(KILL_EVERY_S):
            workers = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
            if workers:
                os.kill(random.choice(workers).pid, signal.SIGKILL)
                killed += 1

    threading.Thread(target=killer, daemon=True).start()
    seconds, cpu, outcomes = study.run("out", QUICK, 2, "cache")
    over.set()
    show(f"2 workers, {killed} killed", seconds, cpu, count)
    states = [o.state for o in outcomes]
    print({state: states.count(state) for state in sorted(set(states))})


def axes(_: Path) -> None:
    """An oblique fixed scan: along its own axes, as `register` does, and along those that a study shares."""
    for degrees in (0, 8, 20):
        turn = sitk.Euler3DTransform((0, 0, 0), np.deg2rad(degrees), np.deg2rad(degrees / 2), 0).GetMatrix()
        pair = make_pair(50, 4.0, ("t1", "flair"), direction=turn)
        errors = []
        for shared in (False, True):
            both = represent_pair(pair.fixed, pair.moving, Representer(threads=1), spacing_mm=4.0, shared=shared)
            errors.append(pair.error_mm(register(pair.fixed, pair.moving, WHOLE, representations=both).transform))
        print(f"{degrees:2} degrees: {errors[0]:.2f} mm along its own axes, {errors[1]:.2f} mm along shared ones")


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def show(name: str, seconds: float, cpu_s: float, pairs: int) -> None:
    print(
        f"{name}, {pairs} pairs: {seconds:.1f} s, {60 * pairs / seconds:.1f} pairs a minute, {cpu_s:.1f} CPU s",
        flush=True,
    )


if __name__ == "__main__":
    parts = {"speed": speed, "cache": cache, "kill": kill, "axes": axes}
    for part in sys.argv[1:] or parts:
        work = Path(tempfile.mkdtemp())
        try:
            parts[part](work)
        finally:
            shutil.rmtree(work)
