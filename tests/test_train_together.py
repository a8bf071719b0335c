"""Training in several processes: the weights of one, and what all of them do when one of them meets something."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from dsir_metric_cli.main import app

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)
from dsir_metric_train.loader import Loader, ViewPairs  # noqa: E402
from dsir_metric_train.loop import Contrast, train  # noqa: E402
from dsir_metric_train.recipe import Recipe  # noqa: E402
from dsir_metric_train.together import Machines, together, told  # noqa: E402

from dsir_metric.config import load_toml  # noqa: E402
from dsir_metric.errors import ConfigError, DataError  # noqa: E402
from dsir_metric.phantom import make_pair  # noqa: E402

RECIPE = """
model = {widths = [4, 8], features = 2}
placement = {crop = 16, spacing_mm = [1.0, 2.0]}
optimisation = {steps = 6, chunk = 2, batch = 2, points = 100, learning_rate = 3e-3, decay = true, seed = 3}
[[sources]]
kind = "scans"
files = ["*.mha"]
"""

# What `dsir-metric` is once installed, with a fault in one process: at its n-th loss, or its n-th checkpoint.
SCRIPT = """
import errno, os, signal
import torch
from dsir_metric_cli.main import main
from dsir_metric_train import loop

torch.set_num_threads(int(os.environ["THREADS"]))  # bits depend on it
kind, rank, number = os.environ.get("FAULT", "none none 0").split()
seen = []

def due():
    seen.append(kind)
    return os.environ.get("LOCAL_RANK", "0") == rank and len(seen) == int(number)

def loss(*arguments, **options):
    found = contrast(*arguments, **options)
    if kind == "killed" and due():
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "asked" and due():
        os.kill(os.getpid(), signal.SIGTERM)
    return found * float("nan") if kind == "nan" and due() else found

def save(content, path):
    if kind == "full" and due():
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    written(content, path)

contrast, loop.contrastive_loss = loop.contrastive_loss, loss
written, torch.save = torch.save, save
main()
"""
SRUN = {  # of two nodes with a task each
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "localhost",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen small scans, one of them broken."""
    folder = tmp_path_factory.mktemp("together") / "scans"
    folder.mkdir()
    image = make_pair(12, 2.0, amplitude_mm=0.5).fixed
    for k in range(12):
        sitk.WriteImage(image + 10 * k, str(folder / f"{k:02}.mha"))
    broken = folder / "07.mha"
    broken.write_bytes(broken.read_bytes()[:-100])
    (folder.parent / "recipe.toml").write_text(RECIPE)
    (folder.parent / "dsir-metric").write_text(SCRIPT)
    return folder


def command(scans: Path, out: Path, *options: str) -> list[str]:
    given = [scans.parent / "dsir-metric", "train", scans.parent / "recipe.toml", "--data", scans, "-o", out, *options]
    return [sys.executable, *map(str, given), "--workers", "0"]


def variables(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_")) and k != "LOCAL_RANK"}
    return {**kept, "THREADS": "1", "OMP_NUM_THREADS": "1", **more}  # srun leaves the number, Lightning sets it


def run(scans: Path, out: Path, *options: str, **more: str) -> tuple[int, list[str]]:
    """Exit code of two processes that train, and what they say but for the progress; both have ended."""
    begun = [*command(scans, out, "--devices", "2"), *options]
    with subprocess.Popen(begun, env=variables(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        told = process.communicate(timeout=300)[0].decode()  # ends when no process holds the pipe any more
    return process.returncode, said(told)


def said(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("error", "warning", "wrote", "Traceback"))]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def content(out: Path) -> dict[str, object]:
    found: dict[str, object] = torch.load(out / "last.ckpt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def whole(scans: Path) -> Path:
    """A run of two processes in which nothing happens but the one broken file."""
    out = scans.parent / "whole"
    code, lines = run(scans, out)
    assert code == 0, lines
    assert [line.split()[0] for line in lines] == ["warning:", "wrote"]  # once, not from each
    assert "1 scans could not be used and were left out" in lines[0]
    return out


def test_two_processes_do_what_one_does(whole: Path, scans: Path, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="1 scans could not be used"):
        train(scans.parent / "recipe.toml", tmp_path / "o", data_root=scans, workers=0, progress=False)
    one, two = content(tmp_path / "o"), content(whole)
    assert one["global_step"] == two["global_step"] == 6
    for name, value in one["state_dict"].items():
        if name != "network.out.bias":  # cancels in all self-similarities: Adam makes steps of a gradient of rounding
            torch.testing.assert_close(two["state_dict"][name], value, atol=1e-6, rtol=0)
    assert one["unusable"] == two["unusable"] != {}
    assert one["hyper_parameters"] == two["hyper_parameters"]
    for mine, theirs in zip(rows(tmp_path / "o"), rows(whole), strict=True):
        assert (mine["step"], mine["unusable"]) == (theirs["step"], theirs["unusable"])
        assert float(mine["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-5)
        assert float(mine["retrieval"]) == pytest.approx(float(theirs["retrieval"]), rel=1e-5)
    assert sorted(path.name for path in whole.iterdir()) == ["last.ckpt", "log"]


def test_a_run_that_meets_everything_ends_as_one_that_met_nothing(whole: Path, scans: Path, tmp_path: Path) -> None:
    out, lost = tmp_path / "o", "error: process {} of 2 cannot reach another one at step {}: it ended, was killed or"
    for fault, code, line, reached in (
        ("killed 1 4", 2, lost.format(0, 3), 2),
        ("killed 0 3", -9, lost.format(1, 4), 4),
        ("nan 1 1", 2, "error: the loss is nan at step 4; the last good checkpoint stays", 4),
        ("full 0 1", 2, f"error: {out / 'last.ckpt'}: cannot be written (No space left on device)", 4),
        ("asked 1 1", 143, f"error: stopped by SIGTERM at step 5 of 6; {out / 'last.ckpt'} holds the training", 5),
    ):
        returned, lines = run(scans, out, "--resume", FAULT=fault)
        assert returned == code, (fault, lines)
        assert len(lines) == 1, (fault, lines)
        assert lines[0].startswith(line), fault
        assert content(out)["global_step"] == reached, fault
        assert sorted(path.name for path in out.iterdir()) == ["last.ckpt", "log"], fault
    of_srun(scans, out, "--nodes", "2", "--resume")
    one, other = content(out), content(whole)
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    losses = [row["loss"] for row in rows(out)]
    assert losses[:2] == [row["loss"] for row in rows(whole)][:2]
    assert len(losses) == 4  # the last chunk in two parts


def of_srun(scans: Path, out: Path, *options: str) -> None:
    """Two processes that were begun as srun begins those of two nodes."""
    nodes = [
        subprocess.Popen(
            command(scans, out, *options),
            env=variables(**SRUN, SLURM_PROCID=str(k), SLURM_NODEID=str(k)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for k in range(2)
    ]
    answers = [node.communicate(timeout=300)[0].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], answers
    assert [line.split()[0] for line in said(answers[0])] == ["warning:", "wrote"]
    assert said(answers[1]) == []


def test_processes_share_the_pairs_of_a_batch(scans: Path) -> None:
    recipe = load_toml(scans.parent / "recipe.toml", Recipe)
    sources = recipe.open_sources(scans)
    one, *two = (ViewPairs(recipe, sources, 1, 2, *part) for part in ((), (0, 2), (1, 2)))
    assert [len(pairs) for pairs in (one, *two)] == [4, 2, 2]
    for step in range(2):
        for rank in range(2):
            ours, theirs = one.draw(2 * step + rank), two[rank].draw(step)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    later = ViewPairs(recipe, sources, 2, 1, 1, 2).draw(0)
    assert all(torch.equal(a, b) for a, b in zip(later, one.draw(3), strict=True))
    assert not torch.equal(one.draw(0)[0], one.draw(1)[0])
    assert len(list(Loader(one, 0, {}))) == 4


class Several:
    """A strategy of which this process is one, and the others say what they are given."""

    launcher = None

    def __init__(self, rank: int, others: Sequence[object]) -> None:
        self.rank, self.others, self.world_size = rank, others, len(others)
        self.is_global_zero = rank == 0

    def reduce_boolean_decision(self, decision: bool) -> bool:
        return decision and all(other is None for k, other in enumerate(self.others) if k != self.rank)

    def broadcast(self, thing: object, source: int = 0) -> object:
        return thing if source == self.rank else self.others[source]


def test_an_error_of_any_process_is_raised_by_the_first_alone() -> None:
    error = DataError("of the third")
    with pytest.raises(DataError, match="of the third"), together(Several(0, (None, None, error))):
        pass
    with pytest.raises(SystemExit) as ended, together(Several(1, (None, None, error))):
        pass
    assert not ended.value.code
    with pytest.raises(DataError, match="of mine"), together(Several(0, (None, None, error))):
        raise DataError("of mine")
    with together(Several(0, (None, None, None))):
        pass
    with pytest.raises(ZeroDivisionError), together(Several(0, (None,))):
        raise ZeroDivisionError
    assert told(Several(1, ({"a": 1}, None, {"b": 2})), None) == [{"a": 1}, {"b": 2}]


def test_processes_that_see_other_files_are_refused(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Contrast(load_toml(scans.parent / "recipe.toml", Recipe), scans)
    mine = (0, dict(module.hparams))
    procs = [object()]
    for first, refused in ((mine, False), ((2, mine[1]), True), ((0, {**mine[1], "data": []}), True)):
        strategy = Several(0, (None,))  # so that it tells
        strategy.broadcast = lambda thing, _=0, first=first: first if isinstance(thing, tuple) else thing
        strategy.launcher = SimpleNamespace(procs=procs)
        monkeypatch.setattr(Contrast, "trainer", SimpleNamespace(strategy=strategy, global_step=0, global_rank=1))
        if refused:
            with pytest.raises(ConfigError, match="process 1 has another recipe, other files or another checkpoint"):
                module.on_train_start()
        else:
            module.on_train_start()
    assert procs == []


def test_machines_that_cannot_be() -> None:
    for wrong in ({"devices": 0}, {"num_nodes": 0}):
        with pytest.raises(ConfigError, match="1 or more devices and nodes"):
            Machines(**wrong)
    assert Machines(2, 3).share_of(12) == 2
    with pytest.raises(ConfigError, match="6 processes cannot share a batch of 4 evenly; write a multiple of 6"):
        Machines(2, 3).share_of(4)


@pytest.mark.parametrize(
    ("started", "message"),
    [
        (SRUN | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}, "--nodes=2"),
        ({"TORCHELASTIC_RUN_ID": "7", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}, r"world size \(4\)"),
    ],
)
def test_numbers_that_a_launcher_does_not_have_are_refused(
    started: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machines().check_launched()
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"1 devices on 1 nodes are not what was started: .*{message}"):
        Machines().check_launched()


def test_bad_options_are_told_in_one_line(scans: Path, tmp_path: Path) -> None:
    recipe = str(scans.parent / "recipe.toml")
    for arguments, message in (
        ([str(scans), "--devices", "2"], "--devices goes with a recipe"),
        ([str(scans), "--nodes", "2"], "--nodes goes with a recipe"),
        ([recipe, "--devices", "4"], "4 processes cannot share a batch of 2"),
    ):
        answer = CliRunner().invoke(app, ["train", *arguments, "-o", str(tmp_path / "o")])
        assert answer.exit_code == 2
        assert answer.stderr.startswith("error: "), answer.stderr
        assert message in answer.stderr
        assert len(answer.stderr.splitlines()) == 1
