"""What the native torch path costs on a GPU, in one run: descriptors, cosine, instance optimisation, a network.

Run with: python benchmarks/gpu.py [--size 192 160 192] [--network lapirn] [--out gpu.md] [--device cpu]

Writes markdown tables. Without a GPU it says so and exits with 2; `--device cpu` measures what the CPU can. Every row
is a process of its own, because a peak of memory is never given back. Seconds are those of the first call, which
includes compilation and the choice of algorithms, and the best of `--repeats` more. Memory is on a GPU what the process
took of it (neither torch nor ONNX Runtime gives back what it once took; the CUDA context is not counted) and, in
brackets, the peak of torch's tensors; on the CPU it is the growth of the largest resident set, imports and input not
counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from represent import volume

from dsir_metric.errors import DsirError
from dsir_metric.geometry import Grid
from dsir_metric.represent import Representer
from dsir_metric.torch.cosine import cosine_at
from dsir_metric.torch.describe import describe_image, network_device
from dsir_metric.torch.tensors import as_tensor

CHANNELS, SEED = 24, 7
COMPARED = 1 << 20  # points at which two implementations are compared
WARP_VOX = 3.0  # standard deviation of the control points of the deformation that instance optimisation undoes
Row = dict[str, float | str]
Measure = Callable[[argparse.Namespace], Row]


def synchronised(call: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done it."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class Meter:
    """Seconds and memory of calls from here on."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self._repeats = options.repeats
        if self.device.type == "cuda":
            torch.zeros(1, device=self.device)  # the context
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._before = self._taken()

    def __call__(self, call: Callable[[], object]) -> Row:
        seconds = [synchronised(call, self.device) for _ in range(1 + self._repeats)]
        row: Row = {"first_s": seconds[0], "best_s": min(seconds[1:]), "peak_mb": (self._taken() - self._before) / 1e6}
        if self.device.type == "cuda":
            row["tensors_mb"] = torch.cuda.max_memory_allocated() / 1e6
        return row

    def _taken(self) -> int:
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            return total - free
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def open_representer(options: argparse.Namespace) -> Representer:
    representer = Representer(options.model, device=options.device, threads=options.threads, tile=options.tile)
    if network_device(representer).type != options.device:
        raise DsirError(f"ONNX Runtime runs on {representer.provider}, not on {options.device}")
    return representer


def by_copies(options: argparse.Namespace) -> Row:
    """Descriptors to the host, then to the device."""
    image, meter = volume(options.size), Meter(options)
    representer = open_representer(options)
    return meter(lambda: as_tensor(representer(image), options.device))


def zero_copies(options: argparse.Namespace) -> Row:
    """Descriptors straight into tensors."""
    image, meter = volume(options.size), Meter(options)
    representer = open_representer(options)
    return meter(lambda: describe_image(representer, image))


def random_problem(options: argparse.Namespace, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Descriptors of every voxel, a moving volume, and neighbouring points off its voxels."""
    shape, device = options.size[::-1], options.device
    torch.manual_seed(SEED)
    moving = torch.randn(*shape, CHANNELS, device=device, dtype=dtype)
    fixed = torch.randn(int(np.prod(shape)), CHANNELS, device=device, dtype=dtype)
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).reshape(-1, 3)
    return fixed, moving, (index + 0.3).requires_grad_()


def cosine(implementation: str, dtype: torch.dtype) -> Measure:
    """Value and derivative at every voxel, and how far both are from plain torch."""

    def measure(options: argparse.Namespace) -> Row:
        fixed, moving, index = random_problem(options, dtype)
        meter = Meter(options)

        def call(count: int | None = None, name: str = implementation) -> list[torch.Tensor]:
            places = index[:count].detach().requires_grad_()
            value = cosine_at(fixed[:count], moving, places, name)[0]
            return [value.detach(), *torch.autograd.grad(value.sum(), places)]

        row = meter(call)
        row["ns_point"] = 1e9 * float(row["best_s"]) / len(index)
        pairs = zip(call(COMPARED), call(COMPARED, "torch"), strict=True)
        row["value_off"], row["slope_off"] = (float((a - b).abs().max()) for a, b in pairs)
        return row

    return measure


def warped_pair(options: argparse.Namespace) -> tuple[sitk.Image, sitk.Image]:
    """A scan, and the same under a smooth deformation."""
    fixed = volume(options.size)
    transform = sitk.BSplineTransformInitializer(fixed, [4, 4, 4], 3)
    count = transform.GetNumberOfParameters()
    transform.SetParameters(np.random.default_rng(SEED).normal(0, WARP_VOX, count).tolist())
    edge = sitk.ResampleImageFilter()
    edge.SetReferenceImage(fixed)
    edge.SetTransform(transform)
    edge.SetUseNearestNeighborExtrapolator(True)
    return fixed, edge.Execute(fixed)


def instance(parametrisation: str, velocity: bool) -> Measure:
    """Two scans to a deformation, their descriptors included; half precision on a GPU."""

    def measure(options: argparse.Namespace) -> Row:
        from dsir_metric.register.config import InstanceConfig
        from dsir_metric.torch.instance import optimise
        from dsir_metric.torch.objective import Volumes

        images = warped_pair(options)
        grid = Grid.of(images[0])
        config = InstanceConfig(parametrisation=parametrisation, velocity=velocity)  # type: ignore[arg-type]
        meter, losses = Meter(options), []
        representer = open_representer(options)
        mask = torch.ones(grid.shape, dtype=torch.bool, device=options.device)
        descriptor_seconds = []

        def described(image: sitk.Image) -> torch.Tensor:
            values = describe_image(representer, image)
            return values.half() if values.is_cuda else values

        def call() -> None:
            start = time.perf_counter()
            fixed, moving = (described(image) for image in images)
            descriptor_seconds.append(time.perf_counter() - start)
            volumes = Volumes(fixed, moving, mask, grid, grid)
            optimise(volumes, np.eye(4), config, on_iteration=lambda _, loss: losses.append(loss))

        row = meter(call)
        row["descriptors_s"] = min(descriptor_seconds)
        row["loss"] = losses[-1]
        return row

    return measure


def network(name: str) -> Measure:
    """One pass of a registration network over two volumes of descriptors; untrained, which costs the same."""

    def measure(options: argparse.Namespace) -> Row:
        if name == "lapirn":
            from dsir_metric.torch.lapirn import LapIRN, LapIRNConfig

            model: Any = LapIRN(LapIRNConfig())
        else:
            from dsir_metric.torch.voxelmorph import VoxelMorph, VoxelMorphConfig

            model = VoxelMorph(VoxelMorphConfig())
        shape = options.size[::-1]
        fixed, moving = (torch.randn(1, CHANNELS, *shape, device=options.device) for _ in range(2))
        meter = Meter(options)
        model = model.to(options.device).eval()

        def call() -> None:
            with torch.inference_mode():
                model.displacement(model(fixed, moving))

        return meter(call)

    return measure


NETWORKS = ("lapirn", "voxelmorph")
PARTS: dict[str, Measure] = {
    "descriptors by copies": by_copies,
    "descriptors, zero copies": zero_copies,
    "cosine torch float32": cosine("torch", torch.float32),
    "cosine torch float16": cosine("torch", torch.float16),
    "cosine compiled float32": cosine("compiled", torch.float32),
    "cosine triton float32": cosine("triton", torch.float32),
    "cosine triton float16": cosine("triton", torch.float16),
    "instance bspline": instance("bspline", velocity=False),
    "instance bspline velocity": instance("bspline", velocity=True),
    "instance dense": instance("dense", velocity=False),
    "instance dense velocity": instance("dense", velocity=True),
    **{f"network {name}": network(name) for name in NETWORKS},
}
TABLES = {
    "descriptors": ("first_s", "best_s", "peak_mb"),
    "cosine": ("ns_point", "peak_mb", "value_off", "slope_off"),
    "instance": ("first_s", "best_s", "descriptors_s", "peak_mb", "loss"),
    "network": ("first_s", "best_s", "peak_mb"),
}
HEADINGS = {
    "first_s": "first call, s",
    "best_s": "best, s",
    "peak_mb": "memory, MB",
    "ns_point": "ns a point",
    "value_off": "value off torch",
    "slope_off": "derivative off torch",
    "descriptors_s": "of these descriptors, s",
    "loss": "loss at the end",
}


def chosen(options: argparse.Namespace) -> list[str]:
    """Parts that make sense on this device."""
    elsewhere = "compiled" if options.device == "cuda" else "triton"
    names = [name for name in PARTS if elsewhere not in name and not name.startswith("network")]
    names += [f"network {options.network}"] if options.network else []
    return [name for name in names if not options.only or name.startswith(tuple(options.only))]


def in_its_own_process(name: str, arguments: list[str]) -> Row:
    command = [sys.executable, __file__, *arguments, "--part", name]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        return {"failed": (answer.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(answer.stdout.splitlines()[-1])


def cell(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if column == "peak_mb":
        tensors = f" ({row['tensors_mb']:.0f})" if "tensors_mb" in row else ""
        return f"{value:.0f}{tensors}"
    if column.endswith("_off"):
        return f"{value:.1e}"
    return f"{value:.1f}" if column == "ns_point" else f"{value:.3f}"


def markdown(rows: dict[str, Row]) -> str:
    """One table a group; a row that failed says why."""
    lines: list[str] = []
    for group, columns in TABLES.items():
        members = {name: row for name, row in rows.items() if name.startswith(group)}
        if not members:
            continue
        lines += [
            f"| {group} | " + " | ".join(HEADINGS[c] for c in columns) + " |",
            "| --- |" + " ---: |" * len(columns),
        ]
        for name, row in members.items():
            label = name.removeprefix(group).strip(" ,")
            cells = [f"failed: {row['failed']}"] if "failed" in row else [cell(row, c) for c in columns]
            lines.append(f"| {label} | " + " | ".join(cells + [""] * (len(columns) - len(cells))) + " |")
        lines.append("")
    return "\n".join(lines)


def machine(options: argparse.Namespace) -> str:
    size = " x ".join(map(str, options.size))
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} thread(s)"
    return (
        f"{size} voxels, {CHANNELS} channels; {where}; torch {torch.__version__}, Python {platform.python_version()}\n"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[192, 160, 192], help="voxels x, y, z")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", default="default", help="model of the descriptors")
    parser.add_argument("--tile", type=int, help="edge of a tile of the descriptors; chosen by default")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--network", choices=NETWORKS, help="also measure a registration network")
    parser.add_argument("--only", nargs="*", help="only parts that begin with one of these, such as cosine")
    parser.add_argument("--out", type=Path, help="file for the tables, besides standard output")
    parser.add_argument("--part", choices=tuple(PARTS), help="measure this part in this process, as JSON")
    options = parser.parse_args(arguments)
    if min(*options.size, options.repeats, options.threads) < 1:
        parser.error("--size, --repeats and --threads are positive")
    return options


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU here: nothing was measured; --device cpu measures what the CPU can", file=sys.stderr)
        return 2
    if options.part:
        torch.set_num_threads(options.threads)
        print(json.dumps(PARTS[options.part](options)))
        return 0
    rows = {}
    for name in chosen(options):
        rows[name] = in_its_own_process(name, given)
        print(f"{name}: {rows[name]}", file=sys.stderr)
    text = machine(options) + "\n" + markdown(rows)
    print(text)
    if options.out:
        options.out.write_text(text)
    return 1 if any("failed" in row for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
