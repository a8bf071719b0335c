"""Calibration: how channels are mixed for a close comparison, found at the end of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
from dsir_metric_train import loop  # noqa: E402
from dsir_metric_train.calibration import calibration  # noqa: E402
from dsir_metric_train.checkpoint import load_network, mixture_of, read_checkpoint  # noqa: E402
from dsir_metric_train.loader import Pair, ViewPairs  # noqa: E402
from dsir_metric_train.loop import train  # noqa: E402
from dsir_metric_train.model import MasrNet, ModelConfig  # noqa: E402
from dsir_metric_train.recipe import DataSource, Optimisation, Recipe  # noqa: E402
from dsir_metric_train.views import Placement  # noqa: E402

from dsir_metric.config import dump_toml, from_dict, load_toml  # noqa: E402
from dsir_metric.errors import ConfigError, DataError  # noqa: E402


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return from_dict(
        Recipe,
        {
            "sources": [{"kind": "shapes"}, {"kind": "bodies"}],
            "placement": {"crop": 24, "relative_shift_vox": 2.0},
            "optimisation": {"points": 1000},
        },
    )


@pytest.fixture(scope="module")
def pairs(recipe: Recipe) -> list[Pair]:
    drawn = ViewPairs(recipe, recipe.open_sources(Path()), 0, 12)
    return [drawn.draw(k) for k in range(12)]


@pytest.fixture
def network() -> MasrNet:
    torch.manual_seed(1)
    return MasrNet(ModelConfig(widths=(4, 8), channels=6)).eval()


def descriptors(network: MasrNet, pairs: list[Pair]) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Of each view, (z, y, x, channels), and its points, (n, 3), the last voxel of an axis left out."""
    found = []
    for views, *points in pairs:
        with torch.inference_mode():
            both = network(views).movedim(1, -1).double().numpy()
        for volume, places in zip(both, points, strict=True):
            index = np.rint(places.numpy()).astype(int)
            found.append((volume, index[(index < volume.shape[0] - 1).all(axis=1)]))
    return found


def covariances(network: MasrNet, pairs: list[Pair]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Covariance of the descriptors, and mean square of their differences along the axes; from the definition."""
    here, change = [], []
    for volume, index in descriptors(network, pairs):
        here.append(volume[tuple(index.T)])
        change += [np.diff(volume, axis=axis)[tuple(index.T)] for axis in range(3)]
    steps = np.concatenate(change)
    return np.cov(np.concatenate(here).T, bias=True), steps.T @ steps


def test_cosine_of_mixed_channels_is_that_under_the_covariances(network: MasrNet, pairs: list[Pair]) -> None:
    spread, change = covariances(network, pairs)
    values = np.linalg.eigvalsh(spread)
    assert values[0] > 1e-3 * values[-1]  # nothing is cut off
    inverse = np.linalg.inv(spread)
    wanted = inverse @ change @ inverse
    mixture = calibration(network, pairs).numpy()
    assert np.linalg.norm(mixture, 2) == pytest.approx(1)
    assert mixture.T @ mixture == pytest.approx(wanted / np.linalg.norm(wanted, 2), rel=1e-4, abs=1e-5)


def test_it_does_not_depend_on_how_the_channels_were_mixed_before(network: MasrNet, pairs: list[Pair]) -> None:
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))[0]  # lengths stay
    other = MasrNet(network.config).eval()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        last = other.head[-1]
        last.weight.copy_(torch.einsum("ij,jkzyx->ikzyx", rotation, last.weight))
        last.bias.copy_(rotation @ last.bias)
    found = []
    for each in (network, other):
        with torch.inference_mode():
            flat = calibration(each, pairs).float() @ each(pairs[0][0][:1])[0].flatten(1)
        found.append(flat[:, :500].T @ flat[:, 500:1000])
    assert torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize(("weight", "bias"), [(0.0, 1.0), (0.0, 0.0), (float("nan"), 0.0)])
def test_descriptors_with_nothing_to_tell_are_refused(
    network: MasrNet, pairs: list[Pair], weight: float, bias: float
) -> None:
    with torch.no_grad():
        network.head[-1].weight.fill_(weight)
        network.head[-1].bias.fill_(bias)
    with pytest.raises(DataError, match="calibration: the descriptors of the views are all the same, or no numbers"):
        calibration(network, pairs)


Ended = tuple[dict[str, torch.Tensor], list[list[float]]]


def run(folder: Path, out: str, steps: int = 6, calibration: int = 4, *, batch: int = 1, resume: bool = False) -> Ended:
    """Weights and mixture that a run ends with."""
    path = folder / f"{out}.toml"
    settings = Optimisation(steps, batch, 3e-3, chunk=3, points=200, calibration=calibration, seed=4)
    plan = Recipe(
        (DataSource("shapes"),),
        model=ModelConfig(widths=(4, 8), features=2),
        placement=Placement(crop=16, relative_shift_vox=2.0),
        optimisation=settings,
    )
    path.write_text(dump_toml(plan))
    network, content = read_checkpoint(train(path, folder / out, workers=0, progress=False, resume=resume))
    return dict(network.state_dict()), mixture_of(content)


def equal(one: Ended, other: Ended) -> bool:
    return one[1] == other[1] and all(torch.equal(value, other[0][name]) for name, value in one[0].items())


@pytest.mark.parametrize("batch", [1, 2])
def test_a_run_ends_with_it(tmp_path: Path, batch: int) -> None:
    calibrated, plain = (run(tmp_path, n, calibration=c, batch=batch) for n, c in (("calibrated", 4), ("plain", 0)))
    assert equal((calibrated[0], []), plain)
    plan = load_toml(tmp_path / "calibrated.toml", Recipe)
    drawn = ViewPairs(plan, plan.open_sources(tmp_path), 6, 4)  # views that come after those of the steps
    network = load_network(tmp_path / "plain" / "last.ckpt")
    assert calibrated[1] == calibration(network, [drawn.draw(k) for k in range(4)]).float().tolist()


def test_killed_before_it_and_resumed_is_as_never_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path, "whole")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "keep_mixture", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "killed")
    monkeypatch.undo()
    assert equal(run(tmp_path, "killed", resume=True), whole)
    assert equal(run(tmp_path, "killed", resume=True), whole)  # and once more changes nothing


def test_a_run_made_longer_is_as_one_that_was_long_at_once(tmp_path: Path) -> None:
    run(tmp_path, "longer", steps=3)
    assert equal(run(tmp_path, "longer", steps=6, resume=True), run(tmp_path, "at_once", steps=6))


def test_a_number_below_0_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"calibration must be a whole number from 0 to .*, got -1"):
        from_dict(Recipe, {"sources": [{"kind": "shapes"}], "optimisation": {"calibration": -1}})
