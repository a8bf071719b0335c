"""Engines side by side: each with its own metric for scans of different contrast, and with the DNS cosine.

Run with: python benchmarks/engines.py --judge regbench.py --work WORK [--tasks a,b] [--engines ants,greedy]
              [--channels 24,12,8,4] [--threads 1] [--out engines.json]

WORK holds the tasks that `regbench.py prepare` made. The engine's own metric (MI; NMI for greedy) runs with the
defaults of that engine, linear stages included; the DNS cosine runs as `register` does with that backend. `script` is
one SimpleITK script (rigid, affine, B-spline) with Mattes mutual information and, two lines changed, with the drop-in.
Each registration has a process of its own, so that its peak memory is its own. Records go to the JSON file one by one,
the table to standard output. Needs dsir-metric[elastix,ants,greedy].
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from accuracy import Record, find_tasks, load_judge, read_pair, task_facts

from dsir_metric import io
from dsir_metric.bridges import ENGINES, engine
from dsir_metric.errors import DsirError
from dsir_metric.register import EngineConfig, RegisterConfig, register
from dsir_metric.sitk import ImageRegistrationMethod

OWN = "own metric"
_RAS_LPS = np.diag([-1.0, -1.0, 1.0])


def native_ants(fixed: str, moving: str, threads: int) -> sitk.Transform:
    """`ants.registration` as it comes, but for the clock as seed: affine, then SyN, both by mutual information."""
    import ants

    ants.config.set_ants_deterministic(True, 1)
    images = ants.image_read(fixed), ants.image_read(moving)
    found = ants.registration(*images, type_of_transform="SyN", outprefix="native_")
    del threads  # ITK's environment variable says how many
    warp, affine = found["fwdtransforms"]
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(warp, sitk.sitkVectorFloat64))
    return sitk.CompositeTransform([sitk.ReadTransform(affine), field])


def native_greedy(fixed: str, moving: str, threads: int) -> sitk.Transform:
    """greedy's affine and deformable registration by normalised mutual information."""
    pair = ["-m", "NMI", "-i", fixed, moving]
    run = engine("greedy").bridge.run
    run(["greedy", "-d", "3", "-a", *pair, "-ia-image-centers", "-n", "100x50x10", "-o", "affine.mat"], threads)
    run(["greedy", "-d", "3", *pair, "-it", "affine.mat", "-n", "100x50x10", "-o", "warp.nii.gz"], threads)
    ras = np.loadtxt("affine.mat")
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((_RAS_LPS @ ras[:3, :3] @ _RAS_LPS).ravel().tolist())
    affine.SetTranslation((_RAS_LPS @ ras[:3, 3]).tolist())
    return sitk.CompositeTransform([affine, engine("greedy").bridge.read(Path())])


def native_elastix(fixed: str, moving: str, threads: int) -> sitk.Transform:
    """elastix' default parameter maps: rigid, affine and B-spline, by mutual information."""
    import itk

    maps = itk.ParameterObject.New()
    names = ("rigid", "affine", "bspline")
    for name in names:
        found = maps.GetDefaultParameterMap(name)
        maps.AddParameterMap({**found, "ITKTransformOutputFileNameExtension": ("tfm",), "WriteResultImage": ("false",)})
    method = itk.ElastixRegistrationMethod.New(itk.imread(fixed, itk.F), itk.imread(moving, itk.F))
    method.SetParameterObject(maps)
    method.SetOutputDirectory(".")
    method.SetNumberOfThreads(threads)
    method.UpdateLargestPossibleRegion()
    parts = [sitk.ReadTransform(f"TransformParameters.{k}.tfm") for k in reversed(range(len(names)))]
    return sitk.CompositeTransform(parts)


def simpleitk_script(fixed: sitk.Image, moving: sitk.Image, method_class: Any, metric: str) -> sitk.Transform:
    """Rigid, affine, then B-splines on a mesh that gets finer: the steps of the SimpleITK notebooks."""
    body = sitk.BinaryDilate(sitk.OtsuThreshold(fixed, 0, 1), [3] * 3)

    def method(optimised: sitk.Transform, before: sitk.Transform, shrink: tuple[int, ...]) -> Any:
        m = method_class()
        m.SetMetricAsDNSCosine() if metric == "dns" else m.SetMetricAsMattesMutualInformation(50)
        m.SetMetricFixedMask(body)
        m.SetMetricSamplingStrategy(m.RANDOM)
        m.SetInterpolator(sitk.sitkLinear)
        m.SetMetricSamplingPercentage(0.2, 1)
        m.SetShrinkFactorsPerLevel(shrink)
        m.SetSmoothingSigmasPerLevel([factor - 1 for factor in shrink])
        m.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        m.SetMovingInitialTransform(before)
        m.SetInitialTransform(optimised, True)
        return m

    centred = sitk.CenteredTransformInitializerFilter.GEOMETRY
    found = sitk.CompositeTransform(
        [sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), centred)]
    )
    for optimised in (sitk.Euler3DTransform(), sitk.AffineTransform(3)):
        linear = method(optimised, found, (4, 2, 1))
        linear.SetOptimizerAsRegularStepGradientDescent(2.0, 0.01, 100, 0.6, 1e-9)
        linear.SetOptimizerScalesFromPhysicalShift()
        linear.Execute(fixed, moving)
        found.AddTransform(optimised)
    spline = sitk.BSplineTransformInitializer(fixed, [5] * 3, 3)
    deformable = method(spline, found, (4, 2))
    deformable.SetOptimizerAsLBFGS2(1e-9, 20, deltaConvergenceTolerance=1e-6)
    deformable.SetInitialTransformAsBSpline(spline, True, [1, 2])
    deformable.Execute(fixed, moving)
    found.AddTransform(spline)
    return found


def native_script(fixed: str, moving: str, threads: int) -> sitk.Transform:
    """The script by Mattes mutual information."""
    del threads  # ITK's environment variable says how many
    pair = (sitk.ReadImage(name, sitk.sitkFloat32) for name in (fixed, moving))
    return simpleitk_script(*pair, sitk.ImageRegistrationMethod, "mattes")


NATIVE = {"script": native_script, "elastix": native_elastix, "ants": native_ants, "greedy": native_greedy}


def measure(judge: Path, task: Path, backend: str, channels: int | str | None, threads: int) -> Record:
    """Register one task and have it scored; `channels` is OWN for the engine's own metric. Call it in a new process."""
    evaluate = load_judge(judge).evaluate
    start = time.perf_counter()
    record: Record = {"task": task.name, "backend": backend, "channels": channels}
    transform = sitk.Transform(3, sitk.sitkIdentity)
    try:
        if channels == OWN:
            fixed, moving = (str((task / "in" / f"{k}.nii.gz").absolute()) for k in ("fixed", "moving"))
            with tempfile.TemporaryDirectory() as folder, chdir(folder):
                transform = NATIVE[backend](fixed, moving, threads)
        elif backend == "script":
            transform = simpleitk_script(*read_pair(task), ImageRegistrationMethod, "dns")
        else:
            config = RegisterConfig(backend=backend, threads=threads, engine=EngineConfig(channels=channels))
            result = register(*read_pair(task), config)
            transform = result.transform
            record |= {"undone": list(result.undone), "remark": result.stages[-1].remark}
    except (DsirError, RuntimeError) as error:
        record["failed"] = str(error)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    record |= {"seconds": time.perf_counter() - start, "megabytes": max(u.ru_maxrss for u in usage) / 1024}
    record["cpu_seconds"] = sum(u.ru_utime + u.ru_stime for u in usage)
    return {**record, **evaluate(str(task), transform)}


def apart(judge: Path, task: Path, backend: str, channels: int | str | None, threads: int) -> Record:
    """`measure` in a process of its own; where that dies, the record of a registration that did nothing."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, judge, task, backend, channels, threads).result()
        except BrokenProcessPool:
            facts = {"task": task.name, "backend": backend, "channels": channels, "failed": "crashed"}
            return facts | task_facts(task)["identity"]


def label(record: Record) -> str:
    """What a column is called."""
    channels = record["channels"]
    kind = channels if channels == OWN else "DNS" if channels is None else f"DNS, {channels} channels"
    return f"{record['backend']}, {kind}"


def table(records: list[Record], starts: dict[str, Record]) -> str:
    """Markdown: a line a task, a column a method; error, share of folded voxels, seconds, MB."""
    columns = list(dict.fromkeys(label(r) for r in records))
    lines = [f"| task | start | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for task, start in starts.items():
        cells = {label(r): _cell(r) for r in records if r["task"] == task}
        lines.append(f"| {task} | {_score(start)} | {' | '.join(cells.get(c, '') for c in columns)} |")
    return "\n".join(
        [
            *lines,
            "",
            "Mean error in mm, or Dice where no error is known; folded voxels in %; processor seconds; peak MB.",
        ]
    )


def _score(record: Record) -> str:
    return f"{record['epe_mean']:.2f}" if "epe_mean" in record else f"Dice {record['dice']:.3f}"


def _cell(record: Record) -> str:
    if "failed" in record:
        return f"failed: {record['failed']}"
    facts = f"{record['fold_pct']:.2f} %, {record['cpu_seconds']:.0f} s, {record['megabytes']:.0f} MB"
    return f"{_score(record)} ({facts})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", type=Path, required=True, help="path of regbench.py")
    parser.add_argument("--work", type=Path, required=True, help="folder of prepared tasks")
    parser.add_argument("--tasks", help="only these, separated by commas")
    parser.add_argument("--engines", default=",".join(NATIVE), help="only these, separated by commas")
    parser.add_argument("--channels", help="numbers of channels, separated by commas; default: each engine's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("engines.json"))
    options = parser.parse_args()
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(options.threads)
    counts = [int(n) for n in options.channels.split(",")] if options.channels else [None]
    engines = options.engines.split(",")
    methods = [("sitk", None)] + [(e, c) for e in engines for c in (OWN, *(counts if e in ENGINES else [None]))]
    tasks = find_tasks(options.work, options.tasks)
    records: list[Record] = []
    for task in tasks:
        for backend, channels in methods:
            records.append(apart(options.judge, task, backend, channels, options.threads))
            io.write_json({"records": records}, options.out)
            print(f"{task.name} {label(records[-1])}: {_cell(records[-1])}", file=sys.stderr, flush=True)
    print(table(records, {t.name: task_facts(t)["identity"] for t in tasks}))


if __name__ == "__main__":
    main()
