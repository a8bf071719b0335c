"""The scripts in examples/itk run on their own, and show what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
itk = pytest.importorskip("itk")


@pytest.mark.parametrize("name", ["metric", "registration", "impact"])
def test_example_runs(name: str, tmp_path: Path) -> None:
    script = ROOT / "examples" / "itk" / f"{name}.py"
    assert len(script.read_text().splitlines()) < 60
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=600, cwd=tmp_path
    )
    if done.stderr.startswith("skipped: itk-impact"):
        assert name == "impact"
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    before, after = re.search(r"mean error (\S+) mm -> (\S+) mm", done.stdout).groups()  # type: ignore[union-attr]
    assert float(after) < 0.5 * float(before)
    if name == "registration":
        assert len(itk.transformread(str(tmp_path / "transform.h5"))) == 1
        assert (tmp_path / "moved.nii.gz").is_file()
