"""The comparison of engines, on a phantom, with a judge of a few lines."""

from __future__ import annotations

import json
from pathlib import Path

import engines
import pytest
import SimpleITK as sitk

from dsir_metric.phantom import make_pair

PACKAGES = {
    "ants": "ants",
    "greedy": "picsl_greedy",
}  # elastix' own levels want a larger head
JUDGE = """
from dsir_metric.phantom import make_pair
PAIR = make_pair(48, 4.0, ("t1", "t1"), amplitude_mm=3.0)
def evaluate(task, transform):
    return {"epe_mean": PAIR.error_mm(transform), "fold_pct": 0.0}
"""


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge") / "judge.py"
    path.write_text(JUDGE)
    return path


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one contrast: on so small a head nothing else is in reach of mutual information."""
    pair = make_pair(48, 4.0, ("t1", "t1"), amplitude_mm=3.0)
    folder = tmp_path_factory.mktemp("work") / "head"
    (folder / "in").mkdir(parents=True)
    start = pair.error_mm(sitk.Transform(3, sitk.sitkIdentity))
    (folder / "task.json").write_text(json.dumps({"identity": {"epe_mean": start, "fold_pct": 0.0}}))
    sitk.WriteImage(pair.fixed, str(folder / "in" / "fixed.nii.gz"))
    sitk.WriteImage(pair.moving, str(folder / "in" / "moving.nii.gz"))
    return folder


@pytest.mark.parametrize("name", list(PACKAGES))
def test_own_metric_gives_a_transform_the_right_way_round(name: str, judge: Path, task: Path) -> None:
    pytest.importorskip(PACKAGES[name])
    record = engines.apart(judge, task, name, engines.OWN, 1)
    assert "failed" not in record
    assert record["epe_mean"] < 0.7 * engines.task_facts(task)["identity"]["epe_mean"]


def test_a_process_that_dies_is_a_record(judge: Path, task: Path) -> None:
    judge.with_name("deadly.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    record = engines.apart(judge.with_name("deadly.py"), task, "sitk", None, 1)
    assert (record["failed"], record["epe_mean"]) == ("crashed", engines.task_facts(task)["identity"]["epe_mean"])


def test_the_table_has_a_column_a_method() -> None:
    facts = {"task": "a", "fold_pct": 0.5, "cpu_seconds": 12.3, "megabytes": 800.0}
    records = [
        {**facts, "backend": "sitk", "channels": None, "epe_mean": 0.81},
        {**facts, "backend": "ants", "channels": engines.OWN, "epe_mean": 1.95},
        {**facts, "backend": "ants", "channels": 8, "failed": "crashed"},
    ]
    lines = engines.table(records, {"a": {"epe_mean": 6.85}, "b": {"dice": 0.5}}).splitlines()
    assert lines[0] == "| task | start | sitk, DNS | ants, own metric | ants, DNS, 8 channels |"
    assert lines[2].startswith("| a | 6.85 | 0.81 (0.50 %, 12 s, 800 MB) | 1.95 (")
    assert lines[2].endswith("| failed: crashed |")
    assert lines[3].startswith("| b | Dice 0.500 |")
