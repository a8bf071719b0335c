"""The landscape benchmark: signs, directions, units, and where a capture range ends."""

import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from landscape import capture_range, main, mutual_information, offset_transform, share_of_starts, survey

from dsir_metric import io
from dsir_metric.geometry import Grid
from dsir_metric.metric.transforms import point_map
from dsir_metric.phantom import make_pair
from dsir_metric.represent import Representation

OFFSETS = np.arange(-30.0, 31.0, 2.0)
POINTS = np.random.default_rng(0).normal((5.0, -7.0, 9.0), 30, (500, 3))


def test_capture_ends_where_the_loss_falls() -> None:
    steady = np.abs(OFFSETS)
    assert capture_range(OFFSETS, steady) == 30
    assert capture_range(OFFSETS, np.minimum(steady, 24 - steady)) == 12
    one_sided = np.where(OFFSETS > 0, np.minimum(steady, 36 - steady), steady)
    assert capture_range(OFFSETS, one_sided) == capture_range(OFFSETS, one_sided[::-1]) == 18


def test_capture_forgives_noise_but_no_dip() -> None:
    loss = np.abs(OFFSETS)
    at_20 = OFFSETS == 20
    assert capture_range(OFFSETS, loss - 2.1 * at_20) == 30  # 0.1 below its neighbour, 0.5 % of the span is 0.15
    assert capture_range(OFFSETS, loss - 2.2 * at_20) == 18


def test_a_metric_that_points_elsewhere_captures_nothing() -> None:
    assert capture_range(OFFSETS, np.abs(OFFSETS - 4)) == 0
    assert capture_range(OFFSETS, np.abs(OFFSETS + 4)) == 0
    assert capture_range(OFFSETS, np.abs(OFFSETS - 2)) == 30  # next to the truth is near enough
    assert capture_range(OFFSETS, -np.abs(OFFSETS)) == 0


def test_share_of_starts() -> None:
    x, y = np.meshgrid(OFFSETS, OFFSETS, indexing="ij")
    assert share_of_starts(x**2 + 5 * y**2) == 1
    assert share_of_starts((x - 2) ** 2 + y**2) == 1  # one cell off
    assert share_of_starts((x - 4) ** 2 + y**2) == 0
    assert share_of_starts(np.zeros_like(x)) == 9 / x.size  # nothing to follow: who stands there stays
    beside = np.minimum(np.abs(x), np.abs(x - 20) + 0.5)  # a second valley, nearer for those beyond x = 10
    assert share_of_starts(beside + np.abs(y)) == pytest.approx(np.mean(OFFSETS <= 10))


def test_an_offset_is_in_degrees_about_the_middle() -> None:
    centre = np.array([10.0, 20.0, 30.0])
    turn = offset_transform(np.array([0.0, 0.0, 90.0, 1.0, 2.0, 3.0]), centre)
    np.testing.assert_allclose(turn.TransformPoint(tuple(centre)), [11, 22, 33])
    np.testing.assert_allclose(turn.TransformPoint((11.0, 20.0, 30.0)), [11, 23, 33], atol=1e-9)


def test_survey_walks_the_fixed_space_away_from_the_truth() -> None:
    truth = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.0, 0.0, np.pi / 2, (40.0, 0.0, 0.0))  # x becomes y
    goal = point_map(truth).map(POINTS)
    weights = np.array([3.0, 1.0, 2.0])

    def similarity(mapped: np.ndarray) -> float:
        return -float(np.square((mapped - goal) * weights).sum(axis=1).mean())

    found = survey("distance", similarity, POINTS, truth, OFFSETS)
    ends = found.profiles["translation"][:, -1]
    np.testing.assert_allclose(ends, np.square(30 * np.array([1.0, 3.0, 2.0])))
    np.testing.assert_allclose(found.maps["translation"][-1, 15], ends[0])
    np.testing.assert_allclose(found.maps["translation"][15, -1], ends[1])
    for kind in ("rotation", "translation"):
        assert found.maps[kind].argmin() == found.maps[kind].size // 2
        assert found.maps[kind].min() == pytest.approx(0, abs=1e-9)
        assert min(capture_range(OFFSETS, profile) for profile in found.profiles[kind]) == 30
    arms = POINTS - POINTS.mean(axis=0)
    about_z = np.square(2 * np.sin(np.deg2rad(15)) * arms[:, :2]).sum(axis=1)  # at 30 degrees, length of the chord
    plain = survey("distance", lambda p: -float(np.square(p - goal).sum(axis=1).mean()), POINTS, truth, OFFSETS)
    np.testing.assert_allclose(plain.profiles["rotation"][2, -1], about_z.mean())


def test_mutual_information() -> None:
    pair = make_pair(32, 6.25, ("t1", "t1"), amplitude_mm=0.0)
    values = sitk.GetArrayFromImage(pair.fixed)
    scan = Representation((values / values.max()).astype(np.float32)[..., None], Grid.of(pair.fixed))
    inverted = Representation(1 - scan.values, scan.grid)
    rng = np.random.default_rng(1)
    points = rng.uniform(-60, 60, (4000, 3))
    assert mutual_information(scan, scan, points)(points) == pytest.approx(2)
    assert mutual_information(scan, inverted, points)(points) > 1.9  # but for values on the edge of a bin
    shuffled = rng.permutation(points)
    assert mutual_information(scan, scan, points)(shuffled) == pytest.approx(1, abs=0.1)
    shifts = [mutual_information(scan, inverted, points)(points + np.array([s, 0, 0])) for s in (0, 4, 8, 12)]
    assert shifts == sorted(shifts, reverse=True)


def test_the_whole_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    pair = make_pair(40, 5.0, ("t1", "t2"), amplitude_mm=2.0, translation_mm=(30.0, 0.0, 0.0))
    for name in ("fixed", "moving"):
        io.write_image(getattr(pair, name), tmp_path / f"{name}.nii.gz")
    io.write_transform(pair.truth, tmp_path / "truth.h5")
    scans = [str(tmp_path / f"{name}.nii.gz") for name in ("fixed", "moving")]
    few = ["--representation", "mind", "--reach", "18", "--step", "6", "--points", "4000"]
    more = ["--truth", str(tmp_path / "truth.h5"), "-o", str(tmp_path / "figure.png")]
    monkeypatch.setattr(sys, "argv", ["landscape.py", *scans, *few, *more])
    main()
    told = capsys.readouterr().out.splitlines()
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert [row.split("|")[1].strip() for row in told[-2:]] == ["mind, cosine", "NMI"]
    for row in told[-2:]:
        assert float(row.split("|")[2].removeprefix(" at least ")) >= 12
        assert float(row.split("|")[3].removeprefix(" at least ")) >= 12
