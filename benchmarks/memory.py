"""Peak memory and seconds against the size of a volume, under limits: measured in processes of their own, and foretold.

Run with: python benchmarks/memory.py [--do represent register] [--sizes 128,128,75 ...] [--limits none 2GB 4GB]

Each row is a run of `dsir-metric represent` (to an .mha, which is deleted at once) or `dsir-metric register` on a
phantom head of 256 x 256 x 300 mm in CT and T1-like contrast, after the same command with `--dry-run`. The peak is
`ru_maxrss` of that process, whose parent stays small: a child starts with its parent's. Rows are kept in `--table` as
they come, so that an interrupted run goes on where it stopped; `--plot` draws all of them. 512 x 512 x 300 writes
7.5 GB and takes its time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = ["128,128,75", "192,192,112", "256,256,150", "384,384,225", "512,512,300"]
COMMAND = [sys.executable, "-c", "from dsir_metric_cli.main import main; main()"]
EXTENT_MM = (256.0, 256.0, 300.0)


def write_scans(size: tuple[int, ...], folder: Path) -> None:
    """A fixed and a moving scan of `size`, x, y, z: a small phantom, interpolated, in whole numbers."""
    import SimpleITK as sitk

    from dsir_metric.phantom import make_pair

    coarse = (96, 96, 112)
    spacing = tuple(e / n for e, n in zip(EXTENT_MM, coarse, strict=True))
    pair = make_pair(coarse, spacing, ("ct", "t1"))
    for image, name in ((pair.fixed, "fixed"), (pair.moving, "moving")):
        fine = sitk.ResampleImageFilter()
        fine.SetSize(size)
        fine.SetOutputSpacing([e / n for e, n in zip(EXTENT_MM, size, strict=True)])
        fine.SetOutputOrigin(image.GetOrigin())
        fine.SetOutputDirection(image.GetDirection())
        fine.SetOutputPixelType(sitk.sitkInt16)
        fine.SetDefaultPixelValue(float(sitk.GetArrayViewFromImage(image).min()))
        sitk.WriteImage(fine.Execute(image), str(folder / f"{name}.nii.gz"))


def peak(arguments: list[str]) -> tuple[float, float, str]:
    """Peak in MB, seconds and standard output of a command in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output = process.stdout.read()  # type: ignore[union-attr]
    errors = process.stderr.read()  # type: ignore[union-attr]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(errors)
    return usage.ru_maxrss * 1.024e-3, time.perf_counter() - start, output


def row(do: str, size: str, limit: str, threads: int) -> dict[str, Any]:
    """Measure one command; what --dry-run says of it comes first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, __file__, "--make", name, "--sizes", size], check=True)
        fixed, moving = str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")
        inputs = [fixed, "-o", str(folder / "dsir.mha")] if do == "represent" else [fixed, moving, "-o", f"{name}/out"]
        arguments = [do, *inputs, "--threads", str(threads), *([] if limit == "none" else ["--memory", limit])]
        told = peak([*arguments, "--dry-run"])[2]
        memory, seconds, _ = peak(arguments)
        found = {"do": do, "size": size, "limit": limit, "threads": threads, "peak_mb": memory, "seconds": seconds}
        found["forecast_mb"] = float(re.search(r"memory: (\d+)", told)[1])  # type: ignore[index]
        found["forecast"] = told
        if do == "register":
            result = json.loads((folder / "out" / "result.json").read_text())
            found["spacing_mm"] = result["working_spacing_mm"]
        return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Peak against volume, a line for each command and limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
    colours = {"none": "tab:red", "2GB": "tab:blue", "4GB": "tab:green"}
    for do, style in (("represent", "o-"), ("register", "s--")):
        for limit, colour in colours.items():
            some = sorted((voxels(r["size"]), r["peak_mb"] / 1e3) for r in rows if (r["do"], r["limit"]) == (do, limit))
            if some:
                label = f"{do}, {'no limit' if limit == 'none' else f'--memory {limit}'}"
                axes.plot(*zip(*some, strict=True), style, color=colour, label=label)
    for limit in (2, 4):
        axes.axhline(limit, color=colours[f"{limit}GB"], linewidth=0.6)
    axes.set(xscale="log", xlabel="million voxels", ylabel="peak memory (GB)", ylim=(0, None))
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def voxels(size: str) -> float:
    x, y, z = map(int, size.split(","))
    return x * y * z / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--do", nargs="+", default=["represent", "register"], choices=["represent", "register"])
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="X,Y,Z")
    parser.add_argument("--limits", nargs="+", default=["2GB", "4GB"], help="none for no limit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", type=Path, default=Path(__file__).with_name("memory.json"))
    parser.add_argument("--plot", type=Path, help="such as docs/memory.png")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        write_scans(tuple(map(int, options.sizes[0].split(","))), options.make)
        return
    rows = json.loads(options.table.read_text()) if options.table.exists() else []
    for do in options.do:
        for limit in options.limits:
            for size in options.sizes:
                if not any((r["do"], r["size"], r["limit"]) == (do, size, limit) for r in rows):
                    rows.append(row(do, size, limit, options.threads))
                    options.table.write_text(json.dumps(rows, indent=1) + "\n")
    print("| command | limit | size | million voxels | forecast MB | peak MB | seconds |")
    print("|---|---|---|---|---|---|---|")
    for r in sorted(rows, key=lambda r: (r["do"] == "register", r["limit"], voxels(r["size"]))):
        print(
            f"| {r['do']} | {r['limit']} | {r['size'].replace(',', ' x ')} | {voxels(r['size']):.1f} "
            f"| {r['forecast_mb']:.0f} | {r['peak_mb']:.0f} | {r['seconds']:.0f} |"
        )
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
