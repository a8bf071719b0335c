"""The scripts in `examples/` run on their own, and show what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(script: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script)],
        capture_output=True, text=True, env=environment, timeout=300, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_network_of_ones_own_trains_on_the_cosine(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    losses = [float(x) for x in re.findall(r"loss (-?[\d.]+)", run("torch/own_network.py", tmp_path))]
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.02


def test_instance_optimisation_goes_there_and_back(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    said = run("torch/instance_optimisation.py", tmp_path)
    before, after = (float(x) for x in re.search(r"([\d.]+) mm -> ([\d.]+) mm", said).groups())  # type: ignore[union-attr]
    assert after < before / 2
    there, back = (
        [float(x) for x in part.split()] for part in said.split("there and back:")[1].split("\n")[0].split("->")
    )
    assert back == pytest.approx(there, abs=0.3)
    assert "folded voxels: 0.0 %" in said
