"""Fine-tuning on a user's own scans: what is trained, how it is judged, and what is written only if it helped."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from dsir_metric_cli.main import app

from dsir_metric.config import dump_toml, from_dict, load_toml
from dsir_metric.errors import DataError, ModelFileError
from dsir_metric.geometry import DisplacementField, Grid
from dsir_metric.phantom import PhantomPair, make_pair
from dsir_metric.represent import Representer, load_card

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("lightning")
from dsir_metric_export import adapt as adapt_module  # noqa: E402
from dsir_metric_export import read as reading  # noqa: E402
from dsir_metric_export import read_network  # noqa: E402
from dsir_metric_export.trials import CANDIDATES, Score, compare, make_trial, score  # noqa: E402
from dsir_metric_train.model import MasrNet, ModelConfig  # noqa: E402
from dsir_metric_train.recipe import Recipe  # noqa: E402
from dsir_metric_train.views import Appearance  # noqa: E402

PLAIN = Appearance(invert=0.0, control_points=2)  # a straight curve
RECIPES = Path(__file__).parents[1] / "train" / "recipes"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Six small scans, one in a folder of its own with a name that a pattern could misread."""
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    image = make_pair(16, 1.5, amplitude_mm=0.5).fixed
    for k, name in enumerate(("a.mha", "b.nii.gz", "c.nrrd", "d.mha", "e.mha", "more/f [1].mha")):
        sitk.WriteImage(image + 10 * k, str(folder / name))
    (folder / "notes.txt").write_text("no image")
    (folder / "._a.mha").write_text("what some systems leave")
    return folder


def test_exported_and_read_back_is_the_same(model_file: Path, network: MasrNet) -> None:
    back = read_network(model_file)
    assert back.config == network.config
    for name, value in network.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    assert reading.reference(back) == load_card(model_file).reference


def test_squeeze_of_its_own_for_each_relation_is_read() -> None:
    config, rng = ModelConfig(features=3, shared_squeeze=False), np.random.default_rng(0)
    weights, bias = rng.random((3, 2), np.float32), np.array([0.25, 0.0], np.float32)
    constants = {"bias0": bias[0]} | {f"w{k}": weights[:, k].reshape(1, 3, 1, 1, 1) for k in (0, 1)}
    nodes = [
        onnx.helper.make_node(op, inputs, [output])
        for op, inputs, output in (
            ("Mul", ["exp0", "w0"], "m0"), ("ReduceSum", ["m0", "one"], "s0"), ("Add", ["s0", "bias0"], "a0"),
            ("Mul", ["exp1", "w1"], "m1"), ("ReduceSum", ["m1", "one"], "s1"), ("Unsqueeze", ["s1", "one"], "u1"),
            ("Unsqueeze", ["a0", "one"], "u0"), ("Concat", ["u0", "u1"], "out"),
        )
    ]  # fmt: skip
    found = reading._squeeze(onnx.helper.make_graph(nodes, "squeeze", [], []), constants, config)
    np.testing.assert_array_equal(found[0], weights)
    np.testing.assert_array_equal(found[1], bias)


def test_weights_of_the_shipped_model_are_read() -> None:
    network, card = read_network("default"), load_card("default")
    assert list(network.config.widths) == card.config["widths"]
    np.testing.assert_allclose(reading.reference(network), card.reference, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"slope": 0.5}, "do not give the descriptors in the card"),
        ({"widths": [4, 8, 16]}, "cannot be read back"),
        ({"depth": 3}, "cannot be read back .unknown setting depth"),
    ],
)
def test_a_model_that_does_not_fit_its_card_is_not_read(
    model_file: Path, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    model = onnx.load(model_file)
    for entry in model.metadata_props:
        if entry.key == "config":
            entry.value = json.dumps(json.loads(entry.value) | config)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match=message):
        read_network(tmp_path / "other.onnx")


def test_recipes_survive_being_written(tmp_path: Path) -> None:
    for name in ("default", "paper"):
        recipe = load_toml(RECIPES / f"{name}.toml", Recipe)
        (tmp_path / "again.toml").write_text(dump_toml(recipe))
        assert load_toml(tmp_path / "again.toml", Recipe) == recipe


@pytest.fixture
def scan(pair: PhantomPair, tmp_path: Path) -> Path:
    sitk.WriteImage(pair.fixed, str(tmp_path / "scan.mha"))
    return tmp_path / "scan.mha"


def test_a_trial_knows_its_truth(scan: Path) -> None:
    trial = make_trial(scan, PLAIN, (0, 1))
    moved = sitk.Resample(trial.moving, trial.fixed, trial.truth)
    off = np.abs(sitk.GetArrayFromImage(moved) - sitk.GetArrayFromImage(trial.fixed))[trial.mask]
    start = np.abs(sitk.GetArrayFromImage(trial.moving) - sitk.GetArrayFromImage(trial.fixed))[trial.mask]
    assert off.mean() < 0.01 < 0.05 < start.mean()
    assert 0.1 < trial.mask.mean() < 0.8
    same, other = make_trial(scan, PLAIN, (0, 1)), make_trial(scan, PLAIN, (0, 2))
    assert np.array_equal(sitk.GetArrayFromImage(same.fixed), sitk.GetArrayFromImage(trial.fixed))
    assert not np.array_equal(sitk.GetArrayFromImage(other.fixed), sitk.GetArrayFromImage(trial.fixed))


def test_a_trial_shows_two_contrasts_and_leaves_the_background_dark(scan: Path) -> None:
    trial = make_trial(scan, Appearance(invert=1.0), (0, 1))
    fixed, moving = (sitk.GetArrayFromImage(image) for image in (trial.fixed, trial.moving))
    plain = sitk.GetArrayFromImage(make_trial(scan, PLAIN, (0, 1)).fixed)
    assert np.corrcoef(fixed[trial.mask], plain[trial.mask])[0, 1] < -0.5
    for view in (fixed, moving):
        assert view[0, 0, 0] < 0.05
        assert 0 <= view.min() < view.max() <= 1


def test_a_model_is_scored_by_what_it_finds(scan: Path) -> None:
    trial = make_trial(scan, Appearance(), (0, 3))
    start = DisplacementField.from_transform(trial.truth, Grid.of(trial.fixed)).length_mm()[trial.mask].mean()
    found = score(trial, Representer("default", threads=1), threads=1)
    assert found.error_mm < 0.7 * start  # voxels of 4.5 mm
    assert trial.mask.sum() < 2 * CANDIDATES  # so half of the anatomy is searched
    assert 0.1 < found.retrieval <= 1


def test_background_alone_is_no_trial(tmp_path: Path) -> None:
    image = Grid((40, 40, 40)).image(sitk.sitkFloat32) - 1000
    image[20, 20, 20] = 500.0
    sitk.WriteImage(image, str(tmp_path / "air.mha"))
    with pytest.raises(DataError, match=r"air\.mha: is almost all background"):
        make_trial(tmp_path / "air.mha", PLAIN, (0, 0))


@pytest.mark.parametrize(
    ("after", "larger_is_better", "verdict"),
    [
        ([0.55, 0.66, 0.44], True, "better"),
        ([0.55, 0.66, 0.44], False, "worse"),
        ([0.505, 0.606, 0.404], True, "same"),  # less than 2 %
        ([0.7, 0.5, 0.4], True, "same"),  # one trial alone
        ([0.45, 0.54, 0.36], False, "better"),
    ],
)
def test_a_change_counts_if_it_exceeds_the_margin_and_the_noise(
    after: list[float], larger_is_better: bool, verdict: str
) -> None:
    figure = compare([0.5, 0.6, 0.4], after, larger_is_better=larger_is_better)
    assert figure.verdict == verdict
    assert figure.before == pytest.approx(0.5)
    assert figure.gain == pytest.approx((np.mean(after) / 0.5 - 1) * (1 if larger_is_better else -1))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, model_file: Path) -> list[Score]:
    """The slow parts replaced: scores as this list says (before, after), and a model file that is there already."""
    scores: list[Score] = []
    monkeypatch.setattr(adapt_module, "_scores", lambda trials, *_: [scores.pop(0)] * len(trials))
    monkeypatch.setattr(adapt_module, "_export", lambda *given: shutil.copy(model_file, given[4]))
    return scores


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


QUICK = ("--steps", 2, "--crop", 16, "--workers", 0)


def test_a_model_that_became_better_is_written(
    scans: Path, tmp_path: Path, model_file: Path, judged: list[Score]
) -> None:
    judged += [Score(0.4, 1.0), Score(0.5, 1.01)]
    out = tmp_path / "out"
    result = call(scans, "-o", out, "--model", model_file, *QUICK)
    assert result.exit_code == 0, result.output
    assert "6 scans: 5 to train on, 1 held back; begins with 'tiny'" in result.stderr
    assert "before: 40.0% of points find their match, registrations are 1.00 mm off" in result.stderr
    assert f"the model became better; wrote {out}/model.onnx" in result.stderr
    assert sorted(p.name for p in out.iterdir()) == ["last.ckpt", "log", "model.onnx", "recipe.toml", "report.json"]
    report = json.loads((out / "report.json").read_text())
    assert report["better"] is True
    assert report["figures"]["retrieval"] == {
        "before": pytest.approx(0.4), "after": pytest.approx(0.5), "gain": pytest.approx(0.25),
        "noise": pytest.approx(0, abs=1e-9), "verdict": "better",
    }  # fmt: skip
    assert report["figures"]["error_mm"]["verdict"] == "same"
    assert report["base"]["weights_hash"] == load_card(model_file).weights_hash
    assert len(report["held_back"]) == 1
    recipe = load_toml(out / "recipe.toml", Recipe)
    assert recipe.base == report["base"]["weights_hash"]
    assert len(recipe.sources[0].files) == 5
    assert not set(report["held_back"]) & set(recipe.sources[0].files)
    used = torch.load(out / "last.ckpt", weights_only=True)["hyper_parameters"]["data"]
    names = {entry["file"] for entry in used if entry["source"] == "yours"}
    assert names | set(report["held_back"]) == {"a.mha", "b.nii.gz", "c.nrrd", "d.mha", "e.mha", "more/f [1].mha"}


@pytest.mark.parametrize(
    ("after", "keep", "written"),
    [
        (Score(0.5, 1.1), "better", False),  # one better, one worse
        (Score(0.4, 1.0), "better", False),
        (Score(0.3, 1.1), "always", True),
    ],
)
def test_a_model_that_did_not_become_better_replaces_nothing(
    scans: Path, tmp_path: Path, model_file: Path, judged: list[Score], after: Score, keep: str, written: bool
) -> None:
    judged += [Score(0.4, 1.0), after]
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"an older one")
    result = call(scans, "-o", out, "--model", model_file, "--keep", keep, *QUICK)
    assert result.exit_code == 0, result.output
    assert "the model did not become better" in result.stderr
    assert ((out / "model.onnx").read_bytes() != b"an older one") == written
    assert (out / "last.ckpt").exists()
    assert json.loads((out / "report.json").read_text())["better"] is False


def test_the_recipe_that_was_written_repeats_the_training(
    scans: Path, tmp_path: Path, model_file: Path, judged: list[Score]
) -> None:
    judged += [Score(0.4, 1.0), Score(0.5, 1.0)]
    call(scans, "-o", tmp_path / "out", "--model", model_file, *QUICK)
    again = tmp_path / "again"
    result = call(tmp_path / "out/recipe.toml", "--data", scans, "-o", again, "--model", model_file, "--workers", 0)
    assert result.exit_code == 0, result.output
    refused(
        call(tmp_path / "out/recipe.toml", "--data", scans, "-o", again, "--model", "default"),
        "are expected: give their model",
    )
    one, other = (torch.load(f / "last.ckpt", weights_only=True)["state_dict"] for f in (tmp_path / "out", again))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_card_names_files_and_no_folders(
    scans: Path, tmp_path: Path, model_file: Path, network: MasrNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = load_card(model_file)
    recipe = adapt_module._recipe(card, [Path("more/f [1].mha")], 2, 16, 0)
    content = {"hyper_parameters": {"data": recipe.manifest(scans)}, "mixture": torch.eye(24)}
    given: list[SimpleNamespace] = []
    monkeypatch.setattr(adapt_module, "export_network", lambda *_, **named: given.append(SimpleNamespace(**named)))
    adapt_module._export(network, content, recipe, card, tmp_path / "model.onnx", "mine")
    assert given[0].name == "mine"
    assert given[0].recipe["base"] == card.weights_hash
    assert given[0].recipe["sources"][0]["files"] == ["f [1].mha"]
    assert given[0].data[0] == dict(card.data[0])
    assert given[0].data[1] == {"file": "f [1].mha", "source": "yours", "licence": "yours"}
    assert given[0].mixture == torch.eye(24).tolist()
    assert [entry["file"] for entry in given[0].data[2:]] == ["synthetic shapes", "synthetic bodies"]


def test_views_are_made_as_in_the_training_of_the_model() -> None:
    card = load_card("default")
    recipe = adapt_module._recipe(card, [Path("a.mha")], 7, None, 5)
    for part in ("placement", "appearance", "paint"):
        assert getattr(recipe, part) == from_dict(type(getattr(recipe, part)), card.recipe.get(part, {}))
    assert recipe.appearance != Appearance()
    assert recipe.optimisation.both_views
    assert recipe.optimisation.calibration == 7  # no more than steps
    assert (recipe.optimisation.steps, recipe.optimisation.seed, recipe.optimisation.decay) == (7, 5, True)
    assert adapt_module._recipe(card, [Path("a.mha")], 7, 16, 5).placement == replace(recipe.placement, crop=16)


def test_every_fifth_scan_is_held_back() -> None:
    for count, held in ((3, 1), (9, 1), (10, 2), (300, 8)):
        files = [Path(f"{k}") for k in range(count)]
        one, other = (adapt_module._split(files, Path(), seed) for seed in (0, 1))
        assert len(one[1]) == held
        assert sorted([*one[0], *one[1]]) == sorted(files)
        assert one == adapt_module._split(files, Path(), 0)
        assert count < 10 or one != other


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_bad_folders_are_refused_in_one_line(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    refused(call(tmp_path / "empty", "-o", out), "no NIfTI, NRRD or MetaImage file")
    refused(
        call(scans, "-o", out, "--crop", 40), "is 24 mm thin; a crop needs 36 mm: leave it out, or make crops smaller"
    )
    refused(call(scans, "-o", out, "--crop", 20), "crop is 20; a multiple of 8")
    sitk.WriteImage(sitk.ReadImage(str(scans / "a.mha"))[:, :, 3], str(scans / "flat.mha"))
    refused(call(scans, "-o", out, "--crop", 16), "flat.mha: is a 2-D image, as 1 of 7 here")
    for name in ("c.nrrd", "d.mha", "e.mha", "more/f [1].mha", "flat.mha"):
        (scans / name).unlink()
    refused(call(scans, "-o", out), "has 2 scans; 3 are needed, since one is held back")
    assert not (out / "last.ckpt").exists()


def test_a_folder_of_background_is_refused(tmp_path: Path) -> None:
    air = Grid((24, 24, 24)).image(sitk.sitkFloat32) - 1000
    air[0, 0, 0] = -999.0
    for k in range(3):
        sitk.WriteImage(air, str(tmp_path / f"{k}.mha"))
    refused(call(tmp_path, "-o", tmp_path / "out", *QUICK), "is almost all background")


def test_options_of_the_other_kind_are_refused(scans: Path, tmp_path: Path) -> None:
    recipe = RECIPES / "default.toml"
    refused(call(recipe, "-o", tmp_path / "out", "--steps", 3), "--steps goes with a folder")
    refused(call(scans, "-o", tmp_path / "out", "--data", tmp_path), "--data goes with a recipe")
    refused(call(tmp_path / "nowhere", "-o", tmp_path / "out", "--steps", 3), "there is no such folder or file")
