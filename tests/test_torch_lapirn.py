"""Registration networks: any size, diffeomorphisms, levels; and the torch-free backend that runs them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")
from torch import Tensor  # noqa: E402
from torch.nn.functional import avg_pool3d, interpolate, normalize, pad  # noqa: E402

from dsir_metric.errors import ConfigError, MissingDependencyError, ModelFileError, ShapeError  # noqa: E402
from dsir_metric.geometry import Grid  # noqa: E402
from dsir_metric.register import LapirnConfig, RegisterConfig  # noqa: E402
from dsir_metric.register import lapirn as backend  # noqa: E402
from dsir_metric.register.lapirn import RegistrationCard, deform, near, network_path, on_grid  # noqa: E402
from dsir_metric.register.pair import Level  # noqa: E402
from dsir_metric.represent import Representation  # noqa: E402
from dsir_metric.represent.zoo import model_path  # noqa: E402
from dsir_metric.torch.lapirn import LapIRN, LapIRNConfig, RegistrationNetwork  # noqa: E402
from dsir_metric.torch.regularity import jacobian_determinant  # noqa: E402
from dsir_metric.torch.voxelmorph import VoxelMorph, VoxelMorphConfig  # noqa: E402
from dsir_metric.torch.warp import compose, warp  # noqa: E402

LAPIRN = LapIRNConfig(channels=3, width=1, blocks=1, levels=2, largest_velocity_vox=4.0)
VOXELMORPH = VoxelMorphConfig(channels=3, widths=(2, 2, 2, 2), out_width=2, final_widths=(2,))
SIZE = (17, 9, 22)
SHIFT = np.array([1.0, -2.0, 0.5])


def volumes(size: tuple[int, int, int] = SIZE, seed: int = 0) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(2, 1, 3, *size, generator=torch.Generator().manual_seed(seed))
    first, second = normalize(drawn, dim=2)
    return first, second


def strong(network: RegistrationNetwork, seed: int = 1) -> RegistrationNetwork:
    """With weights so large that the velocity goes to its limits."""
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / max(1, weight[0].numel()) ** 0.5
    return network


def networks() -> list[RegistrationNetwork]:
    pytest.importorskip("monai")
    torch.manual_seed(0)
    return [LapIRN(LAPIRN), VoxelMorph(VOXELMORPH)]


def test_any_size_and_near_the_identity_at_first() -> None:
    for network in networks():
        field = network(*volumes())
        assert field.shape == (1, 3, *SIZE)
        assert 0 < network.displacement(field).abs().max() < 0.5


def test_padding_repeats_the_edge() -> None:
    fixed, moving = volumes((16, 16, 32))
    more = [pad(v, (0, 0, 0, 16, 0, 0), mode="replicate") for v in (fixed, moving)]
    cut = [v[..., :19, :] for v in more]
    network = strong(LapIRN(LAPIRN))
    torch.testing.assert_close(network(*cut), network(*more)[..., :19, :])


def test_velocity_is_bounded_and_its_flow_folds_nowhere() -> None:
    network = strong(LapIRN(replace(LAPIRN, largest_velocity_vox=1.5)))
    velocity = network(*volumes((24, 24, 24)))
    assert 1.0 < velocity.abs().max() < 2 * 1.5 + 1.5
    smooth = avg_pool3d(velocity, 7, 1, 3)
    there, back = network.displacement(smooth), network.displacement(-smooth)
    assert there.abs().max() > 0.3
    assert jacobian_determinant(there).min() > 0
    assert compose(there, back)[..., 4:-4, 4:-4, 4:-4].abs().max() < 0.05


def test_without_diffeomorphism_the_field_is_the_displacement() -> None:
    network = strong(LapIRN(replace(LAPIRN, diffeomorphic=False)))
    field = network(*volumes())
    assert network.displacement(field) is field


def test_gradients_reach_every_weight_of_the_levels_in_use() -> None:
    network = strong(LapIRN(LAPIRN))
    network(*volumes(), levels=1).square().sum().backward()
    coarse, fine = network.stages()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in coarse.parameters())
    assert all(w.grad is None for w in fine.parameters())
    network.zero_grad()
    network(*volumes()).square().sum().backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in network.parameters())


def test_a_coarse_level_is_brought_to_full_resolution_in_its_voxels() -> None:
    network = strong(LapIRN(LAPIRN))
    fixed, moving = volumes((16, 16, 16))
    coarse = network(fixed, moving, levels=1)
    pooled = [avg_pool3d(v, 2) for v in (fixed, moving)]
    own, _ = network.pyramid[0](torch.cat(pooled, dim=1), None)
    torch.testing.assert_close(coarse, 2 * interpolate(own, scale_factor=2.0, mode="trilinear"))
    assert not torch.equal(coarse, network(fixed, moving))
    torch.testing.assert_close(
        network(*volumes((16, 16, 16)), resolution=1),
        network.pyramid[0](torch.cat(volumes((16, 16, 16)), dim=1), None)[0],
    )


def test_a_finer_level_sees_the_moving_volume_where_the_coarser_one_puts_it() -> None:
    network = strong(LapIRN(LAPIRN))
    fixed, moving = volumes((16, 16, 16))
    seen = []
    network.pyramid[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(fixed, moving)
    coarse = network(fixed, moving, levels=1)
    torch.testing.assert_close(seen[0][:, 3:6], warp(moving, network.displacement(coarse)))
    torch.testing.assert_close(seen[0][:, 6:], coarse / 4.0)


def test_a_finer_level_goes_on_from_what_the_coarser_one_decoded() -> None:
    network = strong(LapIRN(LAPIRN))
    given, decoded = [], []
    network.pyramid[0].register_forward_hook(lambda _, __, out: decoded.append(out[1]))
    network.pyramid[1].register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    network(*volumes((16, 16, 16)))
    assert given[0][1] is decoded[0]
    one, other = (network.pyramid[1](given[0][0], k * decoded[0])[0] for k in (1, 2))
    assert (one - other).abs().max() > 0.01


def test_layers_in_half_precision_give_a_field_in_single() -> None:
    for network in networks():
        strong(network)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(*volumes())
        assert half.dtype == torch.float32
        full = network(*volumes())
        assert 0 < (half - full).abs().max() < 0.1 * full.abs().max()


def test_components_of_monai_are_turned_round() -> None:
    pytest.importorskip("monai")
    network = VoxelMorph(VOXELMORPH)
    weight, bias = list(network.backbone.parameters())[-2:]
    weight.data.zero_()
    bias.data[:] = torch.tensor([3.0, 2.0, 1.0])  # z, y, x
    assert network(*volumes())[0, :, 0, 0, 0].tolist() == [1.0, 2.0, 3.0]


def test_volumes_that_do_not_fit() -> None:
    fixed, moving = volumes()
    with pytest.raises(ShapeError, match="resample them to one grid"):
        LapIRN(LAPIRN)(fixed, moving[..., 1:])
    with pytest.raises(ShapeError, match="two volumes of one shape"):
        LapIRN(LAPIRN)(fixed[:, :2], moving[:, :2])


@pytest.mark.parametrize("wrong", [{"levels": 5}, {"levels": 0}, {"width": 0}, {"largest_velocity_vox": 0.0}])
def test_shapes_of_a_lapirn_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(LAPIRN, **wrong)


@pytest.mark.parametrize("wrong", [{"widths": (2, 2, 2)}, {"widths": (2,) * 10}, {"final_widths": (0,)}])
def test_shapes_of_a_voxelmorph_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(VOXELMORPH, **wrong)


def test_monai_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(MissingDependencyError, match=r"VoxelMorph needs monai.*pip install"):
        VoxelMorph(VOXELMORPH)


TILT = sitk.Euler3DTransform([0, 0, 0], 0.3, -0.2, 0.1).GetMatrix()
GRID = Grid((21, 17, 16), (2.0, 2.0, 2.0), (-20.0, 7.0, 33.0), TILT)
CARD = RegistrationCard(
    1, "registration", "tiny", "lapirn", "dns", 3, 4.0, 16, True, "a" * 64, 7, 90.0, {}, (), {}, {}, {}
)


def shifting_network(path: Path, card: RegistrationCard = CARD) -> Path:
    """A network that answers the same displacement everywhere, voxels, and minus it."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    shape = [1, card.channels, "z", "y", "x"]
    weights = [
        numpy_helper.from_array(np.zeros((3, card.channels, 1, 1, 1), np.float32), "zeros"),
        numpy_helper.from_array(SHIFT.astype(np.float32), "shift"),
    ]
    nodes = [
        helper.make_node("Add", ["fixed", "moving"], ["both"]),
        helper.make_node("Conv", ["both", "zeros", "shift"], ["displacement"]),
        helper.make_node("Neg", ["displacement"], ["inverse"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, 1, s) for name in names]
        for names, s in ((("fixed", "moving"), shape), (("displacement", "inverse"), [1, 3, "z", "y", "x"]))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends, weights), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    helper.set_model_props(model, card.to_metadata())
    onnx.save(model, path)
    return path


def representation(grid: Grid, seed: int, **facts: object) -> Representation:
    values = np.random.default_rng(seed).standard_normal((*grid.shape, 3)).astype(np.float32)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return Representation(values, grid, {"model_hash": "a" * 64, **facts})


def problem(model: Path | str, refine: int = 0, **facts: object) -> Any:
    fixed, moving = representation(GRID, 0), representation(GRID.padded(2), 1, **facts)
    finest = Level(fixed, moving, GRID.image() + 1)
    settings = LapirnConfig(str(model), refine)
    config = RegisterConfig(backend="lapirn", device="cpu", threads=1, lapirn=settings)
    return SimpleNamespace(levels=[finest.halved(), finest], config=config)


def quiet(fraction: float, metric: float) -> None:
    assert 0 <= fraction <= 1
    assert -1 <= metric <= 1


def test_displacements_in_voxels_become_a_transform_in_mm(tmp_path: Path) -> None:
    task = problem(shifting_network(tmp_path / "n.onnx"))
    found = deform(SimpleNamespace(levels=task.levels[1:], config=task.config), np.eye(4), quiet)
    expected = np.reshape(TILT, (3, 3)) @ (4.0 * SHIFT)
    assert found.inverse is not None
    for index in ((0.0, 0.0, 0.0), (20.4, 16.4, 15.4), (8.5, 3.0, 7.7)):  # the box of the image, to its corners
        point = GRID.to_physical(index)
        np.testing.assert_allclose(found.transform.TransformPoint(point.tolist()) - point, expected, atol=1e-5)
        np.testing.assert_allclose(found.inverse.TransformPoint(point.tolist()) - point, -expected, atol=1e-5)
    assert found.remark == "tiny: lapirn under dns, 7 steps in 2 minutes"


def test_iterations_after_the_network_begin_where_it_ends(tmp_path: Path) -> None:
    task = problem(shifting_network(tmp_path / "n.onnx"), refine=1)
    found = deform(SimpleNamespace(levels=task.levels[1:], config=task.config), np.eye(4), lambda *_: None)
    expected = np.reshape(TILT, (3, 3)) @ (4.0 * SHIFT)
    point = GRID.centre_mm
    np.testing.assert_allclose(found.transform.TransformPoint(point.tolist()) - point, expected, atol=1.0)
    assert np.linalg.norm(expected) > 2.0
    assert isinstance(found.transform, sitk.BSplineTransform)
    assert found.inverse is None
    assert found.remark.startswith("tiny: lapirn under dns, 7 steps in 2 minutes, refined")


def test_the_network_is_given_unit_vectors_aligned_by_the_linear_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Representation] = {}
    run = backend._run
    monkeypatch.setattr(backend, "_run", lambda s, g, *rest: (given.update(g), run(s, g, *rest))[1])
    task, linear = problem(shifting_network(tmp_path / "n.onnx")), np.eye(4)
    linear[:3, 3] = (3.0, -1.0, 2.0)
    deform(task, linear, quiet)
    assert given["fixed"].grid.spacing_mm == (4.0, 4.0, 4.0)
    for side in given.values():
        np.testing.assert_allclose(np.linalg.norm(side.values, axis=-1), 1, atol=1e-5)
    level = task.levels[0]
    point = given["moving"].grid.to_physical((5, 4, 3))
    index = level.moving.grid.to_index(point + linear[:3, 3])
    smooth = sitk.Resample(
        level.moving.to_sitk(),
        Grid((1, 1, 1), origin_mm=tuple(level.moving.grid.to_physical(index).tolist())).image(),
        sitk.Transform(),
        sitk.sitkLinear,
    )
    expected = sitk.GetArrayFromImage(smooth)[0, 0, 0]
    np.testing.assert_allclose(given["moving"].values[3, 4, 5], expected / np.linalg.norm(expected), atol=1e-5)


def test_what_the_network_is_given_is_padded_and_what_it_gives_cut() -> None:
    came: dict[str, np.ndarray] = {}

    def answer(names: None, volumes: dict[str, np.ndarray]) -> list[np.ndarray]:
        came.update(volumes)
        return [volumes["fixed"] - 1, volumes["moving"] + 1]

    seen = {"fixed": representation(GRID, 0), "moving": representation(GRID, 1)}
    fields = backend._run(SimpleNamespace(run=answer), seen, 16, Path("n.onnx"))
    assert came["moving"].shape == (1, 3, 16, 32, 32)
    np.testing.assert_array_equal(
        came["moving"][0, :, 3, 4, 21:], seen["moving"].values[3, 4, 20][:, None] + np.zeros(11)
    )
    np.testing.assert_array_equal(np.moveaxis(fields[1], 0, -1), seen["moving"].values + 1)
    broken = SimpleNamespace(run=lambda _, volumes: [np.nan * volumes["fixed"]])
    with pytest.raises(ModelFileError, match=r"n\.onnx: gave displacements that are not finite"):
        backend._run(broken, seen, 16, Path("n.onnx"))


def test_the_level_that_is_just_fine_enough() -> None:
    levels = problem("").levels
    assert near(levels, 4.0) is levels[0]
    assert near(levels, 3.9) is levels[1]
    assert near(levels, 1.0) is levels[1]


def test_descriptors_outside_repeat_the_edge() -> None:
    seen = representation(GRID, 0)
    wide = on_grid(seen, GRID.padded(2))
    np.testing.assert_allclose(wide.values[2:-2, 2:-2, 2:-2], seen.values, atol=1e-5)
    np.testing.assert_allclose(wide.values[0, 0, 0], seen.values[0, 0, 0], atol=1e-5)


@pytest.mark.parametrize("facts", [{"model_hash": "b" * 64}, {"model_hash": None}])
def test_other_representations_are_refused(tmp_path: Path, facts: dict[str, object]) -> None:
    with pytest.raises(ModelFileError, match=r"n\.onnx: was trained on .* aaaaaaaaaaaa, got the moving rep.*--model"):
        deform(problem(shifting_network(tmp_path / "n.onnx"), **facts), np.eye(4), quiet)


def test_a_network_that_is_not_there_or_none(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"'nowhere'; give an .onnx file or one of the names lapirn"):
        network_path("nowhere")
    with pytest.raises(ModelFileError, match="is no registration network"):
        deform(problem(model_path("default")), np.eye(4), quiet)
    other = shifting_network(tmp_path / "n.onnx", replace(CARD, channels=3))
    assert network_path(other) == other


def test_a_shipped_network_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_FOLDER", tmp_path)
    path = shifting_network(tmp_path / "tiny.onnx")
    assert network_path("tiny") == path
    with pytest.raises(ModelFileError, match="one of the names tiny"):
        network_path("other")


def test_card_goes_and_comes_back() -> None:
    assert RegistrationCard.from_metadata(CARD.to_metadata(), Path("n.onnx")) == CARD
    for field, value in (
        ("format", "2"),
        ("kind", '"other"'),
        ("spacing_mm", "0"),
        ("steps", '"x"'),
        ("multiple", "{"),
    ):
        with pytest.raises(ModelFileError, match=r"^n\.onnx: is no registration network"):
            RegistrationCard.from_metadata(CARD.to_metadata() | {field: value}, Path("n.onnx"))
