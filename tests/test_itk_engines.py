"""ITK's own registration method on representations: by itk-impact, and by one scalar metric a channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from dsir_metric_cli.main import app

from dsir_metric import io
from dsir_metric.bridges import process
from dsir_metric.errors import ConfigError, DsirError, MissingDependencyError, RegistrationError, ShapeError
from dsir_metric.geometry import Grid
from dsir_metric.itk import channel_metrics, impact, impact_method, impact_metric, multi_metric_method, to_itk
from dsir_metric.itk.transforms import transform_to_itk
from dsir_metric.metric import CosineMetric
from dsir_metric.packages import Package
from dsir_metric.phantom import PhantomPair
from dsir_metric.register import RegisterConfig, register
from dsir_metric.represent import Representation

itk = pytest.importorskip("itk")


def _impact_is_here() -> bool:
    try:
        impact.check_impact()
    except DsirError:
        return False
    return True


live = pytest.mark.skipif(not _impact_is_here(), reason="itk-impact is not installed, or torch is another one")
GRID = Grid(
    (20, 19, 18), (3.0, 2.5, 3.5), (-20.0, 5.0, 7.0), sitk.Euler3DTransform([0] * 3, 0.2, -0.1, 0.3).GetMatrix()
)


def waves(shift_mm: tuple[float, float, float] = (0, 0, 0), grid: Grid = GRID) -> Representation:
    """Smooth unit vectors, drawn at points moved by `shift_mm`."""
    points = grid.points_mm() - GRID.centre_mm - shift_mm
    rng = np.random.default_rng(4)
    phases = points @ rng.normal(0, 0.08, (3, 6)) + rng.uniform(0, 6, 6)
    values = np.concatenate([np.sin(phases), np.cos(phases[..., :2])], -1)
    return Representation((values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32), grid)


def ball(radius_mm: float = 16.0) -> sitk.Image:
    near = np.linalg.norm(GRID.points_mm() - GRID.centre_mm, axis=-1) < radius_mm
    return GRID.stamp(sitk.GetImageFromArray(near.astype(np.uint8)))


@pytest.mark.parametrize("channels", [None, 8])
def test_the_channels_of_itk_add_up_to_the_cosine(channels: int | None) -> None:
    fixed, moving, identity = waves(), waves((4.0, -2.0, 3.0)), itk.TranslationTransform[itk.D, 3].New()
    total = 0.0
    metrics = channel_metrics(to_itk(fixed), moving, channels=channels, fixed_mask=to_itk(ball()))
    for metric in metrics:
        metric.SetMovingTransform(identity)
        metric.Initialize()
        total += metric.GetValue()
    same = CosineMetric(fixed, moving, fixed_mask=ball()).value(sitk.TranslationTransform(3))
    assert len(metrics) == 8
    assert total / 2 - 1 == pytest.approx(same, abs=1e-5)
    assert len(channel_metrics(fixed, moving, channels=3)) == 3


def test_a_wheel_without_the_multi_metric_says_so() -> None:
    if hasattr(itk, "ObjectToObjectMultiMetricv4"):
        method = multi_metric_method(waves(), waves(), channels=2)
        assert method.GetMetric().GetNumberOfMetrics() == 2
        return
    with pytest.raises(MissingDependencyError, match=r"has no ObjectToObjectMultiMetricv4 in Python .*impact_metric"):
        multi_metric_method(waves(), waves())


def test_without_itk_impact_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Package, "version", None)
    line = r"itk-impact is not installed: pip install 'dsir-metric\[itk-impact\]'"
    with pytest.raises(MissingDependencyError, match=f"^{line}$"):
        impact_metric(waves(), waves())
    image = tmp_path / "a.nii.gz"
    io.write_image(sitk.GaussianSource(sitk.sitkFloat32, [16] * 3, [4] * 3, [8] * 3), image)
    result = CliRunner().invoke(
        app, ["register", str(image), str(image), "-o", str(tmp_path / "o"), "--backend", "itk", "-q"]
    )
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "pip install 'dsir-metric[itk-impact]'" in result.stderr
    assert not list((tmp_path / "o").glob("*"))
    monkeypatch.setenv("COLUMNS", "160")
    assert "dsir-metric[itk-impact]" in CliRunner().invoke(app, ["backends"]).stdout


def test_another_torch_than_it_was_compiled_against_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"itk-impact": "0.1.6", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(Package, "version", property(lambda package: versions.get(package.package)))
    monkeypatch.setattr(impact, "requires", lambda _: ["itk==5.4.*", "torch==2.12.*"])
    with pytest.raises(MissingDependencyError, match=r"compiled against torch 2\.12\.\*, 2\.13\.0\+cpu is installed"):
        impact.check_impact()
    assert "2.13.0+cpu is installed" in CliRunner().invoke(app, ["backends"]).stdout
    versions.pop("torch")
    with pytest.raises(MissingDependencyError, match="none is installed"):
        impact.check_impact()
    versions["torch"] = "2.12.1"
    impact.check_impact()


def test_what_stops_the_process_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RegistrationError, match=r"^itk failed: .*fixed\.nrrd"):
        process.run_module("itk", ["dsir_metric.itk.deform", "cpu"], tmp_path, 1, 120)


@live
def test_the_compiled_metric_is_one_minus_the_cosine() -> None:
    """At the voxels; on an oblique, anisotropic grid, and for a moving grid of its own."""
    moving = waves((4.0, -2.0, 3.0), GRID.padded(2))
    metric = impact_metric(to_itk(waves()), moving, fixed_mask=to_itk(ball()))
    transform = itk.TranslationTransform[itk.D, 3].New()
    metric.SetMovingTransform(transform)
    metric.Initialize()
    same = CosineMetric(waves(), moving, fixed_mask=ball())
    assert metric.GetValue() == pytest.approx(1 + same.value(sitk.TranslationTransform(3)), abs=1e-5)
    assert metric.GetNumberOfValidPoints() == same.valid_points
    step = [3.0, -2.5, 3.5]
    transform.SetParameters(itk.OptimizerParameters[itk.D](step))
    assert metric.GetValue() == pytest.approx(1 + same.value(sitk.TranslationTransform(3, step)), abs=5e-3)


@live
def test_an_earlier_transform_is_taken_in() -> None:
    """Given the true shift, the identity is where the two agree."""
    shift = transform_to_itk(sitk.TranslationTransform(3, [4.0, -2.0, 3.0]))
    values = []
    for initial in (None, shift):
        metric = impact_metric(waves(), waves((4.0, -2.0, 3.0)), fixed_mask=to_itk(ball()), initial_transform=initial)
        metric.SetMovingTransform(itk.TranslationTransform[itk.D, 3].New())
        metric.Initialize()
        values.append(metric.GetValue())
    assert values[1] < 0.02 * values[0]


@live
def test_itk_registers_rigidly() -> None:
    truth = sitk.Euler3DTransform(GRID.centre_mm.tolist(), 0.06, -0.04, 0.05, (3.0, -2.0, 1.5))
    turned = waves(grid=GRID.padded(2)).resampled(GRID.padded(2), truth.GetInverse(), extend=True).unit()
    metric = impact_metric(waves(), turned, fixed_mask=to_itk(ball()))
    found = itk.Euler3DTransform[itk.D].New()
    found.SetCenter(GRID.centre_mm.tolist())
    optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New()
    optimizer.SetLearningRate(2.0)
    optimizer.SetNumberOfIterations(60)
    scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New()
    scales.SetMetric(metric)
    optimizer.SetScalesEstimator(scales)
    method = impact_method(metric)
    method.SetInitialTransform(found)
    method.InPlaceOn()
    method.SetOptimizer(optimizer)
    method.Update()
    points = GRID.points_mm()[sitk.GetArrayFromImage(ball()) > 0]
    errors = [np.subtract(truth.TransformPoint(p), list(found.TransformPoint(p))) for p in points[::40].tolist()]
    assert np.linalg.norm(errors, axis=1).mean() < 0.4


@live
def test_the_backend_deforms() -> None:
    """A known deformation between images of one kind, on an oblique grid: what is left falls to less than half."""
    grid = Grid((28, 26, 24), (3.0, 3.0, 3.0), GRID.origin_mm, GRID.direction)
    bend = sitk.BSplineTransformInitializer(grid.image(), [2, 2, 2])
    bend.SetParameters(np.random.default_rng(1).normal(0, 2.5, bend.GetNumberOfParameters()))
    moving = waves(grid=grid)
    fixed = moving.resampled(grid, bend, extend=True).unit()
    near = np.linalg.norm(grid.points_mm() - grid.centre_mm, axis=-1) < 28
    mask = grid.stamp(sitk.GetImageFromArray(near.astype(np.uint8)))
    scan = grid.stamp(sitk.GetImageFromArray(fixed.values[..., 0]))
    config = RegisterConfig(backend="itk", stages=("deformable",), threads=1)
    found = register(scan, scan, config, representations=(fixed, moving), fixed_mask=mask, moving_mask=grid.image() + 1)
    inside = grid.points_mm()[np.linalg.norm(grid.points_mm() - grid.centre_mm, axis=-1) < 20][::37].tolist()
    moved = np.array([np.subtract(bend.TransformPoint(p), p) for p in inside])
    left = np.array([np.subtract(bend.TransformPoint(p), found.transform.TransformPoint(p)) for p in inside])
    assert not found.undone
    assert np.linalg.norm(left, axis=1).mean() < 0.5 * np.linalg.norm(moved, axis=1).mean()
    assert found.stages[-1].remark.startswith("itk on 8 channels, which keep 100.0 %")


def test_what_the_metrics_cannot_take(monkeypatch: pytest.MonkeyPatch, pair: PhantomPair) -> None:
    monkeypatch.setattr(impact, "check_impact", lambda: None)
    with pytest.raises(ShapeError, match="fixed has 8 channels and moving 9"):
        impact_metric(waves(), Representation(np.zeros((*GRID.shape, 9), np.float32), GRID))
    with pytest.raises(ConfigError, match="channels is 9; the representations have 1 to 8"):
        channel_metrics(waves(), waves(), channels=9)
