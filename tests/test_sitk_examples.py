"""The notebook-style scripts run, and are the native scripts but for two lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk

from dsir_metric.phantom import PhantomPair

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "simpleitk"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def run(script: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(FOLDER)])}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def native_twin(script: Path, folder: Path) -> Path:
    """The script with its two lines turned into what their comments say."""
    text, count = re.subn(r"^.*# native: (.*)$", r"\1", script.read_text(), flags=re.MULTILINE)
    assert count == 2
    assert "dsir_metric" not in text
    twin = folder / script.name
    twin.write_text(text)
    return twin


@pytest.fixture(scope="module")
def paths(pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pair")
    files = [str(folder / name) for name in ("fixed.nii.gz", "moving.nii.gz")]
    for image, file in zip((pair.fixed, pair.moving), files, strict=True):
        sitk.WriteImage(image, file)
    return files


def test_there_is_a_script_for_each_kind_of_transform() -> None:
    assert SCRIPTS == ["affine", "bspline", "displacement_field", "rigid"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_runs_on_two_files(name: str, paths: list[str]) -> None:
    before, after = re.search(r"metric (\S+) -> (\S+) in", run(FOLDER / f"{name}.py", *paths)).groups()
    assert -1 < float(after) < 0
    assert -1 < float(before) < 0


def test_script_registers_the_phantom() -> None:
    before, after = re.search(r"mean error (\S+) mm -> (\S+) mm", run(FOLDER / "rigid.py")).groups()
    assert float(after) < 0.5 * float(before)


@pytest.mark.parametrize("name", ["rigid", "affine"])
def test_two_lines_make_it_the_native_script(name: str, paths: list[str], tmp_path: Path) -> None:
    assert "metric" in run(native_twin(FOLDER / f"{name}.py", tmp_path), *paths)


@pytest.mark.parametrize("name", ["bspline", "displacement_field"])
def test_slow_native_scripts_differ_in_two_lines_too(name: str, tmp_path: Path) -> None:
    compile(native_twin(FOLDER / f"{name}.py", tmp_path).read_text(), name, "exec")
