"""A training that a signal ends: it saves, says so in one line, has an exit code of its own, and can be resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
from dsir_metric_train import loop, run  # noqa: E402
from dsir_metric_train.checkpoint import load_network  # noqa: E402
from dsir_metric_train.loop import train  # noqa: E402
from dsir_metric_train.registration import data as preparing  # noqa: E402
from dsir_metric_train.registration import loop as registration  # noqa: E402
from dsir_metric_train.registration import read_registration, train_registration  # noqa: E402

from dsir_metric.errors import StoppedError  # noqa: E402
from dsir_metric.phantom import make_pair  # noqa: E402
from dsir_metric.register import RegisterConfig  # noqa: E402

RECIPE = """
model = {widths = [4, 8], features = 2}
placement = {crop = 16, spacing_mm = [1.0, 2.0]}
optimisation = {steps = 7, chunk = 3, points = 100, learning_rate = 3e-3, decay = true, seed = 3}
[[sources]]
kind = "scans"
files = ["*.mha"]
"""
NETWORK = """
lapirn = {width = 1, blocks = 1, levels = 2, squarings = 2}
volumes = {spacing_mm = 12.0, represented_mm = [12.0], held_back = 3}
steps = [3, 3]
frozen = 1
chunk = 3
[[sources]]
kind = "scans"
files = ["*.mha"]
variants = 2
"""
# What `dsir-metric` is once installed, asked to end at its second loss.
SCRIPT = """
import os, signal, sys
from dsir_metric_cli.main import main
from dsir_metric_train import loop

def loss(*arguments, **options):
    seen.append(None)
    if len(seen) == 2:
        os.killpg(os.getpgrp(), int(os.environ["NUMBER"]))  # as a scheduler does: the processes that draw get it too
    return contrast(*arguments, **options)

seen, contrast, loop.contrastive_loss = [], loop.contrastive_loss, loss
main()
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for k in range(4):
        sitk.WriteImage(make_pair(20, 6.0, amplitude_mm=1.0, seed=k).fixed, str(folder / f"{k}.mha"))
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "network.toml").write_text(NETWORK)
    (folder / "dsir-metric").write_text(SCRIPT)
    return folder


def asked_at(number: int, function: Callable[..., object], which: signal.Signals) -> Callable[..., object]:
    """The function, which at its n-th call sends this process a signal."""
    calls = []

    def asks(*arguments: object, **options: object) -> object:
        calls.append(None)
        if len(calls) == number:
            os.kill(os.getpid(), which)
        return function(*arguments, **options)

    return asks


def describer(scans: Path, out: Path, *, resume: bool = False, progress: bool = False) -> Path:
    return train(scans / "recipe.toml", out, data_root=scans, workers=0, resume=resume, progress=progress)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_a_signal_ends_a_training_at_its_step(
    step: int, which: signal.Signals, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(which)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "contrastive_loss", asked_at(step, loop.contrastive_loss, which))
        told = rf"stopped by {which.name} at step {step} of 7; .*last\.ckpt.*--resume"
        with pytest.raises(StoppedError, match=told) as stopped:
            describer(scans, tmp_path / "cut")
    assert stopped.value.signum == which
    assert signal.getsignal(which) is before
    assert torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["global_step"] == step
    resumed = describer(scans, tmp_path / "cut", resume=True)
    assert same(load_network(resumed), load_network(describer(scans, tmp_path / "whole")))


def test_what_is_ignored_stays_ignored(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(loop, "contrastive_loss", asked_at(2, loop.contrastive_loss, signal.SIGHUP))
        describer(scans, tmp_path / "out")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["global_step"] == 7


def test_a_second_interrupt_does_not_wait_for_the_step(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(*_: object, **__: object) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "contrastive_loss", impatient)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        describer(scans, tmp_path / "out")
    assert not (tmp_path / "out" / "last.ckpt").exists()


@pytest.mark.parametrize("step", [1, 4])
def test_a_registration_network_is_saved_too(
    step: int, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "_LINEAR", RegisterConfig(stages=("centre",)))
    monkeypatch.setattr(registration, "_PAIRS", 1)

    def networks(out: Path, *, resume: bool = False) -> Path:
        cache = tmp_path / "cache"
        return train_registration(
            scans / "network.toml", out, data_root=scans, cache=cache, resume=resume, progress=False
        )

    with monkeypatch.context() as patch:
        patch.setattr(registration, "diffusion", asked_at(step, registration.diffusion, signal.SIGTERM))
        with pytest.raises(StoppedError, match=rf"stopped by SIGTERM at step {step} of 6"):
            networks(tmp_path / "cut")
    network, content = read_registration(tmp_path / "cut" / "last.ckpt")
    assert content["global_step"] == content["hyper_parameters"]["steps"] == step
    assert content["hyper_parameters"]["validation"]["error_mm"] > 0
    resumed = read_registration(networks(tmp_path / "cut", resume=True))[0]
    assert not same(resumed, network)
    assert same(resumed, read_registration(networks(tmp_path / "whole"))[0])


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_the_command_ends_as_schedulers_expect(number: int, workers: int, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = [scans / "dsir-metric", "train", scans / "recipe.toml", "--data", scans, "-o", out, "--workers", workers]
    answer = subprocess.run(
        [sys.executable, *map(str, given)],
        env={**os.environ, "NUMBER": str(int(number)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
        check=False,
    )
    assert answer.returncode == 128 + number, answer.stderr
    lines = [line for line in answer.stderr.splitlines() if line.startswith(("error", "warning", "Traceback"))]
    step = f"stopped by {signal.Signals(number).name} at step 2 of 7; {out / 'last.ckpt'} holds the training so far"
    assert lines == [f"error: {step}: go on with --resume"]
    assert sorted(path.name for path in out.iterdir()) == ["last.ckpt", "log"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_told_in_steps(
    terminal: bool, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "is_terminal", lambda: terminal)
    describer(scans, tmp_path / "out", progress=True)
    shown = capfd.readouterr()
    text = shown.out + shown.err
    for epoch, step in ((1, 0), (2, 3), (3, 6)):
        assert f"Epoch {epoch}/3, step" in text
        assert (f"| {step}/7 [" if terminal else f"step {step}/7") in text
    assert "/-" not in text
    assert ("\r" in text) == terminal
