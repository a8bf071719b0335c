"""The retrieval benchmark: the turn goes the way the truth says, and masks hold what can be found."""

import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from retrieval import Pair, confined, main, read_truth, turned
from scipy import ndimage

from dsir_metric import io
from dsir_metric.evaluate import overlay
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.phantom import PhantomPair

IDENTITY = sitk.Transform(3, sitk.sitkIdentity)


def seen(pair: Pair) -> np.ndarray:
    """What the moving scan shows at the true places of the fixed voxels."""
    return sitk.GetArrayFromImage(sitk.Resample(pair.moving, pair.fixed, pair.truth, sitk.sitkLinear, 0.0)).ravel()


def test_the_turn_moves_scan_and_truth_together(pair: PhantomPair) -> None:
    before = Pair("head", pair.fixed, pair.moving, pair.truth)
    after = turned(before, 20.0, 15.0)
    assert np.corrcoef(seen(before), seen(after))[0, 1] > 0.97
    still = Pair("head", pair.fixed, after.moving, pair.truth)
    assert np.corrcoef(seen(before), seen(still))[0, 1] < 0.8
    centre = Grid.of(pair.moving).centre_mm
    moved = turned(Pair("head", pair.fixed, pair.moving, IDENTITY), 20.0, 15.0).truth
    assert np.linalg.norm(np.array(moved.TransformPoint(centre.tolist())) - centre) == pytest.approx(15.0, rel=0.01)


def test_the_mask_holds_what_the_moving_scan_shows(pair: PhantomPair) -> None:
    half = pair.moving[:20, :, :]
    mask = sitk.GetArrayFromImage(confined(Pair("half", pair.fixed, half, IDENTITY)).mask)
    assert mask[:, :, :19].any()
    assert not mask[:, :, 20:].any()
    head = ndimage.binary_dilation(sitk.GetArrayFromImage(pair.fixed_labels) > 0)
    assert not mask[~head].any()
    given = sitk.Image(pair.fixed_labels == 7)
    chosen = sitk.GetArrayFromImage(confined(Pair("part", pair.fixed, pair.moving, IDENTITY, given)).mask)
    np.testing.assert_array_equal(chosen, sitk.GetArrayFromImage(given))


def test_a_truth_is_a_transform_a_field_or_none(pair: PhantomPair, tmp_path: Path) -> None:
    grid = Grid.of(pair.fixed)
    io.write_transform(pair.truth, tmp_path / "truth.h5")
    field = sitk.TransformToDisplacementField(
        pair.truth, sitk.sitkVectorFloat32, grid.size, grid.origin_mm, grid.spacing_mm, grid.direction
    )
    sitk.WriteImage(field, str(tmp_path / "truth.mha"))
    assert pair.error_mm(read_truth(str(tmp_path / "truth.h5"))) < 1e-6
    assert pair.error_mm(read_truth(str(tmp_path / "truth.mha"))) < 1e-4
    assert read_truth("none").TransformPoint((1.0, 2.0, 3.0)) == (1.0, 2.0, 3.0)


def test_a_gland_is_laid_over_the_other() -> None:
    grid = Grid((40, 36, 32), (1.5, 1.5, 1.5), (-30.0, -27.0, -24.0))
    known = sitk.AffineTransform(3)
    known.SetMatrix([1.1, 0.1, 0.0, -0.1, 0.95, 0.05, 0.0, 0.05, 1.2])
    known.SetTranslation([5.0, -4.0, 3.0])
    points = grid.points_mm()
    through = points + DisplacementField.from_transform(known, grid).values
    moving, fixed = ((np.square(p / (15.0, 11.0, 9.0)).sum(axis=-1) < 1).astype(np.uint8) for p in (points, through))
    gland, other = (grid.stamp(sitk.GetImageFromArray(m)) for m in (fixed, moving))
    found = overlay(gland, other)
    moved = sitk.GetArrayFromImage(sitk.Resample(other, gland, found, sitk.sitkNearestNeighbor))
    assert 2 * (moved & fixed).sum() / (moved.sum() + fixed.sum()) > 0.92  # the true transform: 0.948
    errors = points + DisplacementField.from_transform(found, grid).values - through
    assert np.linalg.norm(errors[fixed > 0].mean(axis=0)) < 0.5  # mm; the shift alone is 7


def test_the_table(
    pair: PhantomPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    io.write_image(pair.moving, tmp_path / "scan.nii.gz")
    scan = str(tmp_path / "scan.nii.gz")
    few = ["--candidates", "1000", "--queries", "200", "--representation", "patch", "mind", "--spacing", "5"]
    monkeypatch.setattr(sys, "argv", ["retrieval.py", "--pair", "itself", scan, scan, *few])
    main()
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| itself |")
    shares = [float(cell.split("%")[0]) for cell in row.split("|")[2:4]]
    assert min(shares) > 20  # chance: 0.1
