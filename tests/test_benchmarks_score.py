"""The scoring of the benchmarks, on cases whose figures are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import score
import SimpleITK as sitk

from dsir_metric.geometry import Grid
from dsir_metric.phantom import make_pair

pytest.importorskip("monai")


def box(low: tuple[int, int, int], high: tuple[int, int, int], label: int = 1) -> sitk.Image:
    """A box of a label, corners x, y, z, in 24 voxels of 2 x 1 x 1 mm."""
    values = np.zeros((24, 24, 24), np.uint8)
    values[low[2] : high[2], low[1] : high[1], low[0] : high[0]] = label
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((2.0, 1.0, 1.0))
    return image


def test_the_distance_to_the_truth_counts_inside_the_mask() -> None:
    fixed = sitk.Cast(box((0, 0, 0), (24, 24, 24)), sitk.sitkFloat32)
    found = score.score(
        fixed,
        sitk.TranslationTransform(3, (3.0, 0.0, 4.0)),
        truth=sitk.TranslationTransform(3, (0.0, 0.0, 0.0)),
        mask=box((4, 4, 4), (9, 9, 9)),
    )
    assert found["error_mean_mm"] == pytest.approx(5.0)
    assert found["error_p95_mm"] == pytest.approx(5.0)
    assert found["folded_percent"] == 0.0
    assert found["smallest_jacobian"] == pytest.approx(1.0)


def test_a_mirror_folds_everywhere_inside_the_mask() -> None:
    fixed = sitk.Cast(box((0, 0, 0), (24, 24, 24)), sitk.sitkFloat32)
    mirror = sitk.AffineTransform(3)
    mirror.SetMatrix((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    found = score.score(fixed, mirror, mask=box((4, 4, 4), (9, 9, 9)))
    assert found["folded_percent"] == 100.0
    assert found["smallest_jacobian"] == pytest.approx(-1.0)


def test_labels_that_lie_apart_along_a_long_edge_of_voxels() -> None:
    fixed, moving = box((4, 4, 4), (12, 12, 12)), box((6, 4, 4), (14, 12, 12))
    found = score.overlap(fixed, sitk.Transform(), fixed, moving)
    assert found["dice"] == pytest.approx(0.75)
    assert found["hd95_mm"] == pytest.approx(4.0)  # two voxels of 2 mm
    exact = score.overlap(fixed, sitk.TranslationTransform(3, (4.0, 0.0, 0.0)), fixed, moving)
    assert (exact["dice"], exact["hd95_mm"]) == (1.0, 0.0)


def test_small_labels_do_not_count_unless_they_are_named() -> None:
    fixed = sitk.Maximum(box((4, 4, 4), (12, 12, 12)), box((20, 20, 20), (22, 22, 22), label=7))
    found = score.overlap(fixed, sitk.Transform(), fixed, fixed)
    assert list(found["dice_of_label"]) == [1]  # type: ignore[call-overload]
    found = score.overlap(fixed, sitk.Transform(), fixed, fixed, ids=[1, 7, 9])
    assert found["dice"] == pytest.approx(2 / 3)  # nobody has 9
    assert found["hd95_mm"] == float("inf")


def test_the_command_prints_what_a_perfect_registration_gets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = make_pair(24, 6.0, amplitude_mm=3.0)
    for name in ("fixed", "fixed_labels", "moving_labels"):
        sitk.WriteImage(getattr(pair, name), str(tmp_path / f"{name}.nii.gz"))
    fixed, transform, truth = tmp_path / "fixed.nii.gz", tmp_path / "truth.h5", tmp_path / "truth.mha"
    sitk.WriteTransform(pair.truth, str(transform))
    sitk.WriteTransform(sitk.Transform(3, sitk.sitkIdentity), str(tmp_path / "nothing.tfm"))
    grid = Grid.of(pair.fixed)
    field = sitk.TransformToDisplacementField(
        pair.truth, sitk.sitkVectorFloat64, grid.size, grid.origin_mm, grid.spacing_mm, grid.direction
    )
    sitk.WriteImage(field, str(truth))
    labels = ["--fixed-labels", str(tmp_path / "fixed_labels.nii.gz")]
    labels += ["--moving-labels", str(tmp_path / "moving_labels.nii.gz")]
    found = []
    for name in (transform, tmp_path / "nothing.tfm"):
        score.main([str(fixed), str(name), "--truth", str(truth), *labels])
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["error_max_mm"] < 1e-6
    assert found[0]["dice"] > found[1]["dice"] + 0.1
    assert found[0]["hd95_mm"] < found[1]["hd95_mm"]
    assert found[1]["error_mean_mm"] > 5.0  # turned, shifted and deformed
    with pytest.raises(SystemExit):
        score.main([str(fixed), str(transform), *labels[:2]])
