"""A study: the table is checked, pairs are done once, and nothing is lost when something is killed."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from dsir_metric_cli.main import app

from dsir_metric import io
from dsir_metric.batch import cluster
from dsir_metric.batch.cluster import memory_of, pairs_at_once
from dsir_metric.batch.job import Job, Scans
from dsir_metric.batch.outcome import Outcome, write_table
from dsir_metric.batch.pairs import Pair, read_pairs
from dsir_metric.batch.run import _outcome, run_batch
from dsir_metric.batch.work import Work
from dsir_metric.errors import ConfigError, DsirError, MissingDependencyError, RegistrationError
from dsir_metric.phantom import PhantomPair
from dsir_metric.register import RegisterConfig, register
from dsir_metric.register.config import LapirnConfig
from dsir_metric.register.lapirn import network_path
from dsir_metric.represent import Cache
from dsir_metric.represent.zoo import model_path

psutil = pytest.importorskip("psutil")
pytest.importorskip("distributed")

QUICK = RegisterConfig(stages=("centre", "rigid"), threads=1, spacing_mm=9.0)
OPTIONS = ["--stages", "centre,rigid", "--spacing", "9", "--threads", "1"]
MAIN = "from dsir_metric_cli.main import main\nif __name__ == '__main__': main()"
FILES = {"transform.h5", "moved.nii.gz", "result.json"}


@pytest.fixture
def study(tmp_path: Path, pair: PhantomPair) -> Path:
    """A table of four pairs that have one fixed scan, with labels."""
    for name in ("fixed", "fixed_labels", "moving_labels"):
        io.write_image(getattr(pair, name), tmp_path / f"{name}.nii.gz")
    rows = []
    for k in range(4):
        moving = sitk.Image(pair.moving)
        moving.SetOrigin([o + 2.0 * k for o in moving.GetOrigin()])
        io.write_image(moving, tmp_path / f"m{k}.nii.gz")
        rows.append({"moving": f"m{k}.nii.gz"})
    return table(tmp_path, rows)


def table(folder: Path, rows: list[dict[str, str]]) -> Path:
    """A table; what a row leaves open is the phantom."""
    whole = [{"fixed": "fixed.nii.gz", "moving": "m0.nii.gz", **row} for row in rows]
    names = list(dict.fromkeys(name for row in whole for name in row))
    path = folder / "pairs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(whole)
    return path


def states(out: Path) -> dict[str, str]:
    with (out / "table.csv").open(newline="") as file:
        return {row["id"]: row["state"] for row in csv.DictReader(file)}


BAD: dict[str, tuple[list[dict[str, str]], str]] = {
    "missing": ([{}, {"moving": "none.nii.gz"}], "row 3: .*none.nii.gz: there is no such file"),
    "unknown column": ([{"movin_mask": "x"}], "row 1: the column 'movin_mask' is unknown; did you mean moving_mask?"),
    "same id": ([{"id": "a"}, {"id": "b"}, {"id": "A"}], "row 4: the id 'A' is that of row 2"),
    "same scans": ([{}, {}], "row 3: the id 'm0_to_fixed' is that of row 2"),
    "long id": ([{"id": "ä" * 101}], "row 2: the id 'ä+...ä+' cannot name a folder"),
    "id of the table": ([{"id": "Table.csv"}], "row 2: the id 'Table.csv' cannot name a folder"),
    "id that is a path": ([{"id": "../a"}], "row 2: the id '../a' cannot name a folder"),
    "no header of an image": ([{"moving": "pairs.csv"}], "row 2: .*pairs.csv: is no image"),
    "no fixed": ([{"fixed": ""}], "row 2: the cell fixed is empty"),
    "labels of one": ([{"fixed_labels": "fixed_labels.nii.gz"}], "row 2: fixed labels came without moving labels"),
    "mask elsewhere": ([{"moving_mask": "small.nii.gz"}], "row 2: .*small.nii.gz: lies on another grid"),
    "no transform": ([{"initial_transform": "pairs.csv"}], "row 2: .*holds no transform"),
    "four axes": ([{"moving": "series.nii.gz"}], r"row 2: .*has 4 axes \(40, 40, 40, 2\)"),
    "none": ([], "has no pairs"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_told_by_its_number_before_anything_starts(study: Path, case: str, pair: PhantomPair) -> None:
    rows, message = BAD[case]
    io.write_image(pair.moving[1:, :, :] > 100, study.parent / "small.nii.gz")
    sitk.WriteImage(sitk.JoinSeries([pair.moving, pair.moving]), str(study.parent / "series.nii.gz"))
    out = study.parent / "out"
    path = table(study.parent, rows) if rows else study
    if not rows:
        path.write_text("fixed,moving\n\n")
    result = CliRunner().invoke(app, ["register-batch", str(path), "-o", str(out)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr), result.stderr
    assert not out.exists()


def test_rows_become_jobs(study: Path) -> None:
    text = (
        "id,moving,fixed,moving_mask\ns-1,m1.nii.gz, fixed.nii.gz ,\n,,,\n,m0.nii.gz,fixed.nii.gz,fixed_labels.nii.gz\n"
    )
    study.write_text("\ufeff" + text, encoding="utf-8")
    first, second = read_pairs(study, study.parent / "out", 9.0)
    assert (first.id, second.id) == ("s-1", "m0_to_fixed")
    assert first.job.fixed == study.parent / "fixed.nii.gz"
    assert first.job.moving_mask is None
    assert second.job.moving_mask == study.parent / "fixed_labels.nii.gz"
    assert (first.voxels, first.working_voxels) == (2 * 40**3, 2 * 20**3)
    (study.parent / "m0.nii.gz").rename(study.parent / "Größe 1, (b).nii.gz")
    study.write_text('fixed,moving\r\n"fixed.nii.gz","Größe 1, (b).nii.gz"\r\n', encoding="utf-8")
    assert [p.id for p in read_pairs(study, study.parent / "out", 9.0)] == ["Größe_1___b__to_fixed"]
    study.write_text("\ufefffixed;moving\nfixed.nii.gz;m1.nii.gz\n", encoding="utf-8")
    assert [p.id for p in read_pairs(study, study.parent / "out", 9.0)] == ["m1_to_fixed"]
    study.write_text("fixed,moving\na,b,c\n")
    with pytest.raises(DsirError, match="row 2: has 3 cells, the header has 2"):
        read_pairs(study, "out")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work.of(QUICK, Cache(tmp_path / "cache"))


def test_a_pair_is_what_register_makes_of_it(study: Path, work: Work, pair: PhantomPair) -> None:
    job = read_pairs(study, study.parent / "out", 9.0)[0].job
    truth = register(pair.fixed, pair.moving, QUICK)
    for used, most_mm in ((replace(work, cache=None), 1e-3), (work, 0.02)):
        (job.output / "result.json").unlink(missing_ok=True)
        assert used(job).state == "done"
        found = io.read_transform(job.output / "transform.h5")
        away = [np.subtract(found.TransformPoint(p), truth.transform.TransformPoint(p)) for p in np.eye(3) * 60.0]
        assert np.abs(away).max() < most_mm


def test_what_is_done_is_kept_until_inputs_or_settings_change(study: Path, work: Work) -> None:
    rows = [{"fixed_labels": "fixed_labels.nii.gz", "moving_labels": "moving_labels.nii.gz"}]
    job = read_pairs(table(study.parent, rows), study.parent / "out", 9.0)[0].job
    done = work(job)
    assert (done.state, done.undone, done.error, done.notes) == ("done", (), "", ())
    assert done.dice_after > done.dice_before + 0.1
    assert done.mean_cosine > 0.8
    assert {p.name for p in job.output.iterdir()} == FILES | {"moved_labels.nii.gz"}
    assert work(job) == replace(done, state="kept")
    assert replace(work, cache=None, config=replace(QUICK, threads=2))(job).state == "kept"
    spoilt = {name: (job.output / name).read_bytes() for name in ("transform.h5", "moved_labels.nii.gz", "result.json")}
    for name, content in spoilt.items():
        (job.output / name).write_bytes(b"")
        assert work(job).state == "done", name
        assert (job.output / name).stat().st_size > len(content) / 2
    assert replace(work, config=replace(QUICK, seed=1))(job).state == "done"
    other = replace(work, config=replace(QUICK, seed=1), model_hash="other")
    assert other.kept(job) is None
    assert "the models here are not those that the study began with" in other(job).error
    io.write_image(sitk.ReadImage(str(job.moving)) + 1.0, job.moving)
    assert work(job).state == "done"
    bare = replace(job, fixed_labels=None, moving_labels=None)
    assert work(bare).state == "done"
    assert {p.name for p in job.output.iterdir()} == FILES


def test_what_is_recorded_are_the_files_that_were_read(study: Path, work: Work) -> None:
    """A scan that changes while it is registered is done again."""

    job = read_pairs(study, study.parent / "out", 9.0)[0].job

    class Changing(Job):
        def read(self) -> Scans:
            scans = super().read()
            io.write_image(scans.moving + 1.0, self.moving)
            return scans

    assert work(Changing(**vars(job))).state == "done"
    assert work(job).state == "done"
    assert work(job).state == "kept"


def test_another_registration_network_behind_the_same_path(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "network.onnx"
    shutil.copy(network_path("lapirn"), file)
    config = replace(QUICK, backend="lapirn", lapirn=LapirnConfig("network.onnx"))
    first = Work.of(config)
    assert first.config.lapirn.model == str(file)  # a worker may run in another folder
    assert Work.of(config).settings_hash == first.settings_hash
    file.write_bytes(file.read_bytes() + b"\0")
    assert Work.of(config).settings_hash != first.settings_hash
    job = read_pairs(study, study.parent / "out", 9.0)[0].job
    assert "the models here are not those that the study began with" in first(job).error
    assert Work.of(QUICK).config == QUICK
    assert Work.of(replace(QUICK, model=str(model_path("default")))).settings_hash != Work.of(QUICK).settings_hash


def test_two_commands_in_one_folder(study: Path) -> None:
    out = study.parent / "out"
    out.mkdir()
    with io.locked(out / ".lock", wait=False) as had:
        assert had
        result = CliRunner().invoke(app, ["register-batch", str(study), "-o", str(out), *OPTIONS])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "another register-batch is at work there" in result.stderr
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_worker_is_lost_and_its_scan_too(study: Path, work: Work) -> None:
    pair = read_pairs(study, study.parent / "out", 9.0)[0]

    class Lost:
        status = "lost"

        def result(self) -> None:
            raise OSError("gone")

        def cancelled(self) -> bool:
            return False

    assert work(pair.job).state == "done"
    assert _outcome(Lost(), pair, work).state == "kept"  # type: ignore[arg-type]
    pair.job.moving.unlink()
    assert "the scheduler was lost" in _outcome(Lost(), pair, work).error  # type: ignore[arg-type]


def test_a_pair_that_fails_says_why(study: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    job = read_pairs(study, study.parent / "out", 9.0)[0].job
    job.moving.write_bytes(job.moving.read_bytes()[:5000])
    failed = work(job)
    assert (failed.id, failed.state) == ("m0_to_fixed", "failed")
    assert "m0.nii.gz: is truncated" in failed.error
    assert list(job.output.iterdir()) == []
    job.moving.unlink()
    assert "cannot be read (No such file" in work(job).error
    monkeypatch.setattr(type(job), "read", lambda _: 1 / 0)
    assert "ZeroDivisionError: division by zero" in work(replace(job, moving=job.fixed)).error


def test_pairs_at_once_fit_cores_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(None, 2 * 100**3, 2 * 100**3)  # type: ignore[arg-type]
    assert 0.86e9 < memory_of(pair, QUICK) < 2e9  # 0.86 GB were measured
    assert memory_of(pair, replace(QUICK, backend="ants")) == 2 * memory_of(pair, QUICK)
    monkeypatch.setattr("dask.system.CPU_COUNT", 8)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 100 * memory_of(pair, QUICK))
    assert [pairs_at_once([pair] * n, QUICK) for n in (3, 20)] == [3, 8]
    assert pairs_at_once([pair] * 20, replace(QUICK, threads=4)) == 2
    assert pairs_at_once([pair] * 20, QUICK, workers=11) == 11
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 4 * memory_of(pair, QUICK))
    assert pairs_at_once([pair] * 20, QUICK) == 3
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 1)
    assert pairs_at_once([pair] * 20, QUICK) == 1


def test_a_table_holds_every_outcome(tmp_path: Path) -> None:
    done = Outcome("a", "done", 1.23456, 0.9, 0.0, undone=("rigid", "affine"), notes=("not here",))
    write_table([done, Outcome("b", "failed", error="no, not")], tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["seconds"], first["undone"], first["dice_after"]) == ("1.235", "rigid; affine", "")
    assert (second["state"], second["error"]) == ("failed", "no, not")
    assert "notes" not in first


class Workers:
    """Stands for a client whose workers are asked how they are."""

    def __init__(self, dsir: object = None, threads: int = 1, seen: bool = True) -> None:
        self.answers = {version: dsir or version("dsir-metric"), os.path.isdir: seen}
        self.threads = threads

    def run(self, question: Callable[..., object], *_: object, **__: object) -> dict[str, object]:
        return {"tcp://w:1": self.answers[question]}

    def nthreads(self) -> dict[str, int]:
        return {"tcp://w:1": self.threads}


def test_workers_that_cannot_do_it_are_refused(tmp_path: Path) -> None:
    cluster._check_workers(Workers(), tmp_path, None)
    for workers, error, message in (
        (Workers(ModuleNotFoundError("x")), MissingDependencyError, "worker tcp://w:1 has no dsir-metric"),
        (Workers("0.0.1"), MissingDependencyError, "has dsir-metric 0.0.1, .* is needed"),
        (Workers(threads=4), ConfigError, "does 4 tasks at once; start it with --nthreads 1"),
        (Workers(seen=False), ConfigError, "does not see"),
    ):
        with pytest.raises(error, match=message):
            cluster._check_workers(workers, tmp_path, None)


def test_workers_that_do_not_start_are_one_line(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(**_: object) -> None:  # what dask says when somebody kills them before they are there
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr("distributed.LocalCluster", dead)
    result = CliRunner().invoke(app, ["register-batch", str(study), "-o", str(study.parent / "out"), *OPTIONS])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "did not start (Nanny failed to start.); run the same command again" in result.stderr


def test_no_scheduler_is_one_line(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.5)
    pairs = read_pairs(study, study.parent / "out", 9.0)
    with pytest.raises(RegistrationError, match=r"no dask scheduler answers at 'tcp://127\.0\.0\.1:1'"):
        run_batch(pairs, study.parent / "out", QUICK, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(ConfigError, match="workers is 0"):
        run_batch(pairs, study.parent / "out", QUICK, workers=0)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python with arguments; what still runs at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, *map(str, arguments)]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    for _ in range(12_000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("nothing happened for two minutes")


def amid(out: Path, number: int) -> Callable[[], bool]:
    """Whether this pair has begun, hence those before are done, and is not done."""
    folder = out / f"m{number}_to_fixed"
    return lambda: folder.exists() and not (folder / "result.json").exists()


def alone(out: Path, count: int = 4) -> None:
    """The first pairs are whole, and nothing else lies about."""
    for k in range(count):
        folder = out / f"m{k}_to_fixed"
        assert {p.name for p in folder.iterdir()} == FILES
        assert json.loads((folder / "result.json").read_text())["mean_cosine"] > 0.5
        io.read_transform(folder / "transform.h5")
        io.read_image(folder / "moved.nii.gz")


def test_workers_and_the_whole_command_are_killed(study: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    out = study.parent / "out"
    command = ("-c", MAIN, "register-batch", study, "-o", out, *OPTIONS, "--workers", 1)
    first = start(*command)
    until(amid(out, 1), first)
    family = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    assert psutil.wait_procs(family, timeout=60)[1] == []  # no worker outlives it
    assert set(states(out)) == {f"m{k}_to_fixed" for k in range(4)}

    (out / "m0_to_fixed" / ".0123abcd-moved.nii.gz").touch()
    (out / ".0123abcd-table.csv").touch()
    second = start(*command)
    until(amid(out, 2), second)
    workers = [p for p in psutil.Process(second.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) == 1
    workers[0].kill()
    _, told = second.communicate(timeout=300)
    assert second.returncode == 0, told
    assert "Traceback" not in told
    found = states(out)
    assert found["m0_to_fixed"] == "kept"
    assert set(found.values()) == {"kept", "done"}
    assert not list(out.glob("*-table.csv"))
    alone(out)


def test_the_scheduler_is_killed(study: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    out, file = study.parent / "out", study.parent / "scheduler.json"
    options = ("--no-dashboard", "--scheduler-file", file)
    scheduler = start("-m", "distributed.cli.dask_scheduler", *options, "--host", "127.0.0.1", "--port", 0)
    until(file.exists, scheduler)
    worker = start("-m", "distributed.cli.dask_worker", *options, "--nthreads", 1, "--no-nanny")
    address = json.loads(file.read_text())["address"]
    first = start("-c", MAIN, "register-batch", study, "-o", out, *OPTIONS, "--scheduler", address)
    until(amid(out, 1), first)
    scheduler.kill()
    _, told = first.communicate(timeout=300)
    worker.kill()
    assert first.returncode == 1, told
    assert "Traceback" not in told
    assert states(out)["m0_to_fixed"] in ("done", "kept")
    assert states(out)["m3_to_fixed"] == "failed"
    assert "the scheduler was lost; run the same command again" in (out / "table.csv").read_text()

    last = study.parent / "m3.nii.gz"
    last.write_bytes(last.read_bytes()[:5000])  # its header is whole
    second = CliRunner().invoke(app, ["register-batch", str(study), "-o", str(out), *OPTIONS, "--workers", "2"])
    assert second.exit_code == 1, second.output
    first_pair, *between, last_pair = states(out).values()
    assert (first_pair, last_pair) == ("kept", "failed")
    assert set(between) <= {"kept", "done"}  # a worker finishes what it has begun without its scheduler
    assert "m3.nii.gz: is truncated" in (out / "table.csv").read_text()
    assert "1 failed" in second.stderr
    alone(out, 3)
