"""Kill every command that writes, at every moment, and fill its disk: nothing is half-written, the next run cleans up.

Run with: python benchmarks/kills.py [--kills 15] [--commands register represent-zarr] (a quarter of an hour on two
cores with the defaults). Commands are killed by SIGTERM and SIGKILL in turn: at moments spread over a whole run, and,
every second time, as soon as a temporary file is there. The disk is a tmpfs of 2 MB with ever less room, which needs
root. Ends with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dsir_metric import io
from dsir_metric.errors import DsirError
from dsir_metric.phantom import make_pair
from dsir_metric.represent import load_card

MAIN = "from dsir_metric_cli.main import main; main()"
DISK_BYTES = 2 << 20
FREE_BYTES = (0, 4096, 8192, 20_000, 60_000, 200_000, 500_000, 1_000_000)
TERMINATED = 128 + signal.SIGTERM
QUICK = ("--threads", "1", "--spacing", "6")


@dataclass(frozen=True)
class Command:
    """A command that writes, and what must hold of its output folder at any moment.

    Parameters
    ----------
    name : str
    arguments : callable
        The command line, given the output folder.
    """

    name: str
    arguments: Callable[[Path], Sequence[object]]

    def start(self, out: Path) -> subprocess.Popen[str]:
        """A process of its own, in a process group of its own."""
        line = [sys.executable, "-c", MAIN, *map(str, self.arguments(out))]
        return subprocess.Popen(
            line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )


def commands(scans: Path) -> dict[str, Command]:
    """The commands, on the phantoms of `make_scans`."""
    fixed, moving = scans / "fixed.nii.gz", scans / "moving.nii.gz"
    register = ("register", fixed, moving, "-q", *QUICK, "--moving-labels", scans / "moving_labels.nii.gz")
    represent = ("represent", fixed, "--threads", "1")
    table = scans / "pairs.csv"
    train = ("--steps", "2", "--crop", "32", "--workers", "0")
    found = [
        Command("register", lambda out: (*register, "--stages", "centre,rigid", "-o", out)),
        Command("register-zarr", lambda out: (*register, "--stages", "centre", "--format", ".ome.zarr", "-o", out)),
        Command(
            "register-batch",
            lambda out: ("register-batch", table, "-q", *QUICK, "--stages", "centre", "--workers", "1", "-o", out),
        ),
        *(
            Command(f"represent-{ending[1:].split('.')[-1]}", lambda out, e=ending: (*represent, "-o", out / f"r{e}"))
            for ending in (".nii.gz", ".mha", ".ome.zarr", ".npz")
        ),
        Command("represent-for", lambda out: (*represent, moving, "--for", "elastix", "-o", out)),
        Command("export-triton", lambda out: ("export", "--triton", out)),
        Command("train", lambda out: ("train", scans / "folder", *train, "-o", out)),
    ]
    return {command.name: command for command in found}


def make_scans(folder: Path) -> None:
    """Small phantoms, a table of two pairs of them, and a folder to train on."""
    pair = make_pair(44, 4.0)
    for name in ("fixed", "moving", "moving_labels"):
        io.write_image(getattr(pair, name), folder / f"{name}.nii.gz")
    (folder / "pairs.csv").write_text("id,fixed,moving\na,fixed.nii.gz,moving.nii.gz\nb,moving.nii.gz,fixed.nii.gz\n")
    (folder / "folder").mkdir()
    for k in range(3):
        io.write_image(make_pair(44, 4.0, seed=k).fixed, folder / "folder" / f"{k}.nii.gz")


def kill(command: Command, out: Path, number: signal.Signals, delay_s: float, *, writing: bool) -> list[str]:
    """Kill a run and look at what it leaves; what is wrong.

    Parameters
    ----------
    command : Command
    out : Path
        An existing folder.
    number : signal.Signals
    delay_s : float
        After the start, or with `writing` after the first temporary file.
    writing : bool
    """
    before = set(hidden(out))  # what an earlier SIGKILL left, which this run may not live to sweep
    process = command.start(out)
    while writing and process.poll() is None and not set(hidden(out)) - before:
        time.sleep(0.0005)
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay_s)
    process.send_signal(number)
    try:
        told = process.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        told = ""
    finally:
        with suppress(ProcessLookupError):  # workers
            os.killpg(process.pid, signal.SIGKILL)
    wrong = [f"exit code {process.returncode}"] if process.returncode not in expected(number) else []
    if "Traceback" in told or told.count("error: ") > 1:
        wrong.append(f"on the screen: {told[-600:]}")
    left = set(hidden(out)) - before
    if number == signal.SIGTERM and left:
        wrong.append(f"left {sorted(left)}")
    return wrong + damage(out)


def expected(number: signal.Signals) -> tuple[int, ...]:
    """Exit codes of a run that a signal found at work, done, or before it had begun to listen."""
    return (0, -number) if number == signal.SIGKILL else (0, -number, TERMINATED)


def again(command: Command, out: Path) -> list[str]:
    """Run a command to its end in a folder where others were killed; what is wrong."""
    process = command.start(out)
    told = process.communicate(timeout=600)[1]
    wrong = [] if process.returncode == 0 else [f"the next run ends with {process.returncode}: {told[-600:]}"]
    return wrong + [f"the next run leaves {name}" for name in hidden(out)] + damage(out)


def fill(command: Command, disk: Path, free: int) -> list[str]:
    """Run a command with so many bytes of room on its disk; what is wrong."""
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, DISK_BYTES - free - 4096)  # the folder itself takes nothing in a tmpfs
        out = disk / "out"
        with suppress(OSError):
            out.mkdir()
        process = command.start(out)
        told = process.communicate(timeout=600)[1]
    (disk / "ballast").unlink()
    lines = [line for line in told.splitlines() if not line.startswith("warning: ")]
    failed_pairs = process.returncode == 1 and command.name == "register-batch"
    wrong = []
    if process.returncode != 0 and not failed_pairs and (process.returncode != 2 or len(lines) != 1):
        wrong.append(f"exit code {process.returncode}, {len(lines)} lines: {told[:600]}")
    return wrong + [f"left {name}" for name in hidden(out)] + damage(out)


def hidden(out: Path) -> list[str]:
    """Temporary files in a folder and those in it."""
    return sorted(str(path.relative_to(out)) for path in out.rglob(".dsir-*-*"))  # not .dsir-cache


def damage(out: Path) -> list[str]:
    """Files under their final names that are not whole."""
    wrong = []
    for path in out.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(out).parts) or ".zarr" in str(path.parent):
            continue
        try:
            _read(path)
        except (DsirError, RuntimeError, OSError, ValueError, KeyError) as error:
            wrong.append(f"{path.relative_to(out)} is damaged: {error}")
    return wrong


def _read(path: Path) -> None:
    if path.name == "result.json":
        if not io.outputs_are_whole(path.parent, json.loads(path.read_text())):
            raise ValueError("it stands beside files of another run")
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".zarr":
        io.open_zarr(path)[:, :, :]
    elif path.name.endswith((".nii.gz", ".nii", ".mha")):
        sitk.ReadImage(str(path))
    elif path.suffix == ".npz":
        np.load(path)["values"]
    elif path.suffix == ".h5":
        io.read_transform(path)
    elif path.suffix == ".csv":
        list(csv.reader(path.read_text().splitlines(), strict=True))
    elif path.suffix == ".onnx" and path.parent.name != "1":  # in a repository it has no card
        load_card(path)


@contextmanager
def small_disk() -> Iterator[Path]:
    """A tmpfs; needs root."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
        if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode != 0:
            raise PermissionError(f"{folder}: a tmpfs cannot be mounted; run this as root, in a container with rights")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def sweep_kills(command: Command, folder: Path, count: int) -> list[str]:
    """Kill one command `count` times in one folder; what is wrong."""
    out = folder / command.name
    out.mkdir()
    begin = time.monotonic()
    wrong = again(command, out)
    whole_s = time.monotonic() - begin
    for k in range(count):
        number, writing = (signal.SIGTERM, signal.SIGKILL)[k % 2], k // 2 % 2 == 1
        delay_s = 0.02 * whole_s * k / count if writing else whole_s * (0.3 + 0.75 * k / count)
        for what in kill(command, out, number, delay_s, writing=writing):
            wrong.append(f"{number.name} {'while writing' if writing else ''} +{delay_s:.2f} s: {what}")
    return wrong + again(command, out)


def sweep_disk(command: Command) -> list[str]:
    """Run one command with ever more room on its disk; what is wrong."""
    wrong = []
    for free in FREE_BYTES:
        with small_disk() as disk:
            wrong += [f"{free} bytes free: {what}" for what in fill(command, disk, free)]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=15, help="of each command")
    parser.add_argument("--commands", nargs="*", help="by default all")
    options = parser.parse_args()
    found = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scans = folder / "scans"
        scans.mkdir()
        make_scans(scans)
        for name, command in commands(scans).items():
            if options.commands and name not in options.commands:
                continue
            wrong = sweep_kills(command, folder, options.kills)
            if hasattr(os, "geteuid") and os.geteuid() == 0:
                wrong += sweep_disk(command)
            found += len(wrong)
            print(f"{name}: {options.kills} kills, {len(wrong)} findings", flush=True)
            for what in wrong:
                print(f"  {what}", flush=True)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
