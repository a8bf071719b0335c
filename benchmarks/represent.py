"""Cost of a representation: seconds, memory and GFLOP/s on the CPU, against a large matrix product in the same run.

Run with: python benchmarks/represent.py [--model default] [--size 192 160 192] [--threads 2]

The volume is a phantom of noise and blocks. Every measurement of memory is a process of its own, because a peak is
never given back. `--whole` also times the network as one graph without tiles (needs the extra `export`), the form that
has no cut at the feature map, on a cube of 96 voxels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

MATRIX = 3072


def volume(size: list[int]) -> sitk.Image:
    """Blocks of 8 voxels and noise; `size` is x, y, z."""
    random = np.random.default_rng(0)
    shape = size[::-1]
    blocks = random.random([-(-n // 8) for n in shape], np.float32).repeat(8, 0).repeat(8, 1).repeat(8, 2)
    blocks = blocks[: shape[0], : shape[1], : shape[2]]
    return sitk.GetImageFromArray(1000 * blocks + 20 * random.standard_normal(shape, np.float32))


def macs_per_voxel(config: dict[str, object]) -> float:
    """Multiplications with a weight a voxel of the image, of all 3^3 convolutions."""
    widths: list[int] = list(config["widths"])  # type: ignore[call-overload]
    again = int(config["convolutions"]) - 1  # type: ignore[call-overload]
    levels = [(1, *widths)[k] * w + again * w * w for k, w in enumerate(widths)]
    for k in range(len(widths) - 1):
        levels[k] += (widths[k] + widths[k + 1]) * widths[k] + again * widths[k] ** 2
    relations = 12 * len(config["dilations"])  # type: ignore[arg-type]
    levels[0] += widths[0] * int(config["features"]) + relations * (relations + int(config["channels"]))  # type: ignore[call-overload]
    return 27 * sum(count / 8**k for k, count in enumerate(levels))


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """One representation in this process."""
    from dsir_metric.represent import Representer

    image = volume(options.size)
    representer = Representer(options.model, device="cpu", threads=options.threads, tile=options.tile)
    start = time.perf_counter()
    dsir = representer(image)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    flop = 2 * macs_per_voxel(dict(representer.card.config)) * np.prod(options.size)
    return {
        "seconds": seconds,
        "peak_gb": peak / 1e9,
        "gflops": flop / seconds / 1e9,
        "sgemm": sgemm_gflops(),
        "hash": hashlib.sha256(dsir.values).hexdigest(),
    }


def in_its_own_process(arguments: list[str], tile: int | None, threads: int) -> dict[str, object]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    chosen = [] if tile is None else ["--tile", str(tile)]
    command = [sys.executable, __file__, *arguments, *chosen, "--measure"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def sgemm_gflops() -> float:
    matrix = np.random.default_rng(0).standard_normal((MATRIX, MATRIX), np.float32)
    return 2 * MATRIX**3 / best_seconds(lambda: matrix @ matrix, 3) / 1e9


def whole_graph_ratio(model: str, threads: int) -> float:
    """Seconds of one uncut graph over seconds of the model file in two entries, a cube of 96 voxels, same weights."""
    import onnxruntime
    import torch
    from dsir_metric_train.model import MasrNet, ModelConfig

    from dsir_metric.config import from_dict
    from dsir_metric.represent.loading import open_network

    image = np.random.default_rng(0).random((96, 96, 96), np.float32)
    halves = open_network(model, "cpu", threads)
    network = MasrNet(from_dict(ModelConfig, dict(halves.card.config))).eval()
    free = (dict.fromkeys((2, 3, 4), torch.export.Dim.DYNAMIC),)
    example = (torch.rand(1, 1, 24, 32, 40),)
    program = torch.onnx.export(network, example, dynamo=True, opset_version=18, dynamic_shapes=free, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_cpu_mem_arena = threads, False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.onnx"
        program.save(path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    whole = best_seconds(lambda: session.run(None, {name: image[None, None]}), 3)
    return whole / best_seconds(lambda: halves.descriptors(halves.features(image)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--size", type=int, nargs=3, default=[192, 160, 192])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiles", type=int, nargs="*", default=[96], help="other tiles, to compare the bits")
    parser.add_argument("--whole", action="store_true", help="compare with one uncut graph")
    parser.add_argument("--tile", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    arguments = ["--model", options.model, "--threads", str(options.threads), "--size", *map(str, options.size)]
    print(f"DSIR of {' x '.join(map(str, options.size))} voxels, {options.threads} threads\n")
    print("| tile | seconds | peak memory | GFLOP/s | sgemm GFLOP/s | SHA-256 |")
    print("|---|---|---|---|---|---|")
    for tile in (None, *options.tiles):
        found = in_its_own_process(arguments, tile, options.threads)
        print(
            f"| {tile or 'default'} | {found['seconds']:.1f} | {found['peak_gb']:.2f} GB "
            f"| {found['gflops']:.0f} | {found['sgemm']:.0f} | {found['hash'][:12]} |"
        )
    if options.whole:
        print(f"\nOne uncut graph takes {whole_graph_ratio(options.model, options.threads):.2f} times as long (96^3).")


if __name__ == "__main__":
    main()
