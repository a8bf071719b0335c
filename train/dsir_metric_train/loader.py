"""Pairs of views, drawn ahead of the steps that need them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dsir_metric.errors import DataError, DsirError
from dsir_metric_train.loss import sample_points
from dsir_metric_train.recipe import Recipe
from dsir_metric_train.stop import outlast_signals
from dsir_metric_train.together import together, told
from dsir_metric_train.views import FromFiles, Source

__all__ = ["Loader", "Pair", "ViewPairs"]

Pair = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Drawn:
    """What a process that draws hands over.

    Parameters
    ----------
    pair : Pair or DsirError
        Why there is none is raised by the process that trains: from a worker it would not be one line.
    unusable : dict
        Files passed over so far, and why.
    """

    pair: Pair | DsirError
    unusable: dict[str, str]


class ViewPairs(Dataset[Drawn]):
    """Views of the steps `start` to `start + count`: a pair depends on the seed, the step and its place in the batch.

    Parameters
    ----------
    recipe : Recipe
    sources : sequence of Source
    start, count : int
        First step and number of steps.
    rank, processes : int
        Which part of every batch is drawn, and of how many.
    """

    def __init__(
        self, recipe: Recipe, sources: Sequence[Source], start: int, count: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.recipe, self.sources, self.start, self.count = recipe, sources, start, count
        self.rank, self.share = rank, recipe.optimisation.batch // processes
        self.shares = recipe.shares()

    def __len__(self) -> int:
        return self.count * self.share

    def __getitem__(self, item: int) -> Drawn:
        """A pair, or what went wrong."""
        pair: Pair | DsirError
        try:
            pair = self.draw(item)
        except DsirError as error:
            pair = error
        return Drawn(pair, {f: str(e) for s in _scans(self.sources) for f, e in s.unusable.items()})

    def draw(self, item: int) -> Pair:
        """Two views (2, 1, z, y, x) and the sampled points in the first and the second (points, 3), z, y, x."""
        settings = self.recipe.optimisation
        step, place = divmod(item, self.share)
        pair = (self.start + step) * settings.batch + self.rank * self.share + place  # of the run, whoever draws it
        rng = np.random.default_rng([settings.seed, pair])
        for _ in range(50):
            views = self.sources[int(rng.choice(len(self.sources), p=self.shares))].draw(rng)
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            foreground, warp = torch.from_numpy(views.foreground), torch.from_numpy(views.warp)
            first, second = sample_points(foreground, warp, settings.points, generator)
            if len(first) >= min(settings.points, 0.05 * foreground.numel()):
                return torch.from_numpy(np.stack([views.first, views.second])[:, None]), first, second
        raise DataError("50 crops in a row were almost all background; check the training images or the crop size")


class Loader:
    """The pairs of a run in order, a chunk an epoch; the processes that draw them live as long as the run.

    Parameters
    ----------
    pairs : ViewPairs
        All steps that are left.
    workers : int
        Processes that draw; 0 draws in this one.
    unusable : dict
        Files that could not be used, and why; grows as they are met, by any process.
    strategy : Strategy, optional
        Lightning's; by default there is one process alone.

    Attributes
    ----------
    waited_s : float
        Time spent waiting for pairs so far, seconds.

    Raises
    ------
    DataError
        While iterating, if more than a tenth of the scans cannot be used, or crops hold nothing.
    """

    def __init__(
        self, pairs: ViewPairs, workers: int, unusable: dict[str, str], strategy: Strategy | None = None
    ) -> None:
        self.chunk = min(pairs.recipe.optimisation.chunk * pairs.share, len(pairs))
        self.waited_s, self.unusable, self.strategy = 0.0, unusable, strategy or SingleDeviceStrategy()
        self.files = sum(len(source.files) for source in _scans(pairs.sources))
        ahead = 4 if workers else None
        self._drawn: Iterator[Drawn] = iter(
            DataLoader(
                pairs, batch_size=None, num_workers=workers, prefetch_factor=ahead, worker_init_fn=outlast_signals
            )
        )

    def __len__(self) -> int:
        return self.chunk

    def __iter__(self) -> Iterator[Pair]:
        for _ in range(self.chunk):
            begin = time.perf_counter()
            drawn = next(self._drawn, None)
            self.waited_s += time.perf_counter() - begin
            if drawn is None:
                return
            yield self._checked(drawn)

    def close(self) -> None:
        """End the processes."""
        self._drawn = iter(())

    def _checked(self, drawn: Drawn) -> Pair:
        new = {file: reason for file, reason in drawn.unusable.items() if file not in self.unusable}
        for unusable in told(self.strategy, new or None):
            self.unusable.update(unusable)
        with together(self.strategy):
            if isinstance(drawn.pair, DsirError):
                raise drawn.pair
            if len(self.unusable) > self.files / 10:
                reason = next(iter(self.unusable.values()))
                raise DataError(
                    f"{len(self.unusable)} of {self.files} scans cannot be used, more than a tenth; the first: {reason}"
                )
        return drawn.pair


def _scans(sources: Sequence[Source]) -> list[FromFiles]:
    return [source for source in sources if isinstance(source, FromFiles)]
