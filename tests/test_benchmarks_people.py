"""Brains of two people painted from label maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import people
import pytest
import SimpleITK as sitk

from dsir_metric.geometry import Grid

SHAPE = (30, 26, 22)  # z, y, x
GRID = Grid(SHAPE[::-1], (1.0, 1.5, 2.0), (-7.0, 40.0, 3.0), (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0))


@pytest.fixture
def maps(tmp_path: Path) -> list[Path]:
    """A skull, fluid around a grey cube with a white core that holds a ventricle; the second one shifted."""
    files = []
    for k in range(2):
        labels = np.full(SHAPE, 507, np.int16)
        for code, margin in ((24, 1), (3, 7), (2, 8), (4, 10)):
            labels[(slice(margin, -margin), *[slice(margin + k * (code != 24), -margin)] * 2)] = code
        image = GRID.stamp(sitk.GetImageFromArray(labels))
        files.append(tmp_path / f"map_{k}.nii.gz")
        sitk.WriteImage(image, str(files[-1]))
    return files


def test_tissues_are_as_bright_as_in_the_contrast() -> None:
    labels = np.zeros((40, 40, 40), np.int32)
    for slab, code in enumerate((2, 3, 11, 4)):
        labels[5:-5, 5:-5, 10 * slab : 10 * slab + 10] = code
    for contrast, order in (("t1", (2, 11, 3, 4)), ("t2", (4, 3, 11, 2))):
        scan = people.paint(labels, contrast, np.random.default_rng(1))
        assert scan.dtype == np.float32
        assert (scan[labels == 0] == 0).all()
        means = [scan[labels == code].mean() for code in order]
        assert means == sorted(means, reverse=True)
        assert 0 < scan[labels == 2].std() / scan[labels == 2].mean() < 0.5
        again = people.paint(labels, contrast, np.random.default_rng(1))
        np.testing.assert_array_equal(again, scan)
        assert (people.paint(labels, contrast, np.random.default_rng(2)) != scan).any()


def test_pairs_keep_labels_and_their_places(maps: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "MARGIN_VOX", 2)
    out = tmp_path / "out"
    out.mkdir()
    tasks = people.make(maps, out, 1)
    assert [t["id"] for t in tasks] == ["people_0_t2_t1", "people_0_t1_t1"]
    for side, file in zip(("fixed", "moving"), maps, strict=True):
        before, found = sitk.ReadImage(str(file)), sitk.ReadImage(str(out / f"0_{side}_labels.nii.gz"))
        same = sitk.GetArrayFromImage(sitk.Resample(before, found, sitk.Transform(), sitk.sitkNearestNeighbor))
        values = sitk.GetArrayFromImage(found)
        assert set(np.unique(values)) == {0, 2, 3, 4, 24}
        np.testing.assert_array_equal(values[values > 0], same[values > 0])
        for code in (2, 3, 4):
            assert (values == code).sum() == (sitk.GetArrayFromImage(before) == code).sum()
        core = np.argwhere(values == 3)
        rim = np.argwhere(values == 24)
        assert (core.min(axis=0) - rim.min(axis=0) == people.RIM_VOX).all()
        assert (rim.min(axis=0) == 2).all()
        assert (np.array(values.shape) < SHAPE).all()
        scan = sitk.ReadImage(str(out / f"0_{side}_t1.nii.gz"))
        assert Grid.of(scan) == Grid.of(found)
        assert ((sitk.GetArrayFromImage(scan) > 0) == (values > 0)).mean() > 0.999
    assert {t["fixed"] for t in tasks} == {"0_fixed_t1.nii.gz", "0_fixed_t2.nii.gz"}
    assert all((out / str(t[k])).exists() for t in tasks for k in ("fixed", "moving", "fixed_labels", "moving_labels"))


def test_command_writes_tasks_or_says_what_is_missing(
    maps: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "people"
    monkeypatch.setattr("sys.argv", ["people.py", str(maps[0].parent), str(out), "--pairs", "1"])
    people.main()
    assert len(json.loads((out / "tasks.json").read_text())["tasks"]) == 2
    monkeypatch.setattr("sys.argv", ["people.py", str(maps[0].parent), str(out), "--pairs", "2"])
    with pytest.raises(SystemExit, match="has 2 label maps; 2 pairs need 4"):
        people.main()
