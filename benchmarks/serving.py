"""Cost of a representation that a server makes: seconds of transfer, overhead, many clients, broken connections.

Run with: python benchmarks/serving.py [--size 96] [--threads 1] [--requests 1000] [--out serving.json]

Needs the extras `remote` and `serve`. A server is started on this machine for each precision, so that the network is
the loopback device: what is measured is packing, unpacking and copying, and how protocols differ in it. The seconds of
computing are the server's own (its metric request_predict_seconds); the rest of a request is called transfer. The
overhead is that of the rest over the computing of the same request, since a machine that others use is never the same.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import SimpleITK as sitk

from dsir_metric.represent import Representer
from dsir_metric.represent.remote import RemoteNetwork

TINY = 12  # voxels along the edge of the many small requests


def volume(size: int) -> np.ndarray:
    """Blocks and noise in [0, 1]."""
    source = np.random.default_rng(0)
    blocks = source.random([-(-size // 8)] * 3, np.float32).repeat(8, 0).repeat(8, 1).repeat(8, 2)
    noisy = blocks[:size, :size, :size] + 0.02 * source.standard_normal([size] * 3, np.float32)
    return np.clip(noisy, 0, 1)


@contextmanager
def served(*options: str) -> Iterator[dict[str, str]]:
    """Addresses of a server that runs meanwhile."""
    command = ["-c", "from dsir_metric_cli.main import main; main()", "serve", "--http-port", "0", "--grpc-port", "0"]
    process = subprocess.Popen([sys.executable, *command, *options], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = next(filter(None, (re.search(r"at (http\S+) and (grpc\S+)", line) for line in process.stderr)), None)
        if found is None:
            raise SystemExit("the server did not start; pip install 'dsir-metric[serve]'")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield {"http": found[1], "grpc": found[2]}
    finally:
        process.terminate()
        process.wait(60)


def computing_seconds(addresses: dict[str, str]) -> float:
    """Seconds that the server has spent within its model so far."""
    metrics = urlopen(addresses["http"].partition("/v2")[0] + "/metrics", timeout=20).read().decode()
    return float(re.findall(r"request_predict_seconds_sum\S* (\S+)", metrics)[0])


def best(call: Callable[[], float], repeats: int) -> float:
    return min(call() for _ in range(repeats))


def transfer(image: np.ndarray, threads: int, repeats: int) -> list[dict[str, object]]:
    """A row for each protocol and precision, and one for the network of this process."""
    local = Representer(device="cpu", threads=threads)

    def here() -> float:
        start = time.perf_counter()
        local.describe(image)
        return time.perf_counter() - start

    expected, local_s = local.describe(image), best(here, repeats)
    rows: list[dict[str, object]] = [{"way": "local", "precision": "fp32", "seconds": local_s}]
    for precision, options in (("fp32", ["--fp32"]), ("fp16", [])):
        with served("--threads", str(threads), *options) as addresses:
            for way, address in addresses.items():
                network = RemoteNetwork(address)
                out = np.empty((*image.shape, network.card.channels), np.float32)
                network.describe(image[:16, :16, :16], out[:16, :16, :16])
                taken = []
                for _ in range(repeats):
                    before, start = computing_seconds(addresses), time.perf_counter()
                    network.describe(image, out)
                    total = time.perf_counter() - start
                    taken.append((total, computing_seconds(addresses) - before))
                total, computed = min(taken)
                rows.append(
                    {
                        "way": way,
                        "precision": precision,
                        "seconds": total,
                        "computing_s": computed,
                        "transfer_s": total - computed,
                        "overhead": total / computed - 1,
                        "largest_difference": float(np.abs(out - expected).max()),
                    }
                )
    return rows


def crowd(threads: int, each: int) -> list[dict[str, object]]:
    """Small requests a second, of 1, 2, 4 and 8 clients at the same time."""
    image = volume(32)
    rows: list[dict[str, object]] = []
    with served("--threads", "1", "--concurrency", str(threads)) as addresses:
        for way, address in addresses.items():
            network = RemoteNetwork(address)
            for clients in (1, 2, 4, 8):
                outs = [np.empty((*image.shape, network.card.channels), np.float32) for _ in range(clients)]

                def work(out: np.ndarray, network: RemoteNetwork = network) -> None:
                    for _ in range(each):
                        network.describe(image, out)

                start = time.perf_counter()
                with ThreadPoolExecutor(clients) as pool:
                    list(pool.map(work, outs))
                rate = clients * each / (time.perf_counter() - start)
                rows.append({"way": way, "clients": clients, "requests_a_second": rate})
    return rows


class BreakingRelay:
    """Passes bytes on to a server and breaks every hundredth answer's connection within it."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._random = random.Random(0)
        self.broken = 0
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            server = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                if answers and len(data) > 4096 and self._random.random() < 0.01:
                    self.broken += 1
                    target.sendall(data[:1000])
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def endurance(requests: int) -> list[dict[str, object]]:
    """Requests of four clients through a relay that breaks about one answer in a hundred."""
    image = volume(TINY)
    expected = Representer(device="cpu", threads=1).describe(image)
    rows: list[dict[str, object]] = []
    with served("--threads", "1", "--fp32") as addresses:
        for way, address in addresses.items():
            relay = BreakingRelay(int(re.findall(r":(\d+)/", address)[0]))
            network = RemoteNetwork(re.sub(r":\d+/", f":{relay.port}/", address))

            def right(_: int, network: RemoteNetwork = network) -> bool:
                out = np.empty_like(expected)
                network.describe(image, out)
                return bool(np.abs(out - expected).max() < 1e-5)

            start = time.perf_counter()
            with ThreadPoolExecutor(4) as pool:
                outcome = list(pool.map(right, range(requests // 2)))
            rows.append(
                {
                    "way": way,
                    "requests": len(outcome),
                    "right": sum(outcome),
                    "broken_connections": relay.broken,
                    "seconds": time.perf_counter() - start,
                }
            )
    return rows


def show(title: str, rows: list[dict[str, object]]) -> None:
    print(f"\n{title}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        cells = (row.get(name, "") for name in names)
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="edge of the volume in voxels")
    parser.add_argument("--threads", type=int, default=1, help="of the network; requests at once of the crowd")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--each", type=int, default=4, help="requests of each client of the crowd")
    parser.add_argument("--requests", type=int, default=1000, help="through broken connections")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(options.threads)
    figures = {
        f"{options.size}^3 voxels": transfer(volume(options.size), options.threads, options.repeats),
        "clients at the same time, 32^3 voxels, fp16": crowd(options.threads, options.each),
        f"broken connections, {TINY}^3 voxels, fp32": endurance(options.requests),
    }
    for title, rows in figures.items():
        show(title, rows)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
