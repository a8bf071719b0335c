"""Training: views of one anatomy, the contrastive loss, recipes, and a run that can be broken off anywhere."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage, stats

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
from dsir_metric_train import loop  # noqa: E402
from dsir_metric_train.checkpoint import load_network  # noqa: E402
from dsir_metric_train.loop import Contrast, train  # noqa: E402
from dsir_metric_train.loss import alignment_loss, contrastive_loss, descriptors_at, sample_points  # noqa: E402
from dsir_metric_train.model import MasrNet  # noqa: E402
from dsir_metric_train.recipe import Recipe  # noqa: E402
from dsir_metric_train.views import (  # noqa: E402
    Appearance,
    Bodies,
    LabelMaps,
    Paint,
    Pairs,
    Partner,
    Placement,
    Scans,
    Shapes,
    Source,
    Views,
    find_images,
)
from dsir_metric_train.views.appearance import bezier_curve, random_appearance, smooth_noise  # noqa: E402
from dsir_metric_train.views.cache import Cache  # noqa: E402

from dsir_metric.config import from_dict, load_toml  # noqa: E402
from dsir_metric.errors import ConfigError, DataError, ShapeError  # noqa: E402
from dsir_metric.evaluate import overlay, read_outline  # noqa: E402
from dsir_metric.geometry import Grid  # noqa: E402
from dsir_metric.phantom import make_pair  # noqa: E402
from dsir_metric.represent import load_card  # noqa: E402

RECIPES = Path(__file__).parents[1] / "train" / "recipes"
PLAIN = Appearance(invert=0.0)
LAWS = Paint(mr=1, ct=1, us=1, detail=0.1)
SMALL = Placement(crop=16, spacing_mm=(1.0, 2.0), rotation_deg=15, relative_rotation_deg=8, relative_shift_vox=2)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans and a label map of about 56 mm, in three formats."""
    folder = tmp_path_factory.mktemp("data")
    pair = make_pair((28, 26, 24), (2.0, 2.2, 2.4), ("t1", "ct"), amplitude_mm=2.0)
    for name, image in {
        "a.nii.gz": pair.fixed,
        "b.nrrd": pair.fixed * 2 + 7,
        "c.mha": pair.moving,
        "labels/d.nii.gz": pair.fixed_labels,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        sitk.WriteImage(image, str(folder / name))
    return folder


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def smooth(shape: tuple[int, ...]) -> NDArray[np.float32]:
    z, y, x = np.meshgrid(*[np.linspace(0, 3, n) for n in shape], indexing="ij")
    return (0.5 + 0.3 * np.sin(x + 2 * y) * np.cos(1.5 * z - y)).astype(np.float32)


@pytest.mark.parametrize("points", [4, 7])  # of four, any order would do
def test_bezier_curve_rises_from_0_to_1(points: int) -> None:
    for seed in range(50):
        x, y = bezier_curve(rng(seed), points)
        for values in (x, y):
            assert values[0] == 0.0
            assert values[-1] == pytest.approx(1.0)
            assert (np.diff(values) >= -1e-7).all()
    assert np.abs(np.subtract(*bezier_curve(rng(1)))).max() > 0.02


def test_appearance_without_any_change_is_the_image() -> None:
    image = smooth((9, 10, 11))
    np.testing.assert_array_equal(random_appearance(rng(), image, PLAIN, curve=False), image)


def test_inversion_turns_the_order_round() -> None:
    image = smooth((9, 10, 11))
    darker = random_appearance(rng(), image, Appearance(invert=1.0))
    assert np.corrcoef(image.ravel(), darker.ravel())[0, 1] < -0.8
    assert np.corrcoef(image.ravel(), random_appearance(rng(), image, PLAIN).ravel())[0, 1] > 0.8


@pytest.mark.parametrize("rule", [Appearance(bias=0.5), Appearance(noise=0.2), Appearance(blur_vox=2.0)])
def test_each_change_keeps_shape_and_range(rule: Appearance) -> None:
    image = rng(3).random((12, 13, 14)).astype(np.float32)
    came = random_appearance(rng(), image, rule, curve=False)
    assert came.shape == image.shape
    assert came.dtype == np.float32
    assert came.min() >= 0
    assert came.max() <= 1
    assert 0.01 < np.abs(came - image).mean() < 0.5


def test_smooth_noise_is_smooth_and_centred() -> None:
    field = smooth_noise(rng(), (20, 21, 22), 4)
    assert field.shape == (20, 21, 22)
    assert np.abs(field).max() <= 1
    assert np.abs(np.diff(field, axis=0)).max() < 0.35


def test_crops_correspond_under_their_warp() -> None:
    volume = smooth((60, 62, 64))
    placement = Placement(16, (1.0, 1.5), 20.0, 10.0, 0.1, 3.0)
    matrix, warp = placement.draw(rng(2))
    first, second = placement.cut_both(volume, np.array([30.0, 32.0, 29.0]), matrix, warp, order=1)
    index = np.argwhere(np.ones(first.shape, bool))
    there = index @ warp[:, :3].T + warp[:, 3]
    inside = ((there >= 0) & (there <= 15)).all(axis=1)
    assert 0.3 < inside.mean() < 1.0
    assert np.abs(there - index).max() > 3
    values = ndimage.map_coordinates(second, there[inside].T, order=1)
    np.testing.assert_allclose(values, first[tuple(index[inside].T)], atol=0.005)
    assert np.abs(first - second).max() > 0.05


def test_crop_has_the_drawn_voxel_size_and_no_warp_by_default() -> None:
    matrix, warp = Placement(16, (2.0, 2.0), 30.0).draw(rng())
    np.testing.assert_allclose(matrix @ matrix.T, 4 * np.eye(3), atol=1e-9)
    np.testing.assert_allclose(warp, np.eye(3, 4), atol=1e-12)


def sources(data: Path) -> dict[str, Source]:
    return {
        "scans": Scans(find_images(data, ["*"]), SMALL, Appearance(), True),
        "labels": LabelMaps(find_images(data, ["labels/*"]), SMALL, LAWS, Appearance(), strip_above=2),
        "shapes": Shapes(SMALL, LAWS, Appearance()),
        "bodies": Bodies(SMALL, LAWS, Appearance()),
    }


def test_sources_draw_valid_views_that_the_generator_decides(data: Path) -> None:
    for name, source in sources(data).items():
        views, again, other = source.draw(rng(1)), source.draw(rng(1)), source.draw(rng(2))
        for view in (views.first, views.second):
            assert view.shape == (16, 16, 16), name
            assert view.dtype == np.float32, name
            assert view.min() >= 0, name
            assert view.max() <= 1, name
            assert view.std() > 0.01, name
        assert views.foreground.dtype == bool, name
        assert views.foreground.any(), name
        assert views.warp.shape == (3, 4), name
        np.testing.assert_array_equal(views.first, again.first)
        np.testing.assert_array_equal(views.second, again.second)
        assert not np.array_equal(views.first, other.first), name


def test_paper_leaves_the_first_view_as_it_is(data: Path) -> None:
    files = find_images(data, ["a.nii.gz"])
    placement = Placement(crop=16)
    rules = (PLAIN, Appearance(invert=1.0))
    views, inverted = (Scans(files, placement, rule, both=False).draw(rng(5)) for rule in rules)
    np.testing.assert_array_equal(views.first, inverted.first)
    assert not np.array_equal(views.second, inverted.second)
    assert not np.array_equal(views.first, Scans(files, placement, PLAIN, both=True).draw(rng(5)).first)
    order = np.argsort(views.first[views.foreground])
    steps = np.diff(views.second[views.foreground][order])
    assert (steps >= -1e-6).all()  # one rising curve


@pytest.mark.parametrize("spacing", [1.0, 3.0])  # cut from the volume of 1 mm, and from that of 2 mm
def test_a_crop_of_a_scan_lies_about_a_point_of_the_body(spacing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(0, 1, 80, dtype=np.float32)[:, None, None] * np.ones((80, 80, 80), np.float32)
    ramp[:40] = 0
    scans = Scans([Path("half.nii")], Placement(16, (spacing, spacing)), PLAIN, both=False)
    monkeypatch.setattr(scans, "read", lambda _: (ramp, ramp[::2, ::2, ::2].copy()))
    for seed in range(5):
        view = scans.draw(rng(seed)).first
        assert view[7:9, 7:9, 7:9].max() > 0.4
        steps = np.diff(view, axis=0)
        assert np.median(steps[np.abs(steps) > 1e-4]) == pytest.approx(spacing / 79, rel=0.01)


def agreement(views: Views) -> float:
    """Rank correlation of the two views at points that correspond."""
    points = sample_points(torch.from_numpy(views.foreground), torch.from_numpy(views.warp), 2000)
    first, second = (p.T.double().numpy() for p in points)
    values = (ndimage.map_coordinates(v, at, order=1) for v, at in ((views.first, first), (views.second, second)))
    return float(stats.spearmanr(*values).statistic)


@pytest.fixture(scope="session")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An organ in two scans of different brightness, the second one moved by an affine map, and its outline in both."""
    folder, truth = tmp_path_factory.mktemp("apart"), sitk.AffineTransform(3)
    truth.SetMatrix([1.1, 0.1, 0, -0.1, 0.95, 0.05, 0, 0, 0.9])
    truth.SetTranslation([9.0, -7.0, 6.0])
    z, y, x = np.meshgrid(*[np.arange(48.0) - 24] * 3, indexing="ij")
    inside = (x / 18) ** 2 + (y / 14) ** 2 + (z / 11) ** 2 < 1
    texture = ndimage.gaussian_filter(rng(3).standard_normal(inside.shape), 3)
    scan = 100 + 1500 * texture * inside + 60 * inside
    for name, values in {"us": scan, "mr": 3 * scan + 11, "outline": inside.astype(np.uint8)}.items():
        image = sitk.GetImageFromArray(values)
        image.SetOrigin((-24, -24, -24))
        sitk.WriteImage(image, str(folder / f"1_{name}.mha"))
        interpolator = sitk.sitkNearestNeighbor if name == "outline" else sitk.sitkLinear
        moved = sitk.Resample(image, image, truth, interpolator, float(values.min()))
        sitk.WriteImage(moved, str(folder / f"1_{name}_moved.mha"))
    return folder


def test_a_pair_that_lies_on_each_other_shares_its_points(apart: Path) -> None:
    placement = Placement(16, (1.0, 2.5), 15, 8, 0.05, 2)
    there = Pairs([apart / "1_us.mha"], [Partner(apart / "1_mr.mha")], placement, PLAIN)
    away = Pairs([apart / "1_us.mha"], [Partner(apart / "1_mr_moved.mha")], placement, PLAIN)
    for seed in range(4):
        assert agreement(there.draw(rng(seed))) > 0.97
        assert agreement(away.draw(rng(seed))) < 0.6


def test_a_scan_may_have_two_partners(apart: Path) -> None:
    cache, placement = Cache(), Placement(16, (1.0, 2.5))
    for partner, least, most in (("1_mr.mha", 0.97, 1.0), ("1_mr_moved.mha", -1.0, 0.6)):
        pairs = Pairs([apart / "1_us.mha"], [Partner(apart / partner)], placement, PLAIN, cache=cache)
        assert least <= agreement(pairs.draw(rng(0))) <= most


def test_a_pair_is_laid_over_each_other_by_its_outlines(apart: Path) -> None:
    placement = Placement(16, (1.0, 2.5), 15, 8, 0.05, 2)
    outlines = (apart / "1_outline.mha", apart / "1_outline_moved.mha")
    files = [apart / "1_us.mha"], [Partner(apart / "1_mr_moved.mha", outlines)]
    pairs = Pairs(*files, placement, PLAIN)
    scan, other, where, *coarse = pairs.read(files[0][0])
    organ = sitk.GetArrayFromImage(sitk.ReadImage(str(outlines[0]))) > 0
    distance = ndimage.distance_transform_edt(~organ)
    assert not where[distance > 6].any()
    assert where[distance < 4].mean() > 0.95
    assert stats.spearmanr(scan[organ], other[organ]).statistic > 0.8  # an ellipsoid tells its turn but roughly
    assert [v.shape for v in coarse] == [(24, 24, 24)] * 3
    views = pairs.draw(rng(0))
    assert views.foreground.any()


def test_a_smooth_displacement_brings_outlines_closer_than_an_affine_map() -> None:
    z, y, x = np.meshgrid(*[np.arange(48.0) - 24] * 3, indexing="ij")
    organs = [(x / 16) ** 2 + ((y - bend * x**2) / 12) ** 2 + (z / 11) ** 2 < 1 for bend in (0.0, 0.03)]
    fixed, moving = (sitk.GetImageFromArray(o.astype(np.uint8)) for o in organs)

    def overlap(transform: sitk.Transform) -> float:
        moved = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkNearestNeighbor)) > 0
        return float(2 * (moved & organs[0]).sum() / (moved.sum() + organs[0].sum()))

    affine, smooth = overlap(overlay(fixed, moving)), overlap(overlay(fixed, moving, smooth=True))
    assert affine < 0.92
    assert smooth > 0.95


def test_a_pair_that_cannot_be_used_is_passed_over(apart: Path, tmp_path: Path) -> None:
    for name in ("1_us.mha", "2_us.mha", "1_mr.mha"):
        (tmp_path / name).write_bytes((apart / name.replace("2", "1")).read_bytes())
    (tmp_path / "2_mr.mha").write_text("broken")
    sources = [{**PAIRS, "files": ["*us.mha"], "partners": ["*mr.mha"]}]
    mapping = {"sources": sources, "placement": {"crop": 16}}
    (pairs,) = from_dict(Recipe, mapping).open_sources(tmp_path)
    assert isinstance(pairs, Pairs)
    for seed in range(6):
        pairs.draw(rng(seed))
    assert list(pairs.unusable) == [str(tmp_path / "2_us.mha")]
    assert "2_mr.mha" in str(pairs.unusable[str(tmp_path / "2_us.mha")])
    (tmp_path / "2_mr.mha").unlink()
    with pytest.raises(ConfigError, match="2 files, but 1 partners match"):
        from_dict(Recipe, mapping).open_sources(tmp_path)
    sources.append({**SCANS, "files": ["*us.mha"]})
    files = [line["file"] for line in from_dict(Recipe, mapping).manifest(tmp_path)]
    assert files == ["1_mr.mha", "1_us.mha", "2_us.mha"]  # each once


def test_an_outline_needs_a_label(apart: Path, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image(8, 8, 8, sitk.sitkUInt8), str(tmp_path / "none.mha"))
    (tmp_path / "text.mha").write_text("no image")
    for name, message in (
        ("none.mha", "holds no label"),
        ("text.mha", "is truncated or damaged"),
        ("no.mha", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            read_outline(tmp_path / name)
    several = sitk.JoinSeries([sitk.Image(8, 8, 8, sitk.sitkUInt8) + v for v in (1, 0)])
    sitk.WriteImage(several, str(tmp_path / "several.nii.gz"))
    assert sitk.GetArrayFromImage(read_outline(tmp_path / "several.nii.gz")).all()


def test_skull_and_skin_are_removed_now_and_then(data: Path) -> None:
    maps = LabelMaps(find_images(data, ["labels/*"]), SMALL, LAWS, Appearance(), strip_above=1)
    assert {bool(maps.draw(rng(seed)).foreground.any()) for seed in range(12)} == {True, False}


def test_voxel_size_may_be_assumed(data: Path) -> None:
    scans = Scans(find_images(data, ["a.nii.gz"]), Placement(crop=16), PLAIN, False, assume_spacing_mm=1.0)
    assert scans.read(data / "a.nii.gz")[0].shape == (24, 26, 28)
    assert Scans([], Placement(16), PLAIN, False).read(data / "a.nii.gz")[0].shape == (58, 57, 56)


def test_images_are_found_by_pattern(data: Path, tmp_path: Path) -> None:
    assert [f.name for f in find_images(data, ["*"])] == ["a.nii.gz", "b.nrrd", "c.mha"]
    assert [f.name for f in find_images(data, ["labels/*", "*.mha", "c*"])] == ["c.mha", "d.nii.gz"]
    (tmp_path / "SCAN.NII").touch()
    assert [f.name for f in find_images(tmp_path, ["*"])] == ["SCAN.NII"]
    (tmp_path / "SCAN.NII").unlink()
    with pytest.raises(DataError, match="no NIfTI, NRRD or MetaImage file"):
        find_images(tmp_path, ["*"])
    for pattern in ("", "/scans/*"):
        with pytest.raises(ConfigError, match="give patterns below"):
            find_images(data, [pattern])


def test_points_lie_in_the_foreground_and_in_both_views() -> None:
    foreground = torch.zeros(10, 11, 12, dtype=torch.bool)
    foreground[2:9, 3:10, 1:12] = True
    warp = torch.cat([torch.eye(3), torch.tensor([[1.5], [0.0], [-2.0]])], dim=1)
    first, second = sample_points(foreground, warp, 10_000, torch.Generator().manual_seed(0))
    assert foreground[tuple(first.T)].all()
    assert len(torch.unique(first, dim=0)) == len(first) == 6 * 7 * 10  # z 2..7, y 3..9, x 2..11
    torch.testing.assert_close(second, first + torch.tensor([1.5, 0.0, -2.0]))
    few, _ = sample_points(foreground, warp, 50, torch.Generator().manual_seed(0))
    assert len(few) == 50


def test_descriptors_between_voxels() -> None:
    z, y, x = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in (5, 6, 7)], indexing="ij")
    volume = torch.stack([z + 1, y - 2 * x, 0.5 * z - y, torch.ones_like(x)])
    points = torch.tensor([[1.25, 2.5, 3.75], [0.0, 5.0, 6.0], [3.5, 0.5, 0.25]])
    z, y, x = points.T
    expected = torch.stack([z + 1, y - 2 * x, 0.5 * z - y, torch.ones_like(x)], dim=1)
    torch.testing.assert_close(descriptors_at(volume, points), expected / expected.norm(dim=1, keepdim=True))
    whole = torch.tensor([[4, 0, 6], [1, 2, 3]])
    torch.testing.assert_close(descriptors_at(volume, whole), torch.stack([volume[:, 4, 0, 6], volume[:, 1, 2, 3]]))


def test_loss_is_equation_4() -> None:
    first, second = torch.nn.functional.normalize(torch.randn(2, 9, 5, dtype=torch.float64), dim=2)
    tau = 0.07
    rows = []
    for i in range(9):
        negatives = sum(torch.exp(first[i] @ second[j] / tau) for j in range(9) if j != i)
        positive = torch.exp(first[i] @ second[i] / tau)
        rows.append(-torch.log(positive / (positive + negatives)))
    torch.testing.assert_close(contrastive_loss(first, second, tau), torch.stack(rows).mean())
    one, other = (contrastive_loss(*views, tau) for views in ((first, second), (second, first)))
    assert one != other
    both = contrastive_loss(first, second, tau, symmetric=True)
    torch.testing.assert_close(both, (one + other) / 2)
    torch.testing.assert_close(both, contrastive_loss(second, first, tau, symmetric=True))


SCANS = {"kind": "scans", "files": ["*"]}
PAIRS = {"kind": "pairs", "files": ["*"], "partners": ["*"]}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"sources": [SCANS], "optimisation": {"step": 3}}, "did you mean steps"),
        ({"sources": [SCANS], "placement": {"crop": 20}}, "crop is 20; a multiple of 8"),
        ({"sources": [SCANS], "placement": {"crop": 8}}, "crop must be a whole number from 16"),
        ({"sources": []}, "sources must have 1 to 1000 entries, got 0"),
        ({"sources": [SCANS], "appearance": {"artefacts": 1.5}}, "artefacts must be a number from 0 to 1, got 1.5"),
        ({"sources": [SCANS], "appearance": {"invert": -0.1}}, "invert must be a number from 0 to 1, got -0.1"),
        ({"sources": [SCANS], "placement": {"crop": 16}, "appearance": {"slices_vox": 9}}, "at most half a crop"),
        ({"sources": [{"kind": "scans"}]}, "need some"),
        ({"sources": [{"kind": "shapes", "files": ["*"]}]}, "kind 'shapes' with files"),
        ({"sources": [{"kind": "pairs", "files": ["*"]}]}, "pairs alone need some"),
        ({"sources": [{**SCANS, "partners": ["*"]}]}, "pairs alone need some"),
        ({"sources": [{**PAIRS, "outlines": ["*"]}]}, "give both or neither"),
        ({"sources": [{"kind": "shapes", "weight": 0}]}, r"sources\[0\].weight must be a number above 0"),
        ({"sources": [SCANS], "optimisation": {"steps": 0}}, "steps must be a whole number from 1 to"),
        ({"sources": [SCANS], "optimisation": {"alignment": -1.0}}, "alignment must be a number from 0 to .* got -1.0"),
        ({"sources": [SCANS], "optimisation": {"alignment": float("nan")}}, "alignment must be a number .* got nan"),
        ({"sources": [SCANS], "paint": {"finer": 0}}, "finer must be a whole number from 1 to 8, got 0"),
        ({"sources": [SCANS], "optimisation": {"seed": -1}}, "seed must be a whole number from 0 to"),
        ({"sources": [{**SCANS, "assume_spacing_mm": -1}]}, "assume_spacing_mm must be a number from 0 to"),
        ({"sources": [SCANS], "placement": {"spacing_mm": [2, 1]}}, "smallest voxel size first"),
        ({"sources": [SCANS], "placement": {"spacing_mm": [0, 1]}}, r"spacing_mm\[0\] must be a number from 0.0001"),
        ({"sources": [SCANS], "appearance": {"control_points": 1}}, "control_points must be a whole number from 2 to"),
        ({"sources": [SCANS], "appearance": {"noise": -1}}, "noise must be a number from 0 to"),
        ({"sources": [SCANS], "paint": {"texture": -1}}, "texture must be a number from 0 to"),
        ({"sources": [SCANS], "model": {"widths": []}}, "widths must have 1 to 7 entries"),
        ({"sources": [SCANS], "model": {"features": 0}}, "features must be a whole number from 1"),
        ({"sources": [SCANS], "model": {"dilations": [0]}}, r"dilations\[0\] must be a whole number from 1"),
        ({"sources": [SCANS], "model": {"blur": [1, 1]}}, "blur must be an odd number of weights"),
    ],
)
def test_a_wrong_recipe_is_refused(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Recipe, mapping)


def test_sources_are_drawn_by_their_weights() -> None:
    sources = [SCANS, {"kind": "shapes", "weight": 3.0}]
    np.testing.assert_allclose(from_dict(Recipe, {"sources": sources}).shares(), [0.25, 0.75])


def contrast(**optimisation: object) -> Contrast:
    model = {"widths": [4, 8], "features": 2}
    sources = [{"kind": "shapes"}]
    return Contrast(from_dict(Recipe, {"sources": sources, "model": model, "optimisation": optimisation}), Path())


def waves(shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    """Unit descriptors (200, 24, 24, 24) that vary smoothly; `shift`, in voxels z, y, x, moves what they show."""
    at = np.moveaxis(np.indices((24,) * 3) - np.reshape(shift, (3, 1, 1, 1)), 0, -1)
    values = np.cos(at @ rng(1).normal(0, 0.25, (3, 200)) + rng(2).uniform(0, 6, 200))
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return torch.tensor(np.moveaxis(values, -1, 0), dtype=torch.float32)


def lattice() -> torch.Tensor:
    return torch.from_numpy(np.argwhere(np.ones((8, 8, 8), bool)) + 8)


def test_alignment_loss_measures_by_how_much_a_registration_would_be_off() -> None:
    first, points = waves(), lattice()
    described = descriptors_at(first, points)
    assert float(alignment_loss(described, first, points, points.float(), cell_vox=8)) < 1e-3
    for shift in ((0.2, 0.0, 0.0), (0.0, -0.4, 0.0)):
        found = float(alignment_loss(described, waves(shift), points, points.float(), cell_vox=8))
        parts = [2 * s**2 if abs(s) < 0.25 else abs(s) - 0.125 for s in shift]  # smooth L1 up to a quarter of a voxel
        assert found == pytest.approx(np.mean(parts), rel=0.1)
        true = points + torch.tensor(shift)  # what is known of the shift does not count
        assert float(alignment_loss(described, waves(shift), points, true, cell_vox=8)) < 0.1 * found


def test_alignment_loss_can_be_descended_and_needs_points() -> None:
    volume, points = waves((0.0, 0.3, 0.0)).requires_grad_(), lattice()
    described = descriptors_at(waves(), points)
    loss = alignment_loss(described, volume, points, points.float())
    loss.backward()
    assert volume.grad is not None
    lower = (volume - 0.5 * volume.grad / volume.grad.norm()).detach()
    assert alignment_loss(described, lower, points, points.float()) < loss
    few, border = slice(0, 5), torch.zeros_like(points)
    for some, there in ((few, points), (slice(None), border)):
        nothing = alignment_loss(described[some], volume, points[some], there[some].float())
        assert nothing == 0
        nothing.backward()


def test_alignment_loss_counts_with_its_weight() -> None:
    points = torch.from_numpy(np.argwhere(np.ones((8, 8, 8), bool)))
    batch = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)), points + 4, points + 4.25
    none, one, three = (contrast(alignment=weight, seed=2) for weight in (0.0, 1.0, 3.0))
    for other in (one, three):
        other.network.load_state_dict(none.network.state_dict())
    losses = [float(module.contrast(batch)[0].detach()) for module in (none, one, three)]
    assert losses[1] > losses[0]
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)


def test_learning_rate_falls_to_a_hundredth_if_asked_to() -> None:
    assert isinstance(contrast().configure_optimizers(), torch.optim.Adam)
    chosen = contrast(decay=True, steps=8, learning_rate=0.5).configure_optimizers()
    rates = []
    for _ in range(9):
        rates.append(chosen["optimizer"].param_groups[0]["lr"])
        chosen["optimizer"].step()
        chosen["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([0.005 + 0.495 * (1 + np.cos(np.pi * k / 8)) / 2 for k in range(9)])


@pytest.mark.parametrize(
    ("precision", "processor", "head"),
    [
        ("single", "AVX512", torch.float32),
        ("mixed", "AVX512", torch.bfloat16),
        ("mixed", "AVX2", torch.float32),  # would take many times as long in bfloat16
    ],
)
def test_mixed_precision_is_that_of_the_head_alone(
    precision: str, processor: str, head: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    module, seen = contrast(precision=precision), []
    for layer in (module.network.out, module.network.head):
        layer.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    points = torch.arange(30).reshape(10, 3) % 8
    loss, _ = module.contrast((torch.rand(2, 1, 8, 8, 8), points, points.float()))
    assert seen == [torch.float32, head]
    assert loss.dtype == torch.float32


def test_recipes_that_come_along() -> None:
    ours, paper = (load_toml(RECIPES / f"{name}.toml", Recipe) for name in ("default", "paper"))
    assert paper.sources == tuple(s for s in ours.sources if s.kind == "scans")
    assert replace(paper.model, epsilon=ours.model.epsilon) == ours.model  # both begin at random only with a small one
    assert all(s.origin and s.licence for s in ours.sources)
    assert (paper.placement.relative_rotation_deg, paper.placement.relative_scale) == (0.0, 0.0)
    assert paper.appearance == Appearance()
    settings = paper.optimisation
    assert (settings.points, settings.temperature, settings.learning_rate) == (8196, 0.07, 1e-4)
    assert (settings.both_views, settings.symmetric, settings.decay) == (False, False, False)


RECIPE = """
[model]
widths = [4, 8]
features = 2
[placement]
crop = 16
spacing_mm = [1.0, 2.0]
relative_shift_vox = 2.0
[optimisation]
steps = {steps}
chunk = 3
points = 200
learning_rate = 3e-3
decay = true
seed = 4
[[sources]]
kind = "scans"
files = ["{files}"]
origin = "a phantom"
licence = "CC0-1.0"
[[sources]]
kind = "shapes"
origin = "random shapes"
licence = "Apache-2.0"
"""


def recipe(folder: Path, steps: int = 6, files: str = "*.nii.gz") -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(steps=steps, files=files))
    return path


def run(recipe_path: Path, out: Path, data: Path, **options: object) -> Path:
    return train(recipe_path, out, data_root=data, workers=0, progress=False, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a run of two chunks."""
    folder = tmp_path_factory.mktemp("trained")
    return run(recipe(folder), folder / "out", data)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(load_network(checkpoint).state_dict())


def test_broken_off_and_resumed_is_as_never_broken_off(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def failing(*args: object, **options: object) -> torch.Tensor:
        calls.append(args)
        return contrastive_loss(*args, **options) * (float("nan") if len(calls) == 5 else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "contrastive_loss", failing)
    with pytest.raises(DataError, match="the loss is nan at step 4; the last good checkpoint stays; lower"):
        run(recipe(tmp_path), tmp_path / "out", data)
    monkeypatch.undo()
    left = tmp_path / "out" / "last.ckpt"
    assert torch.load(left, weights_only=False)["global_step"] == 3
    assert any(not torch.equal(value, weights(trained)[name]) for name, value in weights(left).items())
    resumed = run(tmp_path / "recipe.toml", tmp_path / "out", data, resume=True)
    assert resumed == left
    assert torch.load(left, weights_only=False)["global_step"] == 6
    for name, value in weights(resumed).items():
        assert torch.equal(value, weights(trained)[name]), name


def test_training_lowers_the_loss(data: Path, tmp_path: Path) -> None:
    run(recipe(tmp_path, steps=40), tmp_path / "out", data)
    with (tmp_path / "out" / "log" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    losses = [float(row["loss"]) for row in rows]
    assert len(losses) == 14
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    assert {"retrieval", "step"} <= set(rows[0])


def test_checkpoint_becomes_a_model_that_names_its_data(
    trained: Path, network: MasrNet, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    from dsir_metric_export import export as exporting

    content = torch.load(trained, weights_only=True)  # with the weights of a network that is exported already: quicker
    content["state_dict"] = {f"network.{name}": value for name, value in network.state_dict().items()}
    mixture = torch.randn(24, 24, dtype=torch.float64)
    content["mixture"] = mixture
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.setattr(exporting, "_to_onnx", lambda _: onnx.load(model_file))
    card = exporting.export_model(tmp_path / "last.ckpt", tmp_path / "tiny.onnx")
    assert [dict(entry) for entry in card.data] == [
        {"file": "a.nii.gz", "source": "a phantom", "licence": "CC0-1.0"},
        {"file": "synthetic shapes", "source": "random shapes", "licence": "Apache-2.0"},
    ]
    assert card.recipe["optimisation"]["steps"] == 6
    assert load_card(tmp_path / "tiny.onnx").mixture == tuple(map(tuple, mixture.float().tolist()))


def test_bad_images_are_named_before_training(data: Path, tmp_path: Path) -> None:
    grid = Grid((30, 30, 30), (2.0, 2.0, 2.0))
    noise = sitk.GetImageFromArray(rng().random((30, 30, 30)).astype(np.float32))
    for name, image, error, message in [
        ("thin.mha", noise[:, :, :12], DataError, "thin.mha: is 12 mm thin; a crop needs 16 mm"),
        ("flat.mha", noise[:, :, 4], ShapeError, "flat.mha: is a 2-D image, as 1 of 1 here"),
        ("dark.mha", grid.image(sitk.sitkFloat32), DataError, "dark.mha: all voxels are 0"),
    ]:
        sitk.WriteImage(image, str(tmp_path / name))
        with pytest.raises(error, match=message):
            run(recipe(tmp_path, files=name), tmp_path / "out", tmp_path)
    (tmp_path / "broken.nii.gz").write_bytes((data / "a.nii.gz").read_bytes()[:900])
    with pytest.raises(DataError, match=r"broken\.nii\.gz: is truncated"):
        run(recipe(tmp_path, files="broken.*"), tmp_path / "out", tmp_path)
    sitk.WriteImage(grid.image(), str(tmp_path / "empty.mha"))
    with pytest.raises(DataError, match=r"empty\.mha: is all background"):
        LabelMaps([tmp_path / "empty.mha"], SMALL, LAWS, PLAIN)
    sitk.WriteImage(sitk.Cast(grid.image(), sitk.sitkFloat32) + 40_000.0, str(tmp_path / "large.mha"))
    with pytest.raises(DataError, match=r"large\.mha: has the label 40000; 32767 is the largest"):
        LabelMaps([tmp_path / "large.mha"], SMALL, LAWS, PLAIN)
    with pytest.raises(DataError, match="no NIfTI"):
        run(recipe(tmp_path, files="nothing*"), tmp_path / "out", tmp_path)
    assert not (tmp_path / "out" / "last.ckpt").exists()


def test_hardly_any_foreground_is_told_in_one_line(tmp_path: Path) -> None:
    image = Grid((40, 40, 40)).image(sitk.sitkFloat32)
    image[20, 20, 20] = 1000.0
    sitk.WriteImage(image, str(tmp_path / "point.mha"))
    scans = 'placement = {crop = 16}\n[[sources]]\nkind = "scans"\nfiles = ["point.mha"]\nintensity = "ct:0,1000"\n'
    (tmp_path / "recipe.toml").write_text(scans)
    with pytest.raises(DataError, match="50 crops in a row") as caught:
        train(tmp_path / "recipe.toml", tmp_path / "out", workers=1, progress=False)
    assert "\n" not in str(caught.value)
