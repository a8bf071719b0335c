"""Training of registration networks: pairs of known truth, levels and their freezing, resuming, export, refusals."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("monai")
from click.testing import CliRunner  # noqa: E402
from dsir_metric_cli.train_registration import command  # noqa: E402
from dsir_metric_train.registration import RegistrationRecipe, loop, read_registration, train_registration  # noqa: E402
from dsir_metric_train.registration import data as preparing  # noqa: E402
from dsir_metric_train.registration.data import Preparation, Volume, deformed_pair, random_velocity  # noqa: E402
from dsir_metric_train.registration.recipe import Deformations, Volumes, VolumeSource  # noqa: E402
from dsir_metric_train.views import Appearance  # noqa: E402

from dsir_metric.config import load_toml  # noqa: E402
from dsir_metric.errors import ConfigError, DataError, DsirError, ModelFileError, ParityError  # noqa: E402
from dsir_metric.phantom import make_pair  # noqa: E402
from dsir_metric.register import RegisterConfig  # noqa: E402
from dsir_metric.represent.weights import weights_hash  # noqa: E402
from dsir_metric.torch.lapirn import LapIRN  # noqa: E402
from dsir_metric.torch.regularity import jacobian_determinant  # noqa: E402
from dsir_metric.torch.warp import warp  # noqa: E402

RECIPES = Path(__file__).parents[1] / "train" / "recipes"
RECIPE = """
name = "tiny"
network = "{network}"
loss = "{loss}"
steps = {steps}
frozen = 1
learning_rate = 1e-3
chunk = 1
seed = 3
volumes = {{spacing_mm = 12.0, represented_mm = [6.0, 8.0], held_back = 3}}
deformations = {{smooth_mm = 8.0, waves = 3}}
lapirn = {{width = 1, blocks = 1, levels = 2, squarings = 2}}
voxelmorph = {{widths = [2, 2], out_width = 2, final_widths = [2], squarings = 2}}
[[sources]]
kind = "scans"
files = ["*.nii.gz"]
origin = "phantom"
licence = "CC0"
[[sources]]
kind = "labels"
files = ["labels/*.nii.gz"]
variants = 2
strip_above = 5
one_tissue = [[1, 3]]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans and a label map, and their volumes in the cache; alignment by the centres alone is quick."""
    folder = tmp_path_factory.mktemp("data")
    pair = make_pair(24, 6.0, ("t1", "flair"), amplitude_mm=2.0)
    (folder / "labels").mkdir()
    files = {"a.nii.gz": pair.fixed, "b.nii.gz": pair.moving, "labels/c.nii.gz": pair.fixed_labels}
    for name, image in files.items():
        sitk.WriteImage(image, str(folder / name))
    (folder / "cache").mkdir()
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "_LINEAR", RegisterConfig(stages=("centre",)))
    monkeypatch.setattr(loop, "_PAIRS", 2)


def recipe(out: Path, *, network: str = "lapirn", loss: str = "dns", steps: str = "[2, 2]") -> Path:
    out.mkdir(exist_ok=True)
    path = out / "recipe.toml"
    path.write_text(RECIPE.format(network=network, loss=loss, steps=steps))
    return path


def train(folder: Path, out: Path, *, resume: bool = False, **settings: str) -> Path:
    path = recipe(out, **settings)
    return train_registration(path, out, data_root=folder, cache=folder / "cache", resume=resume, progress=False)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "_LINEAR", RegisterConfig(stages=("centre",)))
        patch.setattr(loop, "_PAIRS", 2)
        return train(folder, tmp_path_factory.mktemp("trained") / "out")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(read_registration(checkpoint)[0].state_dict())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def blob(size: tuple[int, int, int] = (20, 24, 22)) -> Volume:
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    values = np.stack([np.cos(3 * x), np.sin(2 * y + 1), z])
    values /= np.linalg.norm(values, axis=0)
    image = torch.from_numpy(np.exp(-(x**2 + 2 * y**2 + 3 * z**2)).astype(np.float16))[None, None]
    return Volume("blob", image, torch.from_numpy(values.astype(np.float16))[None], image > 0.3)


RULE = Deformations(smooth_mm=6.0, waves=4, linear=0.05, shift_mm=4.0)


def test_random_velocities_are_bounded_smooth_and_drawn_by_the_generator() -> None:
    sizes = []
    for seed in range(20):
        velocity = random_velocity(rng(seed), (20, 24, 22), 4.0, Deformations(8.0, 4, 0.0, 0.0))
        sizes.append(float(4.0 * velocity.square().sum(1).mean().sqrt()))
        assert torch.diff(velocity, dim=2).abs().max() < 0.5 * velocity.abs().max()
    assert 6.0 < max(sizes) <= 8.0
    shifts = random_velocity(rng(), (20, 24, 22), 4.0, Deformations(0.0, 4, 0.0, 6.0))
    assert shifts.std(dim=(2, 3, 4)).max() < 1e-6
    assert 0.1 < shifts.abs().max() <= 1.5
    linear = random_velocity(rng(), (20, 24, 22), 4.0, Deformations(0.0, 4, 0.05, 0.0))
    slopes = [torch.diff(linear, dim=axis) for axis in (4, 3, 2)]  # entries of the matrix, columns x, y, z
    assert all(slope.std(dim=(2, 3, 4)).max() < 1e-5 and slope.abs().max() <= 0.05 for slope in slopes)
    assert torch.equal(linear, random_velocity(rng(), (20, 24, 22), 4.0, Deformations(0.0, 4, 0.05, 0.0)))


def test_the_truth_of_a_pair_aligns_it() -> None:
    volume = blob()
    for seed in range(4):
        pair = deformed_pair(rng(seed), volume, volume, RULE, 4.0, torch.device("cpu"))
        inner = (..., *(slice(5, -5),) * 3)
        before = (pair.fixed - pair.moving)[inner].abs().mean()
        after = (pair.fixed - warp(pair.moving, pair.truth))[inner].abs().mean()
        images = (pair.fixed_image - warp(pair.moving_image, pair.truth))[inner].abs().mean()
        assert after < 0.2 * before
        assert images < 0.01
        assert pair.fixed.dtype == pair.truth.dtype == torch.float32
        assert jacobian_determinant(pair.truth).min() > 0
        assert not torch.equal(pair.fixed, volume.values.float())


def test_the_mask_of_a_pair_is_what_both_show() -> None:
    volume, other = blob(), blob()
    other.mask[..., :11] = False
    pair = deformed_pair(rng(), volume, other, Deformations(0.0, 1, 0.0, 0.0), 4.0, torch.device("cpu"))
    assert torch.equal(pair.mask > 0.5, other.mask)


def test_a_volume_at_twice_the_voxel_size() -> None:
    volume = blob()
    half = volume.halved()
    assert half.values.shape == (1, 3, 10, 12, 11)
    torch.testing.assert_close(half.values.float().norm(dim=1), torch.ones(1, 10, 12, 11), atol=2e-3, rtol=0)
    middle = volume.image.float()[0, 0, 8:10, 12:14, 6:8].mean()
    torch.testing.assert_close(half.image[0, 0, 4, 6, 3].float(), middle, atol=1e-3, rtol=0)
    assert half.mask.dtype == torch.bool
    assert half.mask.float().mean() == pytest.approx(float(volume.mask.float().mean()), rel=0.1)


def test_a_level_is_trained_at_its_own_resolution(
    folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, spacings = [], []
    plain, drawn = loop.diffusion, loop.deformed_pair
    monkeypatch.setattr(loop, "diffusion", lambda field: (seen.append(field.shape[2:]), plain(field))[1])
    monkeypatch.setattr(loop, "deformed_pair", lambda *a: (spacings.append(a[4]), drawn(*a))[1])
    text = recipe(tmp_path / "out", steps="[1, 1, 1]").read_text().replace("levels = 2", "levels = 3")
    (tmp_path / "out" / "recipe.toml").write_text(text)
    train_registration(
        tmp_path / "out" / "recipe.toml", tmp_path / "out", data_root=folder, cache=folder / "cache", progress=False
    )
    first, second, third = seen
    assert first == second == tuple(n // 2 for n in third)
    assert [spacings[k] for k in (0, 3, 6)] == [24.0, 24.0, 12.0]
    assert set(spacings[1:3] + spacings[4:6] + spacings[7:]) == {12.0}  # validation


def test_variants_of_a_label_map(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted = []
    plain = preparing.paint_both
    monkeypatch.setattr(
        preparing, "paint_both", lambda r, crops, *rest: (painted.append(crops[0]), plain(r, crops, *rest))[1]
    )
    preparation = Preparation(load_toml(recipe(tmp_path), RegistrationRecipe), folder, tmp_path)
    source, file = preparation.files[2]
    images = [preparation._image(source, file, variant) for variant in range(4)]
    assert [labels.max() < 5 for labels in painted] == [True, False] * 2  # stripped in turn
    assert [image.GetSpacing()[0] for image in images] == [6.0, 8.0] * 2
    assert not np.array_equal(sitk.GetArrayFromImage(images[0]), sitk.GetArrayFromImage(images[2]))


def test_labels_of_one_tissue_look_alike_and_the_background_is_black(folder: Path) -> None:
    source = VolumeSource("labels", ("*",), one_tissue=((1, 3),))
    plain = preparing._labels(folder / "labels" / "c.nii.gz", replace(source, one_tissue=()), 0, 6.0)
    merged = preparing._labels(folder / "labels" / "c.nii.gz", source, 0, 6.0)
    np.testing.assert_array_equal(merged, np.where(plain == 3, 1, plain))
    assert (plain == 3).any()
    loud = RegistrationRecipe((source,), steps=(1, 1, 1), appearance=Appearance(noise=0.2))
    for seed in range(12):
        image = sitk.GetArrayFromImage(preparing._painted(rng(seed), merged, 6.0, loud))
        assert (image[merged == 0] == 0).all()
        assert image[merged > 0].max() > 0.1


def test_pairs_of_one_file_have_their_share() -> None:
    volumes = [replace(blob(), file=name) for name in "aabbc"]
    drawn = [preparing.two_of(rng(seed), volumes, 0.5) for seed in range(400)]
    assert all(first is not second for first, second in drawn)
    share = np.mean([first.file == second.file for first, second in drawn])
    assert share == pytest.approx(0.8 * (0.5 + 0.5 / 4), abs=0.07)
    assert {first.file for first, _ in drawn} == {"a", "b", "c"}
    alone = [preparing.two_of(rng(seed), volumes, 1.0) for seed in range(100)]
    assert all(first.file == second.file or first.file == "c" for first, second in alone)


def test_a_run_that_runs_away_is_stopped(
    folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: LapIRN, fixed: torch.Tensor, moving: torch.Tensor, levels: int, resolution: int) -> torch.Tensor:
        return torch.full_like(fixed[:, :3], 9.0) + 0 * sum(w.sum() for w in self.parameters())

    monkeypatch.setattr(LapIRN, "field", away)
    with pytest.raises(DataError, match="displacements are 9 voxels on average at step 0; the last good"):
        train(folder, tmp_path / "out")


def test_gradients_are_bounded(folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    plain = loop.Registration.on_before_optimizer_step

    def watch(self: loop.Registration, optimizer: torch.optim.Optimizer) -> None:
        plain(self, optimizer)
        given = [w.grad for w in self.network.parameters() if w.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in given]).norm()))

    monkeypatch.setattr(loop.Registration, "on_before_optimizer_step", watch)
    path = recipe(tmp_path / "out")
    path.write_text("largest_gradient = 1e-4\n" + path.read_text())
    train_registration(path, tmp_path / "out", data_root=folder, cache=folder / "cache", progress=False)
    assert len(norms) == 4
    assert max(norms) <= 1.001e-4


def test_preparation_brings_volumes_to_one_grid(folder: Path, trained: Path, tmp_path: Path) -> None:
    settings = load_toml(recipe(tmp_path), RegistrationRecipe)
    trained_on, held = Preparation(settings, folder, folder / "cache").volumes()
    assert [v.file for v in trained_on] == ["a.nii.gz", "b.nii.gz"]
    assert [v.file for v in held] == ["labels/c.nii.gz"] * 2
    assert len({v.values.shape for v in (*trained_on, *held)}) == 1
    for volume in (*trained_on, *held):
        assert volume.values.shape[1] == 24
        torch.testing.assert_close(
            volume.values.float().norm(dim=1), torch.ones(volume.mask.shape)[:, 0], atol=2e-3, rtol=0
        )
        assert 0 <= volume.image.min() < 0.2 < 0.5 < volume.image.max() <= 1
        assert 0.05 < volume.mask.float().mean() < 0.95
    first, second = held
    assert not torch.equal(first.image, second.image)  # painted anew
    here = (trained_on[0].image.float() - trained_on[0].image.float().mean())[0, 0]
    assert (trained_on[0].mask & trained_on[1].mask).sum() > 0.8 * trained_on[0].mask.sum()
    assert here.std() > 0.05


def test_the_cache_serves_another_loss_and_no_other_preparation(
    folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(p.name for p in (folder / "cache").iterdir())
    assert len(before) == 4
    monkeypatch.setattr(Preparation, "_make", lambda *_: pytest.fail("made anew"))
    train(folder, tmp_path / "nmi", loss="nmi", steps="[1, 1]")
    train(folder, tmp_path / "mind", loss="mind", steps="[1]", network="voxelmorph")
    assert sorted(p.name for p in (folder / "cache").iterdir()) == before
    settings = load_toml(recipe(tmp_path), RegistrationRecipe)
    source, file = Preparation(settings, folder, folder / "cache").files[2]
    keys = set()
    for volumes in (settings.volumes, Volumes(spacing_mm=10.0), Volumes(spacing_mm=12.0, represented_mm=(6.0, 7.0))):
        keys.add(Preparation(replace(settings, volumes=volumes), folder, folder / "cache")._key(source, file, 0))
    keys.add(Preparation(replace(settings, seed=4), folder, folder / "cache")._key(source, file, 0))
    assert len(keys) == 4


def test_figures_of_a_run(trained: Path) -> None:
    with (trained.parent / "log" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    for row in rows:
        assert -1 <= float(row["similarity"]) < 0
        assert float(row["loss"]) >= float(row["similarity"])
        assert 0 < float(row["error_mm"]) < 3 * float(row["before_mm"])
        assert float(row["folded_percent"]) == 0
        assert 0 < float(row["cosine"]) < 1
        assert float(row["sd_log_jacobian"]) >= 0
    assert len({row["before_mm"] for row in rows}) == 1  # always the same pairs
    settings = torch.load(trained, weights_only=True)["hyper_parameters"]
    assert settings["steps"] == 4
    assert settings["seconds"] > 0
    assert {e["file"] for e in settings["data"]} == {"a.nii.gz", "b.nii.gz", "labels/c.nii.gz"}


def test_a_coarse_level_rests_while_the_next_begins(
    folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    save = loop.Registration.on_save_checkpoint

    def watch(self: loop.Registration, checkpoint: dict[str, object]) -> None:
        kept.append({k: v.clone() for k, v in self.network.state_dict().items()})
        save(self, checkpoint)

    monkeypatch.setattr(loop.Registration, "on_save_checkpoint", watch)
    train(folder, tmp_path / "out")
    changed = [
        {name.split(".")[1] for name in now if not torch.equal(before[name], now[name])}
        for before, now in pairwise(kept)
    ]
    assert changed == [{"0"}, {"1"}, {"0", "1"}]  # steps 2, 3, 4 of [2, 2], frozen for one


def test_broken_off_and_resumed_is_as_never_broken_off(
    folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    plain = loop.diffusion

    def failing(field: torch.Tensor) -> torch.Tensor:
        calls.append(field)
        return plain(field) * (float("nan") if len(calls) == 4 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "diffusion", failing)
        with pytest.raises(DataError, match="the loss is nan at step 3; the last good checkpoint stays; lower"):
            train(folder, tmp_path / "out")
    left = tmp_path / "out" / "last.ckpt"
    assert torch.load(left, weights_only=True)["global_step"] == 3
    assert any(not torch.equal(value, weights(trained)[name]) for name, value in weights(left).items())
    with pytest.raises(ConfigError, match="made by another recipe"):
        train(folder, tmp_path / "out", resume=True, loss="nmi")
    assert train(folder, tmp_path / "out", resume=True) == left
    for name, value in weights(left).items():
        assert torch.equal(value, weights(trained)[name]), name


def test_export_agrees_with_torch_and_tells_what_it_is(trained: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from dsir_metric_export import registration as exporting

    from dsir_metric.register.lapirn import RegistrationCard

    card = exporting.export_registration(trained, tmp_path)
    metadata = {e.key: e.value for e in onnx.load(tmp_path / "tiny.onnx").metadata_props}
    assert RegistrationCard.from_metadata(metadata, tmp_path) == card
    assert (card.network, card.loss, card.spacing_mm, card.steps) == ("lapirn", "dns", 12.0, 4)
    assert len(card.data) == 3
    assert max(card.parity.values()) < 1e-4
    assert b"stack_trace" not in (tmp_path / "tiny.onnx").read_bytes()
    network = read_registration(trained)[0]
    network.pyramid[1].out.weight.data *= -50
    with pytest.raises(ParityError, match=r"differ by .* voxels"):
        exporting.measure_registration_parity(exporting.Registering(network), tmp_path / "tiny.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.onnx"]


def test_a_training_begins_with_the_network_of_another(trained: Path, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from dsir_metric_export import registration as exporting

    exporting.export_registration(trained, tmp_path)
    file, base = tmp_path / "tiny.onnx", weights_hash(tmp_path / "tiny.onnx")
    path = recipe(tmp_path / "next", steps="[1, 1]")
    path.write_text(f'base = "{base}"\n{path.read_text()}')
    settings = load_toml(path, RegistrationRecipe)
    network = exporting.read_registration_network(file, settings)
    for name, value in weights(trained).items():
        assert torch.equal(network.state_dict()[name], value), name
    assert "give the network that has them" in refused(path, "-o", tmp_path / "o", "--data", folder)
    answer = CliRunner().invoke(
        command, [*map(str, (path, "-o", tmp_path / "o", "--data", folder, "--network", file))], catch_exceptions=False
    )
    assert answer.exit_code == 0
    after, content = read_registration(tmp_path / "o" / "last.ckpt")
    assert content["hyper_parameters"]["recipe"]["base"] == base
    moved = max(float((after.state_dict()[name] - value).abs().max()) for name, value in weights(trained).items())
    assert 0 < moved < 0.01  # two steps of Adam away
    with pytest.raises(ModelFileError, match="are expected: give that network"):
        exporting.read_registration_network(file, replace(settings, base="0" * 64))
    wider = replace(settings, lapirn=replace(settings.lapirn, width=2))
    with pytest.raises(ModelFileError, match="another architecture"):
        exporting.read_registration_network(file, wider)
    with pytest.raises(ModelFileError, match="no registration network"):
        exporting.read_registration_network(RECIPES / "base.onnx", replace(settings, base=""))


def test_foreign_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train-registration"):
        read_registration(tmp_path / "none.ckpt")
    torch.save({"hyper_parameters": {}, "state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ModelFileError, match="no checkpoint of `dsir-metric train-registration`"):
        read_registration(tmp_path / "other.ckpt")


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    assert isinstance(result.exception, DsirError), result.output
    return str(result.exception)


def test_bad_input_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path)
    assert "there is no such file" in refused(tmp_path / "none.toml", "-o", tmp_path / "o")
    assert "there is no such folder" in refused(path, "-o", tmp_path / "o", "--data", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no NIfTI" in refused(path, "-o", tmp_path / "o", "--data", tmp_path / "empty")
    one = tmp_path / "one"
    one.mkdir()
    path.write_text(path.read_text().partition('[[sources]]\nkind = "labels"')[0])
    (one / "a.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes())
    assert "two volumes and one held back are needed" in refused(path, "-o", tmp_path / "o", "--data", one)
    for name in ("b", "c", "d"):
        (one / f"{name}.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:-200])
    message = refused(path, "-o", tmp_path / "o", "--data", one)
    assert message.startswith("b.nii.gz: ")
    assert "leave it out" in message
    path.write_text(path.read_text().replace("frozen", "frosen"))
    assert "did you mean frozen" in refused(path, "-o", tmp_path / "o", "--data", folder)
    path.write_text("sources = []")
    assert "sources must have 1" in refused(path, "-o", tmp_path / "o", "--data", folder)


@pytest.mark.parametrize("missing", ["torch", "lightning"])
def test_without_the_extra_it_is_named(missing: str, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
from dsir_metric.errors import MissingDependencyError
from dsir_metric_cli.train_registration import command
try:
    command.main([{str(recipe(tmp_path))!r}, "-o", {str(tmp_path / "o")!r}], standalone_mode=False)
except MissingDependencyError as error:
    print(error)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install" in answer.stdout, answer.stderr
    assert missing in answer.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": (1, 2)},
        {"steps": (1, 2, 0)},
        {"chunk": 0},
        {"learning_rate": 0.0},
        {"smoothness": float("nan")},
        {"seed": -1},
        {"sources": ()},
        {"network": "voxelmorph", "steps": (1, 1)},
    ],
)
def test_recipes_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        RegistrationRecipe(**{"sources": (VolumeSource("scans", ("*",)),), **wrong})  # type: ignore[arg-type]


def test_volumes_and_deformations_that_cannot_be() -> None:
    for made in (
        lambda: Volumes(spacing_mm=1.0, represented_mm=(2.0,)),
        lambda: Volumes(represented_mm=()),
        lambda: Volumes(represented_mm=(2.0, -1.0)),
        lambda: Volumes(held_back=1),
        lambda: Deformations(smooth_mm=-1.0),
        lambda: Deformations(waves=0),
        lambda: VolumeSource("scans", ()),
        lambda: VolumeSource("scans", ("*",), 0),
    ):
        with pytest.raises(ConfigError):
            made()


def test_a_reference_that_is_no_source(folder: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path)
    path.write_text(path.read_text().replace("held_back = 3", 'held_back = 3, reference = "z.nii.gz"'))
    with pytest.raises(ConfigError, match=r"the reference 'z\.nii\.gz' is not among"):
        Preparation(load_toml(path, RegistrationRecipe), folder, tmp_path)


def test_steps_are_counted_by_level() -> None:
    settings = RegistrationRecipe((VolumeSource("scans", ("*",)),), steps=(2, 1, 3))
    assert [settings.level(k) for k in range(7)] == [1, 1, 2, 3, 3, 3, 3]
    assert [settings.since(k) for k in range(6)] == [0, 1, 0, 0, 1, 2]


def test_the_shipped_recipe_is_sound() -> None:
    settings = load_toml(RECIPES / "lapirn.toml", RegistrationRecipe)
    assert settings.network == "lapirn"
    assert all(source.origin and source.licence for source in settings.sources)
    assert settings.base == weights_hash(RECIPES / "lapirn_base.onnx")
