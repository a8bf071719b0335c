"""Engines on the phantom's representations, and what is said when one of them cannot work."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from dsir_metric_cli.main import app

from dsir_metric import io
from dsir_metric.bridges import ENGINES, ChannelPair, channel_pair, engine, process, registry, run_engine
from dsir_metric.errors import ConfigError, DataError, MissingDependencyError, RegistrationError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.phantom import PhantomPair
from dsir_metric.register import RegisterConfig, register
from dsir_metric.represent import Representation

GRID = Grid(
    (14, 12, 10), (3.0, 3.0, 3.0), (-20.0, 5.0, 7.0), sitk.Euler3DTransform([0, 0, 0], 0.2, -0.1, 0.3).GetMatrix()
)
PACKAGES = {"elastix": "itk.itkElastixRegistrationMethodPython", "ants": "ants", "greedy": "picsl_greedy"}
EXAMPLES = Path(__file__).parents[1] / "examples"


def unit(seed: int, channels: int = 6) -> Representation:
    """Unit vectors that vary far more along some directions than along others."""
    rng = np.random.default_rng(seed)
    spread = np.random.default_rng(9).normal(size=(channels, channels)) * 0.5 ** np.arange(channels)
    values = 1.0 + rng.normal(size=(*GRID.shape, channels)) @ spread.T
    return Representation((values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32), GRID)


def everywhere() -> sitk.Image:
    return GRID.image() + 1


def reduced(channels: int) -> ChannelPair:
    return channel_pair(unit(0), unit(1), everywhere(), everywhere(), channels)


def test_all_channels_are_a_rotation() -> None:
    pair = reduced(6)
    assert pair.kept == pytest.approx(1.0)
    cosine = (unit(0).values * unit(1).values).sum(-1)
    np.testing.assert_allclose((pair.fixed.values * pair.moving.values).sum(-1), cosine, atol=1e-5)


def test_what_is_kept_is_what_a_sample_says() -> None:
    rng = np.random.default_rng(3)
    rows = [v.values.reshape(-1, 6)[rng.integers(0, np.prod(GRID.shape), 200_000)] for v in (unit(0), unit(1))]
    whole = (rows[0] * rows[1]).sum(1)
    kept = [reduced(c).kept for c in (1, 2, 3, 4, 5)]
    assert kept == sorted(kept)
    for channels in (2, 4):
        pair = reduced(channels)
        basis = np.linalg.lstsq(unit(0).values.reshape(-1, 6), pair.fixed.values.reshape(-1, channels), rcond=None)[0]
        np.testing.assert_allclose(basis.T @ basis, np.eye(channels), atol=1e-4)
        lost = whole - ((rows[0] @ basis) * (rows[1] @ basis)).sum(1)
        assert pair.kept == pytest.approx(1 - lost.var() / whole.var(), abs=0.01)


def test_channels_have_one_sign() -> None:
    pair, again = reduced(3), reduced(3)
    np.testing.assert_array_equal(pair.fixed.values, again.fixed.values)
    assert pair.fixed.values[..., 0].mean() > 0


def test_what_cannot_be_reduced_is_refused() -> None:
    with pytest.raises(ConfigError, match="channels is 7; the representations have 1 to 6"):
        reduced(7)
    with pytest.raises(ShapeError, match="fixed has 6 channels and moving 4"):
        channel_pair(unit(0), unit(1, 4), everywhere(), everywhere(), 2)
    with pytest.raises(DataError, match="moving: no voxel is left"):
        channel_pair(unit(0), unit(1), everywhere(), GRID.image(), 2)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for an engine's package: what the file says happens when greedy is called."""
    monkeypatch.setattr(registry.Engine, "version", "9.0")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "picsl_greedy.py"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os.kill(os.getpid(), 11)", r"greedy crashed \(SIGSEGV\): the last words; fewer channels"),
        ("raise RuntimeError('no memory')", "greedy failed: RuntimeError: no memory"),
        ("time.sleep(60)", "greedy was not done after 8 s and was stopped"),
        ("pass", "greedy ended without a transform: the last words"),
    ],
)
def test_an_engine_that_breaks_is_one_line(broken: Path, body: str, message: str) -> None:
    broken.write_text(
        textwrap.dedent(f"""
        import os, time
        class Greedy3D:
            def execute(self, command):
                print("the last  words", flush=True)
                {body}
        """)
    )
    with pytest.raises(RegistrationError, match=message) as caught:
        run_engine("greedy", reduced(2), timeout_s=8 if "sleep" in body else 120)
    assert "\n" not in str(caught.value)


def test_an_engine_that_is_absent_or_old_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.Engine, "version", None)
    with pytest.raises(
        MissingDependencyError, match=r"^greedy: picsl-greedy is not installed: pip install 'dsir-metric\[greedy\]"
    ):
        register(sitk.Image(), sitk.Image(), RegisterConfig(backend="greedy"))
    monkeypatch.setattr(registry.Engine, "version", "0.3.8")
    with pytest.raises(MissingDependencyError, match=r"picsl-greedy 0\.3\.8 is installed, 1\.4 or newer is needed"):
        engine("greedy").check()


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_backends_are_listed_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.Engine, "version", None)
    monkeypatch.setenv("COLUMNS", "160")
    shown = call("backends").stdout
    assert "built in" in shown
    for name in ENGINES:
        assert f"pip install 'dsir-metric[{name}]'" in shown


@pytest.fixture(scope="module")
def linear(pair: PhantomPair) -> RegisterConfig:
    return RegisterConfig(stages=("centre", "rigid", "affine"), threads=1, spacing_mm=4.5)


def test_an_engine_deforms_the_phantom(pair: PhantomPair, linear: RegisterConfig) -> None:
    """The quickest of them; the others do it in their examples."""
    name = "greedy"
    pytest.importorskip(PACKAGES[name])
    before = pair.error_mm(register(pair.fixed, pair.moving, linear).transform)
    result = register(pair.fixed, pair.moving, replace(linear, backend=name, stages=(*linear.stages, "deformable")))
    assert not result.undone
    assert pair.error_mm(result.transform) < before  # our own stage reaches 0.93 of it at this voxel size
    assert result.stages[-1].remark.startswith(f"{name} on {ENGINES[name].channels} channels, which keep")


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_known_displacement_comes_back_with_its_sign_and_axes(name: str) -> None:
    """On an oblique grid, to a shift along x alone: flips and axis swaps would show."""
    pytest.importorskip(PACKAGES[name])
    shift = np.array([4.0, 0.0, -2.0])
    grid = Grid((28, 26, 24), (3.0, 3.0, 3.0), GRID.origin_mm, GRID.direction)

    def bumps(offset_mm: np.ndarray) -> Representation:
        points = grid.points_mm() - grid.centre_mm - offset_mm
        lobes = [np.exp(-(((points - c) / 14.0) ** 2).sum(-1)) for c in ((9, 0, 0), (-9, 9, 0), (0, -9, 9), (0, 0, -9))]
        values = np.stack([*lobes, 0.3 + 0 * lobes[0]], -1)
        return Representation((values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32), grid)

    ones = grid.image() + 1
    field = run_engine(name, channel_pair(bumps(0 * shift), bumps(shift), ones, ones, 5), threads=1)
    core = np.linalg.norm(field.grid.points_mm() - grid.centre_mm, axis=-1) < 12
    np.testing.assert_allclose(field.values[core].mean(axis=0), shift, atol=0.8)


@pytest.fixture(scope="module")
def files(pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pair")
    for name in ("fixed", "moving"):
        io.write_image(getattr(pair, name), folder / f"{name}.nii.gz")
    return [folder / "fixed.nii.gz", folder / "moving.nii.gz"]


QUICK = ["--backend", "greedy", "--stages", "centre,deformable", "--spacing", 6, "--threads", 1, "-q"]


def test_the_command_writes_what_it_always_writes(files: list[Path], tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES["greedy"])
    result = call("register", *files, "-o", tmp_path, *QUICK)
    assert result.exit_code == 0, result.output
    assert {p.name for p in tmp_path.iterdir()} == {"transform.h5", "moved.nii.gz", "result.json"}
    report = json.loads((tmp_path / "result.json").read_text())
    assert report["config"]["backend"] == "greedy"
    assert report["versions"]["picsl-greedy"] == ENGINES["greedy"].version
    assert io.read_transform(tmp_path / "transform.h5").GetName() == "CompositeTransform"


def test_a_crash_leaves_the_output_as_it_was(broken: Path, files: list[Path], tmp_path: Path) -> None:
    broken.write_text("import os\nos.kill(os.getpid(), 11)\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "result.json").write_text("of before")
    result = call("register", *files, "-o", out, *QUICK)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: greedy crashed (SIGSEGV)")
    assert [p.read_text() for p in out.iterdir()] == ["of before"]


@pytest.mark.parametrize("name", list(ENGINES))
def test_the_files_for_a_program_register_with_it(
    name: str, files: list[Path], tmp_path: Path, pair: PhantomPair
) -> None:
    result = call(
        "represent", *files, "--for", name, "--channels", 2, "--spacing", 6, "-o", tmp_path / "o", "--threads", 1
    )
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "o" / "register.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    assert "on 2 channels, which keep" in lines[1]
    assert str(files[1]) in lines[-1]
    pytest.importorskip(PACKAGES[name])
    process.run_commands(name, [shlex.split(line) for line in lines[4:-1]], tmp_path / "o", 1, 300)


def test_a_pair_is_asked_for_with_a_program_only(files: list[Path], tmp_path: Path) -> None:
    for arguments, message in (
        ([files[0], "--for", "greedy"], "--for needs two scans"),
        (files, "go with --for only"),
        ([*files, "--for", "flirt"], "engine 'flirt' is unknown; there are elastix, ants, greedy"),
    ):
        result = call("represent", *arguments, "-o", tmp_path / "o.nrrd")
        assert result.exit_code == 2
        assert message in result.stderr


@pytest.mark.parametrize("name", list(ENGINES))
def test_example_runs(name: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[name])
    script = EXAMPLES / "engines" / f"{name}.py"
    assert len(script.read_text().splitlines()) < 60
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    before, after = re.search(r"mean error (\S+) mm -> (\S+) mm", done.stdout).groups()
    assert float(after) < 0.4 * float(before)
    worse, better = re.search(r"deformable +mean cosine (\S+) -> (\S+)", done.stdout).groups()
    assert float(better) > float(worse)
