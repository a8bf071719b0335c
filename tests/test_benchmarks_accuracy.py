"""Representations side by side and their tuning, on a phantom, with a judge of a few lines."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import accuracy
import numpy as np
import pytest
import SimpleITK as sitk
from accuracy import compare, find_tasks, load_judge, settings, table
from representations import represent, representer
from tune import tune, walk, weights

from dsir_metric.errors import ConfigError
from dsir_metric.phantom import PhantomPair
from dsir_metric.register import DeformableConfig, RegisterConfig
from dsir_metric.represent import Representation

JUDGE = """
from dsir_metric.phantom import make_pair
PAIR = make_pair(40, 4.5, ("t1", "flair"))
def evaluate(task, transform):
    error = PAIR.error_mm(transform)
    return {"epe_mean": error, "epe_p95": 2 * error, "fold_pct": 0.0}
"""
RIGID = RegisterConfig(threads=1, stages=("rigid",))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge") / "judge.py"
    path.write_text(JUDGE)
    return path


@pytest.fixture(scope="module")
def work(pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One prepared task, and one of full resolution."""
    folder = tmp_path_factory.mktemp("work")
    error = pair.error_mm(sitk.Transform(3, sitk.sitkIdentity))
    for name, full in (("head", False), ("large", True)):
        (folder / name / "in").mkdir(parents=True)
        facts = {"full": full, "identity": {"epe_mean": error, "epe_p95": 2 * error}}
        (folder / name / "task.json").write_text(json.dumps(facts))
        sitk.WriteImage(pair.fixed, str(folder / name / "in" / "fixed.nii.gz"))
        sitk.WriteImage(pair.moving, str(folder / name / "in" / "moving.nii.gz"))
    return folder


def test_tasks_are_found_by_name_and_large_ones_only_so(work: Path, tmp_path: Path) -> None:
    assert find_tasks(work) == [work / "head"]
    assert find_tasks(work, "large,head") == [work / "large", work / "head"]
    with pytest.raises(SystemExit, match="has no task hand; there are head, large"):
        find_tasks(work, "hand")
    with pytest.raises(SystemExit, match="prepare some"):
        find_tasks(tmp_path)


def test_settings_come_from_the_file_then_from_assignments(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"mind": {"deformable": {"diffusion": 0.1, "bending_mm2": 5.0}}}))
    chosen = settings("mind", file, ["deformable.bending_mm2=7", 'stages=["rigid"]', "fixed_intensity=ct"])
    assert (chosen.deformable.diffusion, chosen.deformable.bending_mm2) == (0.1, 7.0)
    assert (chosen.stages, chosen.fixed_intensity) == (("rigid",), "ct")
    assert settings("default", file) == RegisterConfig(
        threads=1, deformable=DeformableConfig(information=0.0, adaptive=False)
    )
    with pytest.raises(ConfigError, match="did you mean deformable"):
        settings("mind", file, ["deformabel.diffusion=1"])


def test_methods_are_measured_recorded_and_set_against_each_other(work: Path, judge: Path, tmp_path: Path) -> None:
    out = tmp_path / "records.json"
    methods = {name: (partial(represent, name), RIGID) for name in ("patch", "mind")}
    records = compare(load_judge(judge), find_tasks(work), methods, out)
    assert json.loads(out.read_text())["records"] == records
    start, patch, mind = records
    assert [r["representation"] for r in records] == ["start", "patch", "mind"]
    assert mind["epe_mean"] < 0.8 * start["epe_mean"]
    assert mind["seconds"] > mind["represent_seconds"] > 0
    text = table(records, "mind")
    ratio = patch["epe_mean"] / mind["epe_mean"]
    assert f"| {ratio:.2f} |" in text.splitlines()[3]
    assert f"- patch (diffusion {RIGID.deformable.diffusion:g}, " in text
    assert f"{patch['epe_mean'] / start['epe_mean']:.3f} of the error left, {ratio:.3f}" in text


@pytest.mark.parametrize("name", ["mind", "default"])
def test_scans_are_represented_again_where_register_may_ask(
    work: Path, judge: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    found = accuracy.register
    monkeypatch.setattr(accuracy, "register", lambda *a, **k: results.append(found(*a, **k)) or results[-1])
    deformable = DeformableConfig(lattice_mm=(24.0,), iterations=(3,), information=0.0)
    config = replace(RIGID, stages=("rigid", "deformable", "refine"), deformable=deformable)
    once = accuracy.measure(load_judge(judge), work / "head", partial(represent, name), config)
    again = accuracy.measure(load_judge(judge), work / "head", representer(name), config)
    assert [r.stages[-1].name for r in results] == ["deformable", "refine"]
    assert again["hash"] == once["hash"]
    assert (again["hash"] is None) == (name == "mind")
    assert again["seconds"] > again["represent_seconds"] > 0
    assert again["epe_mean"] != once["epe_mean"]


def test_label_tasks_are_told_by_the_gain_in_dice() -> None:
    records = [
        {
            "task": "a",
            "representation": name,
            "dice": dice,
            "hash": "0123456789abcdef",
            "diffusion": 0.1,
            "bending_mm2": 9,
        }
        for name, dice in (("start", 0.5), ("ours", 0.75), ("mind", 0.7))
    ]
    text = table(records, "mind")
    assert "| a | ours |  | 0.750 |  |  |  | +0.050 |" in text
    assert "- ours (model 0123456789ab, diffusion 0.1, bending 9 mm2): Dice of label tasks 0.750, +0.050 on the" in text


def test_a_registration_that_fails_counts_as_none(work: Path, judge: Path) -> None:
    def odd(fixed: sitk.Image, moving: sitk.Image) -> tuple[Representation, Representation]:
        return represent("mind", fixed, moving)[0], represent("patch", fixed, moving)[1]

    record = accuracy.measure(load_judge(judge), work / "head", odd, RIGID)
    assert record["failed"].startswith("fixed has 12 channels")
    assert record["epe_mean"] == accuracy.task_facts(work / "head")["identity"]["epe_mean"]
    assert record["failed"] in table([{"representation": "start"} | record, {"representation": "x"} | record], "x")


def test_the_walk_ends_in_the_valley() -> None:
    asked = []

    def bowl(place: tuple[int, int]) -> float:
        asked.append(place)
        return 1 + (place[0] + 3) ** 2 + (place[1] - 2) ** 2

    assert walk(bowl) == (-3, 2)
    assert len(asked) == len(set(asked))
    assert walk(lambda place: 1 + 1e-3 * place[0]) == (0, 0)  # not worth a step


def test_weights_are_chosen_by_their_error(work: Path, judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr("tune.walk", lambda error: tried.extend([error((0, 0)), error((6, 6))]) or (6, 6))
    chosen = tune(load_judge(judge), find_tasks(work), partial(represent, "mind"), 2.0, 1)
    assert tried[0] < tried[1] < 1  # so stiff that nothing but the linear part is left
    assert chosen == weights((6, 6), 2.0)
    default, near = DeformableConfig(), weights((0, -1), 2.0)
    np.testing.assert_allclose(chosen.bending_mm2, 64 * default.bending_mm2, rtol=0.05)  # two digits
    np.testing.assert_allclose(
        (near.diffusion, near.bending_mm2), (default.diffusion, default.bending_mm2 / 2), rtol=0.05
    )


def test_where_labels_are_all_that_is_known_the_error_is_what_dice_lacks(
    work: Path, judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same places, told as Dice: the walk sees (1 - Dice) / (1 - Dice of the start)."""
    found = load_judge(judge)
    known = json.loads((work / "head" / "task.json").read_text())
    tried: dict[str, float] = {}
    monkeypatch.setattr("tune.walk", lambda error: tried.update({kind: error((6, 6))}) or (6, 6))
    kind = "known"
    tune(found, find_tasks(work), partial(represent, "mind"), 2.0, 1)
    evaluate = found.evaluate
    found.evaluate = lambda *given: {"dice": 1 - evaluate(*given)["epe_mean"] / 100}
    monkeypatch.setattr("tune.task_facts", lambda _: {"identity": {"dice": 1 - known["identity"]["epe_mean"] / 100}})
    kind = "labels"
    tune(found, find_tasks(work), partial(represent, "mind"), 2.0, 1)
    assert tried["labels"] == pytest.approx(tried["known"]) != pytest.approx(1.0)
