"""Instance optimisation in torch: objective and outcome of the compiled path, diffeomorphisms, other metrics."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from dsir_metric_cli.main import app
from numpy.typing import NDArray
from scipy import ndimage
from waves import GRID, level, with_scans

from dsir_metric.errors import ConfigError, DataError, MissingDependencyError, RegistrationError
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.phantom import PhantomPair
from dsir_metric.register import DeformableConfig, DenseConfig, InstanceConfig, RegisterConfig, register
from dsir_metric.register.deformable import fit_freeform
from dsir_metric.register.freeform import FreeForm
from dsir_metric.register.pair import Level, pyramid
from dsir_metric.register.presets import load_settings
from dsir_metric.register.problem import Deformation
from dsir_metric.represent import Representation, Representer, represent_pair, resolve_intensity
from dsir_metric.represent.background import background
from dsir_metric.represent.pair import resampled

torch = pytest.importorskip("torch")

from dsir_metric.torch import backend, instance  # noqa: E402
from dsir_metric.torch.instance import optimise  # noqa: E402
from dsir_metric.torch.mind import mind_ssc  # noqa: E402
from dsir_metric.torch.objective import Volumes  # noqa: E402
from dsir_metric.torch.parametrisation import BSplineField, DenseField, to_mm  # noqa: E402

Array = NDArray[np.float64]
CPU = torch.device("cpu")
IDENTITY = np.eye(4)
TILTED = np.array([[1.02, 0.03, 0, 3], [-0.03, 0.99, 0.01, -2], [0, 0, 1.01, 1], [0, 0, 0, 1.0]])


def bend(points: Array) -> Array:
    """A smooth deformation of up to 5 mm."""
    x, y, z = np.moveaxis(points / 40, -1, 0)
    return points + 5 * np.stack([np.sin(y + 1) * np.cos(z), np.cos(x - z), np.sin(x + y) * np.cos(z)], axis=-1)


def bent(linear: Array = IDENTITY) -> Level:
    return level(lambda p: bend(p) @ linear[:3, :3].T + linear[:3, 3])


def volumes(pair: Level, mask: sitk.Image | None = None) -> Volumes:
    return Volumes(
        torch.from_numpy(pair.fixed.values),
        torch.from_numpy(pair.moving.values),
        torch.from_numpy(sitk.GetArrayFromImage(pair.fixed_mask) != 0),
        pair.fixed.grid,
        pair.moving.grid,
        None if mask is None else torch.from_numpy(sitk.GetArrayFromImage(mask) != 0),
        None if mask is None else Grid.of(mask),
        pair.scans and (torch.from_numpy(pair.scans[0].values), torch.from_numpy(pair.scans[1].values)),
    )


def places(transform: sitk.Transform) -> Array:
    return GRID.points_mm() + DisplacementField.from_transform(transform, GRID).values


def error_mm(transform: sitk.Transform) -> float:
    """Mean distance from the truth, 8 mm or more away from the edge."""
    apart = np.linalg.norm(places(transform) - bend(GRID.points_mm()), axis=-1)
    return float(apart[2:-2, 2:-2, 2:-2].mean())


@pytest.mark.parametrize(("linear", "scans"), [(IDENTITY, False), (TILTED, False), (TILTED, True)])
def test_torch_and_compiled_path_end_in_the_same_place(linear: Array, scans: bool) -> None:
    pair, config = bent(linear), DeformableConfig(iterations=(20, 20, 20, 20))
    pair = with_scans(pair) if scans else pair
    compiled = fit_freeform(pyramid(pair), linear, config, lambda *_: None)
    found = optimise(volumes(pair), linear, deformable=config)
    apart = np.linalg.norm(places(found.transform) - places(compiled.transform), axis=-1)
    assert apart.mean() < 0.1 * GRID.spacing_mm[0]
    assert found.weights == pytest.approx(compiled.weights, rel=0.05)
    assert found.weights is not None
    assert found.weights[1] != pytest.approx(config.bending_mm2, rel=0.05)
    assert error_mm(found.transform) < 1.2 < 4 < error_mm(sitk.Transform(3, sitk.sitkIdentity))


def test_weights_are_those_given_but_on_the_last_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []

    class Watched(BSplineField):
        def __init__(self, freeform: FreeForm, grid: Grid, both: tuple[float, float], device: Any) -> None:
            super().__init__(freeform, grid, both, device)
            weights.extend([both] if any(both) else [])

    monkeypatch.setattr(instance, "BSplineField", Watched)
    config = DeformableConfig((48.0, 24.0, 12.0), (9, 9, 9))
    found = optimise(volumes(bent(IDENTITY)), IDENTITY, deformable=config)
    assert weights == [config.weights, config.weights, found.weights]
    assert found.weights is not None
    assert found.weights[1] != config.bending_mm2
    weights.clear()
    optimise(volumes(bent(IDENTITY)), IDENTITY, deformable=replace(config, adaptive=False))
    assert weights == [config.weights] * 3


def test_levels_are_those_of_the_compiled_path() -> None:
    odd = Grid((27, 25, 26), (3.0, 3.0, 3.0), (1.0, 2.0, 3.0))
    rng = np.random.default_rng(0)
    sides = [Representation(rng.standard_normal((*odd.shape, 4), np.float32), odd) for _ in range(2)]
    mask = odd.stamp(sitk.GetImageFromArray((rng.random(odd.shape) < 0.5).astype(np.uint8)))
    pair = with_scans(Level(sides[0], sides[1], mask))
    expected, found = pair.halved(), volumes(pair).halved()
    np.testing.assert_allclose(found.fixed.numpy(), expected.fixed.values, atol=1e-6)
    np.testing.assert_allclose(found.moving.numpy(), expected.moving.values, atol=1e-6)
    np.testing.assert_array_equal(found.mask.numpy(), sitk.GetArrayFromImage(expected.fixed_mask) != 0)
    for ours, theirs in zip(found.scans or (), expected.scans or (), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.values, atol=1e-6)
    assert found.fixed_grid.matches(expected.fixed.grid)
    assert found.moving_grid.matches(expected.moving.grid)


def test_a_moving_mask_counts_as_in_the_compiled_metric() -> None:
    half = sitk.Image([30, 40, 20], sitk.sitkUInt8) + 1  # on a grid of its own
    half.SetOrigin((-40.0, -60.0, -30.0))
    half.SetSpacing((2.0, 3.0, 2.5))
    pair = replace(bent(), moving_mask=half)
    metric = pair.metric()
    value, _, gradient = metric.at_points(metric.points_mm)
    points = instance._Points(volumes(pair, half), IDENTITY, None)
    field = torch.zeros(1, 3, *points.grid.shape, requires_grad=True)
    loss = points.compare(points.index(field), points.kept(points.index(field)), "dns")
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, abs=1e-6)
    expected = -gradient / metric.valid_points * np.array(GRID.spacing_mm)
    np.testing.assert_allclose(field.grad[0].flatten(1).T.numpy(), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("metric", ["dns", "mind", "nmi"])
@pytest.mark.parametrize("velocity", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_the_gradient_is_that_of_the_loss(metric: str, velocity: bool, dense: bool) -> None:
    pair = with_scans(bent())
    flow = GRID.padded(1).resampled(6.0) if velocity else None
    points = instance._Points(volumes(pair), TILTED, flow, whole=dense)
    field = (
        DenseField(points.grid, 0.4, CPU)
        if dense
        else BSplineField(FreeForm(GRID.padded(1), 24.0), points.grid, (0.3, 60.0), CPU)
    )
    config = InstanceConfig(metric=metric, velocity=velocity)  # type: ignore[arg-type]
    loss = instance._Loss(points, field, config, lambda *_: None, 0.5)
    generator = torch.Generator().manual_seed(1)
    at, step = (torch.randn(field.shape, generator=generator) * (0.02 if dense else 2.0) for _ in range(2))
    at.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), at)
    with torch.no_grad():
        slope = float(loss(at + 0.01 * step) - loss(at - 0.01 * step)) / 0.02
    assert float((gradient * step).sum()) == pytest.approx(slope, rel=0.02, abs=2e-4)


def test_smoothness_is_that_of_the_compiled_path() -> None:
    freeform = FreeForm(GRID, 20.0)
    coefficients = np.random.default_rng(2).standard_normal(freeform.shape)
    penalty = BSplineField(freeform, GRID, (0.3, 60.0), CPU).penalty(torch.from_numpy(coefficients).float())
    assert float(penalty) == pytest.approx(freeform.smoothness(coefficients, 0.3, 60.0)[0], rel=1e-4)


def test_a_field_in_voxels_comes_back_in_mm_on_an_oblique_grid() -> None:
    turned = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.4).GetMatrix()
    grid = Grid((9, 8, 7), (1.5, 2.0, 3.0), (4.0, 5.0, 6.0), tuple(turned))
    freeform = FreeForm(grid, 12.0)
    coefficients = np.random.default_rng(3).standard_normal(freeform.shape)
    values = BSplineField(freeform, grid, (0.0, 0.0), CPU).values(torch.from_numpy(coefficients).float())
    expected = np.moveaxis(freeform.evaluate(coefficients, freeform.bases(grid)), 0, -1)
    np.testing.assert_allclose(to_mm(values, grid).values, expected, atol=1e-5)
    back = DenseField(grid, 0.0, CPU)
    start = instance._first(back, DisplacementField(expected, grid), CPU)
    np.testing.assert_allclose(to_mm(back.values(start), grid).values, expected, atol=1e-5)


@pytest.mark.parametrize("parametrisation", ["bspline", "dense"])
def test_a_velocity_gives_a_diffeomorphism_with_its_inverse(parametrisation: str) -> None:
    dense = DenseConfig((0.5, 1.0), (60, 30), (1e-2, 5e-3), (0.02, 0.02))
    config = InstanceConfig(velocity=True, parametrisation=parametrisation, dense=dense)  # type: ignore[arg-type]
    found = optimise(volumes(bent()), IDENTITY, config, DeformableConfig((24.0, 12.0), (20, 20), 0.01, 1.0))
    assert error_mm(found.transform) < 1.2
    assert DisplacementField.from_transform(found.transform, GRID).jacobian_statistics()["folded_percent"] == 0
    assert found.inverse is not None
    there = places(found.transform).reshape(-1, 3)
    back = np.array([found.inverse.TransformPoint(p) for p in there.tolist()])
    off = np.linalg.norm(back - GRID.points_mm().reshape(-1, 3), axis=1)
    assert off.mean() < 0.02 * GRID.spacing_mm[0]
    assert off.max() < 0.5 * GRID.spacing_mm[0]


def test_the_papers_settings_align_a_pair() -> None:
    config = load_settings("paper")
    assert config.instance.dense == DenseConfig()
    found = optimise(volumes(bent()), IDENTITY, config.instance)
    assert error_mm(found.transform) < 2.0


def test_a_start_is_gone_on_from() -> None:
    truth = DisplacementField(bend(GRID.points_mm()) - GRID.points_mm(), GRID)
    for parametrisation in ("bspline", "dense"):
        dense = DenseConfig((1.0,), (1,), (1e-6,), (0.0,))
        config = InstanceConfig(parametrisation=parametrisation, dense=dense)  # type: ignore[arg-type]
        found = optimise(volumes(bent()), IDENTITY, config, DeformableConfig((12.0,), (1,), 0.0, 0.0), start=truth)
        assert error_mm(found.transform) < 0.3


def test_folding_is_smoothed_away() -> None:
    """Uncorrelated descriptors and no smoothness fold, unless it is seen and mended."""
    rng = np.random.default_rng(0)
    sides = [Representation(rng.standard_normal((*GRID.shape, 4)).astype(np.float32), GRID) for _ in range(2)]
    pair = Level(sides[0], sides[1], GRID.image() + 1)
    found = optimise(volumes(pair), IDENTITY, deformable=DeformableConfig((8.0,), (15,), 0.0, 0.0))
    assert "smoothed where it folded" in found.remark
    assert DisplacementField.from_transform(found.transform, GRID).jacobian_statistics()["folded_percent"] == 0


def test_progress_rises_to_the_end() -> None:
    seen: list[tuple[float, float]] = []
    config = DeformableConfig((24.0, 12.0), (5, 5))
    optimise(volumes(bent()), IDENTITY, deformable=config, on_iteration=lambda *a: seen.append(a))
    fractions = [f for f, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert seen[-1][1] < seen[0][1]


@pytest.fixture(scope="module")
def represented(pair: PhantomPair) -> tuple[Representation, Representation]:
    return represent_pair(pair.fixed, pair.moving, Representer(threads=1))


LINEAR = RegisterConfig(stages=("centre", "rigid", "affine"), threads=1)
DEFORMABLE = replace(LINEAR, stages=(*LINEAR.stages, "deformable"), backend="torch")


@pytest.mark.parametrize(
    "config",
    [
        InstanceConfig(),
        InstanceConfig(velocity=True),
        InstanceConfig(init="convex"),
    ],
)
def test_every_way_improves_a_phantom(
    config: InstanceConfig, pair: PhantomPair, represented: tuple[Representation, Representation]
) -> None:
    before = register(pair.fixed, pair.moving, LINEAR, representations=represented)
    after = register(pair.fixed, pair.moving, replace(DEFORMABLE, instance=config), representations=represented)
    assert not after.undone
    assert pair.error_mm(after.transform) < 0.98 * pair.error_mm(before.transform)
    assert (after.inverse is not None) == config.velocity


def test_mutual_information_improves_a_phantom(
    pair: PhantomPair, represented: tuple[Representation, Representation]
) -> None:
    """From the true rigid transform, so that no model has a say."""
    (start,) = (t for t in map(pair.truth.GetNthTransform, range(2)) if t.IsLinear())
    config = replace(DEFORMABLE, stages=("deformable",), instance=InstanceConfig(metric="nmi"))
    after = register(pair.fixed, pair.moving, config, representations=represented, initial_transform=start)
    assert not after.undone
    assert pair.error_mm(after.transform) < 0.9 * pair.error_mm(start)


@pytest.mark.parametrize("metric", ["mind", "nmi"])
def test_the_other_metrics_find_a_deformation(metric: str) -> None:
    """Squared differences of many channels; mutual information of one, inverted on the moving side."""
    pair, config = with_scans(bent()), DeformableConfig((24.0, 12.0), (20, 20), 0.01, 1.0)
    found = optimise(volumes(pair), IDENTITY, InstanceConfig(metric=metric), config)  # type: ignore[arg-type]
    assert error_mm(found.transform) < 2.0 < 4 < error_mm(sitk.Transform(3, sitk.sitkIdentity))


def test_mind_is_taken_of_the_scans(pair: PhantomPair, represented: tuple[Representation, Representation]) -> None:
    seen: list[Volumes] = []
    config = replace(DEFORMABLE, instance=InstanceConfig(metric="mind"))

    def look(found: Volumes, *_: object, **__: object) -> Deformation:
        seen.append(found)
        return Deformation(sitk.Transform(3, sitk.sitkIdentity))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "optimise", look)
        register(pair.fixed, pair.moving, config, representations=represented)
    (found,) = seen
    for values, image, side in zip((found.fixed, found.moving), (pair.fixed, pair.moving), represented, strict=True):
        raw = sitk.GetArrayFromImage(resampled(image, side.grid))
        window = resolve_intensity(sitk.GetArrayFromImage(image))
        expected = mind_ssc(torch.from_numpy(window.apply(raw))[None, None])[0].movedim(0, -1)
        torch.testing.assert_close(values, expected)
        assert values.shape[-1] == 12
    assert found.moving_grid.matches(represented[1].grid)


def test_a_transform_that_is_not_linear_may_come_first(
    pair: PhantomPair, represented: tuple[Representation, Representation]
) -> None:
    grid = represented[0].grid.padded(2)
    bulge = DisplacementField(np.full((*grid.shape, 3), (2.0, -1.0, 1.5)), grid).to_transform()
    as_they_are = replace(DEFORMABLE.deformable, mixed=False)
    config = replace(DEFORMABLE, stages=("affine", "deformable"), deformable=as_they_are)
    plain, compiled = (
        register(pair.fixed, pair.moving, c, initial_transform=bulge, representations=represented)
        for c in (config, replace(config, backend="sitk"))
    )
    assert not plain.undone
    assert pair.error_mm(plain.transform) == pytest.approx(pair.error_mm(compiled.transform), rel=0.15)


def test_the_discrete_search_reaches_what_descent_does_not() -> None:
    """A shift of 48 mm of noise that is alike over some 8 mm."""
    shift = np.array([0.0, 0.0, 48.0])
    grid = Grid((40, 40, 40), (4.0, 4.0, 4.0), (-80.0, -80.0, -80.0))
    rng = np.random.default_rng(1)
    noise = [np.asarray(sitk.GetArrayFromImage(_smooth(rng, grid, 4.0))) for _ in range(12)]
    values = np.stack(noise, axis=-1).astype(np.float32)
    side = Representation(values, grid)
    moved = side.resampled(grid, sitk.TranslationTransform(3, shift.tolist()), extend=False)
    mask = grid.image()
    mask[8:32, 8:32, 3:24] = 1
    found = {}
    for init in ("zero", "convex"):
        start = backend._convex(volumes(Level(moved, side, mask)), IDENTITY, "dns") if init == "convex" else None
        out = optimise(volumes(Level(moved, side, mask)), IDENTITY, start=start)
        u = DisplacementField.from_transform(out.transform, grid).values[sitk.GetArrayFromImage(mask) != 0]
        found[init] = np.linalg.norm(u - shift, axis=1).mean()
    assert found["convex"] < 4.0 < 20.0 < found["zero"]


def _smooth(rng: np.random.Generator, grid: Grid, sigma_mm: float) -> sitk.Image:
    noise = grid.stamp(sitk.GetImageFromArray(rng.standard_normal(grid.shape).astype(np.float32)))
    return sitk.SmoothingRecursiveGaussian(noise, sigma_mm)


def test_both_paths_write_what_simpleitk_reads(pair: PhantomPair, tmp_path: Path) -> None:
    files = {"fixed": pair.fixed, "moving": pair.moving}
    for name, image in files.items():
        sitk.WriteImage(image, tmp_path / f"{name}.nii.gz")
    moved = []
    for options in (["--backend", "sitk"], ["--backend", "torch"], ["--backend", "torch", "--velocity"]):
        out = tmp_path / "-".join(o.strip("-") for o in options)
        common = ["-o", str(out), "--threads", "1", "--stages", "centre,rigid,affine,deformable", "-q"]
        scans = [str(tmp_path / f"{name}.nii.gz") for name in files]
        answer = CliRunner().invoke(app, ["register", *scans, *common, *options])
        assert answer.exit_code == 0, answer.output
        transform = sitk.ReadTransform(str(out / "transform.h5"))
        ours = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "moved.nii.gz")))
        again = sitk.GetArrayFromImage(
            sitk.Resample(pair.moving, pair.fixed, transform, sitk.sitkLinear, background(pair.moving))
        )
        np.testing.assert_allclose(ours, again, atol=1e-3)
        assert (out / "inverse.h5").exists() == ("--velocity" in options)
        moved.append(ours)
    contrast = moved[0].std()
    assert np.abs(moved[1] - moved[0]).mean() < 0.02 * contrast
    assert np.abs(moved[2] - moved[0]).mean() < 0.1 * contrast
    inverse = sitk.ReadTransform(str(tmp_path / "backend-torch-velocity" / "inverse.h5"))
    forward = sitk.ReadTransform(str(tmp_path / "backend-torch-velocity" / "transform.h5"))
    middle = np.array(Grid.of(pair.fixed).centre_mm)
    np.testing.assert_allclose(inverse.TransformPoint(forward.TransformPoint(middle.tolist())), middle, atol=0.3)


def test_bad_settings_are_told_in_one_line() -> None:
    for settings, said in [
        ({"backend": "sitk", "instance": InstanceConfig(metric="nmi")}, "only torch has them"),
        ({"backend": "greedy", "instance": InstanceConfig(velocity=True)}, "only torch has them"),
    ]:
        with pytest.raises(ConfigError, match=said):
            RegisterConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="convex compares descriptors"):
        InstanceConfig(metric="nmi", init="convex")
    with pytest.raises(ConfigError, match="3, 3, 2, 3 values"):
        DenseConfig(learning_rate=(1e-2, 1e-3))
    with pytest.raises(ConfigError, match="rising shares"):
        DenseConfig(scales=(1.0, 0.5, 0.75))
    with pytest.raises(ConfigError, match="weight must be a number above 0"):
        InstanceConfig(weight=0.0)
    with pytest.raises(ConfigError, match=r"give a TOML file or one of paper$"):
        load_settings("papier")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(pair: PhantomPair, represented: tuple[Representation, Representation]) -> None:
    with pytest.raises(MissingDependencyError, match="torch finds no GPU"):
        register(pair.fixed, pair.moving, replace(DEFORMABLE, device="cuda"), representations=represented)


def test_mutual_information_without_scans_is_told() -> None:
    with pytest.raises(DataError, match="needs the scans"):
        optimise(volumes(bent()), IDENTITY, InstanceConfig(metric="nmi"))


def test_points_that_all_leave_are_told() -> None:
    away = np.eye(4)
    away[:3, 3] = 1000.0
    with pytest.raises(RegistrationError, match="images overlap"):
        optimise(volumes(bent()), away)


def test_without_torch_the_extra_is_named(tmp_path: Path) -> None:
    code = f"""
import importlib.metadata as metadata, sys
sys.modules["torch"] = None
real = metadata.version
def version(name):
    if name == "torch":
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
from dsir_metric_cli.main import app
app(["register", {str(tmp_path / "a.nii.gz")!r}, {str(tmp_path / "b.nii.gz")!r}, "-o", "x", "--backend", "torch"])
"""
    image = sitk.GaussianSource(sitk.sitkFloat32, [16, 16, 16], [4, 4, 4], [8, 8, 8], 100.0)
    for name in ("a", "b"):
        sitk.WriteImage(image, tmp_path / f"{name}.nii.gz")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert answer.returncode == 2
    assert answer.stderr == "error: torch is not installed: pip install 'dsir-metric[torch]'\n"


def test_representations_are_smoothed_once_before_they_are_compared(
    pair: PhantomPair, represented: tuple[Representation, Representation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equation 5 of the paper: the Gaussian's width is in voxels, and it is there only if asked for."""
    given: list[Volumes] = []
    monkeypatch.setattr(
        backend, "optimise", lambda finest, *_, **__: (given.append(finest), Deformation(sitk.Transform(), ""))[1]
    )
    for sigma in (0.0, 1.5):
        config = replace(
            DEFORMABLE,
            instance=InstanceConfig(gaussian_sigma=sigma),
            deformable=DeformableConfig(mixed=False),
            turn_deg=180.0,
        )
        register(pair.fixed, pair.moving, config, representations=represented)
    plain, smooth = given
    for side, before in (("fixed", plain.fixed), ("moving", plain.moving)):
        after = getattr(smooth, side).numpy()
        expected = ndimage.gaussian_filter(before.numpy(), (1.5, 1.5, 1.5, 0), mode="nearest", truncate=3.0)
        np.testing.assert_allclose(after, expected, atol=1e-5)
        assert np.linalg.norm(after, axis=-1).min() < 0.9  # directions that differ cancel


@pytest.mark.parametrize("sigma", [-0.1, 8.1, float("nan"), float("inf")])
def test_the_width_of_the_gaussian_has_a_range(sigma: float) -> None:
    with pytest.raises(ConfigError, match="gaussian_sigma must be a number"):
        InstanceConfig(gaussian_sigma=sigma)


@pytest.mark.parametrize("metric", ["mind", "nmi"])
def test_the_gaussian_is_for_representations(metric: str) -> None:
    with pytest.raises(ConfigError, match=f"got metric {metric}"):
        InstanceConfig(metric=metric, gaussian_sigma=1.0)  # type: ignore[arg-type]


def test_the_papers_settings_have_the_gaussian_and_the_default_has_none() -> None:
    assert load_settings("paper").instance.gaussian_sigma == 1.0
    assert InstanceConfig().gaussian_sigma == 0.0
