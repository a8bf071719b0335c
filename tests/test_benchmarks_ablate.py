"""The ablation: recipes varied, rows read as they say, trained once and found again."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
import ablate  # noqa: E402
from ablate import ROWS, changed, representing, table  # noqa: E402
from dsir_metric_train.model import MasrNet  # noqa: E402
from dsir_metric_train.recipe import Recipe  # noqa: E402

from dsir_metric.config import load_toml  # noqa: E402
from dsir_metric.phantom import PhantomPair  # noqa: E402
from dsir_metric.register import DeformableConfig  # noqa: E402

RECIPE = Path(__file__).parents[1] / "benchmarks" / "ablation.toml"
TINY = """
name = "tiny"
[model]
widths = [2, 3]
features = 2
[placement]
crop = 16
[optimisation]
points = 64
[[sources]]
kind = "shapes"
"""


def test_a_recipe_is_changed_where_it_should_be() -> None:
    before = load_toml(RECIPE, Recipe)
    after = changed(before, ROWS[4], 7)
    assert (after.model.dilations, after.optimisation.steps, before.model.dilations) == ((), 7, (1, 2))
    assert changed(after, replace(ROWS[4], model={"dilations": (1, 2)}), before.optimisation.steps) == before
    assert not before.base  # every row begins with random weights


def test_rows_read_the_network_as_they_say(network: MasrNet, pair: PhantomPair) -> None:
    made = {row.name: representing(row, network, 1.0)(pair.fixed, pair.moving) for row in ROWS[:4]}
    features, dns, trained, smooth = made.values()
    assert [m[0].channels for m in made.values()] == [2, 24, 24, 24]
    image = torch.zeros(1, 1, 16, 16, 16)
    assert ROWS[0].read(network, image).equal(network.features(image))
    for fixed, _ in (features, dns, trained):
        np.testing.assert_allclose(np.linalg.norm(fixed.values, axis=-1), 1, rtol=1e-5)
    rough = [np.abs(np.diff(fixed.values, axis=2)).mean() for fixed, _ in (trained, smooth)]
    assert rough[1] < 0.8 * rough[0]


def test_rows_stand_below_each_other_with_their_means() -> None:
    scores = {"start": (4.0, 0.5), "a": (1.0, 0.75)}
    records = [{"task": "k", "representation": n, "epe_mean": e, "dice": 0.1} for n, (e, _) in scores.items()]
    records += [{"task": "l", "representation": n, "dice": d} for n, (_, d) in scores.items()]
    assert table(records, ["a"]).splitlines()[2:] == [
        "| start | 1.000 | 0.500 | 4.00 | 0.500 |",
        "| a | 0.250 | 0.750 | 1.00 | 0.750 |",
    ]


def test_trained_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: PhantomPair) -> None:
    recipe, out = tmp_path / "tiny.toml", tmp_path / "out"
    recipe.write_text(TINY)
    tried: dict[str, float] = {}

    def compare(judge: object, tasks: object, methods: ablate.Methods, file: Path) -> list[ablate.Record]:
        tried.update({name: config.deformable.diffusion for name, (_, config) in methods.items()})
        channels = [make(pair.fixed, pair.moving)[0].channels for make, _ in methods.values()]
        file.write_text(json.dumps(channels))
        return [{"task": "k", "representation": n, "epe_mean": 1.0} for n in ("start", *methods)]

    monkeypatch.setattr(ablate, "ROWS", (ROWS[0], ROWS[4]))
    monkeypatch.setattr(ablate, "compare", compare)
    monkeypatch.setattr(ablate, "load_judge", lambda _: None)
    monkeypatch.setattr(ablate, "find_tasks", lambda *_: ["task"])
    monkeypatch.setattr(ablate, "tune", lambda *_: DeformableConfig(diffusion=0.07))
    command = ["ablate.py", str(recipe), "--data", ".", "--out", str(out), "--judge", "j", "--work", "w"]

    def run(steps: str, *more: str) -> float:
        monkeypatch.setattr(sys, "argv", [*command, "--workers", "0", "--steps", steps, *more])
        ablate.main()
        return (out / "none" / "last.ckpt").stat().st_mtime

    first = run("1")
    assert tried == dict.fromkeys(("random features", "trained, no DNS"), DeformableConfig().diffusion)
    assert json.loads((out / "ablation.json").read_text()) == [2, 24]
    assert (out / "ablation.md").read_text().count("\n") == 5
    assert run("1", "--tuning", "elsewhere") == first  # nothing left to train
    assert set(tried.values()) == {0.07}
    with pytest.raises(SystemExit, match="another recipe"):
        run("2")
