"""The benchmark of training speed measures what it says, on a recipe of a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")
import training
from dsir_metric_train.loader import ViewPairs
from dsir_metric_train.recipe import Recipe

from dsir_metric.config import from_dict


@pytest.fixture
def recipe() -> Recipe:
    return from_dict(
        Recipe,
        {
            "model": {"widths": [4, 8], "features": 2},
            "placement": {"crop": 16},
            "optimisation": {"points": 100},
            "sources": [{"kind": "scans", "files": ["brains/*"], "intensity": "ct"}, {"kind": "shapes"}],
        },
    )


def test_phantoms_take_the_place_of_files(recipe: Recipe) -> None:
    scans, shapes = training.of_phantoms(recipe).sources
    assert (scans.files, scans.intensity) == (("phantom/scan*.nii.gz",), "mr")
    assert shapes.files == ()


def test_rates_count_each_pair_once(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = ViewPairs.draw
    monkeypatch.setattr(ViewPairs, "draw", lambda self, item: (drawn.append(item), draw(self, item))[1])
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(len(drawn)))  # a pair a second
    assert training.measure_loader(recipe, tmp_path, "shapes", 0, 6)["pairs_per_second"] == 1.0
    assert drawn == list(range(6))


def test_the_whole_is_measured_by_its_journal(recipe: Recipe, tmp_path: Path) -> None:
    made = from_dict(Recipe, {**vars(recipe), "sources": [{"kind": "shapes"}]})
    found = training.measure_training(made, tmp_path, tmp_path, 0, 8)
    assert found["pairs_per_second"] > 0
    assert 0 < found["waited_percent"] < 100
    assert training.measure_network(made, tmp_path, 2)["pairs_per_second"] > 0


def test_a_recipe_that_goes_on_from_a_model_is_measured_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Recipe] = []
    monkeypatch.setattr(training, "measure_training", lambda recipe, *_: taken.append(recipe) or {})
    job = {
        "what": "training",
        "recipe": training.DEFAULT,
        "phantoms": True,
        "data": ".",
        "out": ".",
        "workers": 0,
        "steps": 1,
    }
    assert training.work(job)["memory_mb"] > 0
    assert not taken[0].base
