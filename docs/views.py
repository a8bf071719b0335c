"""The picture of the synthetic engine: middle slices of pairs of views, drawn as `train/recipes/default.toml` says."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from dsir_metric_train.recipe import Recipe
from dsir_metric_train.views import Bodies, Shapes

from dsir_metric.config import load_toml

RECIPE = Path(__file__).parents[1] / "train" / "recipes" / "default.toml"
COLUMNS = 10


def main() -> None:
    """Draw bodies and shapes, first view above second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", default="docs/views.png")
    output = parser.parse_args().output
    recipe = load_toml(RECIPE, Recipe)
    made = [source(recipe.placement, recipe.paint, recipe.appearance) for source in (Bodies, Shapes)]
    figure, panels = plt.subplots(2 * len(made), COLUMNS, figsize=(COLUMNS, 2 * len(made) + 0.3))
    for row, source in enumerate(made):
        for column in range(COLUMNS):
            views = source.draw(np.random.default_rng(40 + column))
            for k, view in enumerate((views.first, views.second)):
                panels[2 * row + k, column].imshow(view[recipe.placement.crop // 2], cmap="gray", vmin=0, vmax=1)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    for k, name in enumerate(("bodies, first", "second", "shapes, first", "second")):
        panels[k, 0].set_ylabel(name, fontsize=8)
    figure.tight_layout(pad=0.2)
    figure.savefig(output, dpi=80)


if __name__ == "__main__":
    main()
