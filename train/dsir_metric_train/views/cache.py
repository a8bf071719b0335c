"""Volumes kept in memory, as many as fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from dsir_metric_train.views.placement import Volume

__all__ = ["Cache"]

BUDGET = 4 << 30


class Cache:
    """The volumes used last, up to a number of bytes.

    What is drawn does not depend on it: a volume that was dropped is made again.

    Parameters
    ----------
    budget : int
        Bytes; the volumes asked for last are kept even if they alone are larger. Each process has its own.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget, self.size = budget, 0
        self._kept: OrderedDict[object, tuple[Volume, ...]] = OrderedDict()

    def get(self, key: object, make: Callable[[], tuple[Volume, ...]]) -> tuple[Volume, ...]:
        """The volumes of `key`, kept from before or made now."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        volumes = self._kept[key] = make()
        self.size += _bytes(volumes)
        while self.size > self.budget and len(self._kept) > 1:
            self.size -= _bytes(self._kept.popitem(last=False)[1])
        return volumes


def _bytes(volumes: tuple[Volume, ...]) -> int:
    return sum(volume.nbytes for volume in volumes)
