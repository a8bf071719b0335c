"""What became of the pairs of a study."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dsir_metric import io

__all__ = ["Outcome", "write_table"]


@dataclass(frozen=True)
class Outcome:
    """What became of one pair.

    Parameters
    ----------
    id : str
    state : str
        "done", "kept" (from a run before, with the same inputs and settings), "failed", or "waiting".
    seconds : float, optional
        From reading to the last stage.
    mean_cosine, folded_percent : float, optional
        Agreement at the end; share of the voxels that fold.
    dice_before, dice_after : float, optional
        Means over the labels, where there are any.
    undone : tuple of str
        Stages whose outcome was undone.
    warnings : tuple of str
        Doubts about the result.
    error : str
        Why it failed, in one line.
    notes : tuple of str
        What its worker warned of, which concerns the machine rather than the pair; not in the table.
    """

    id: str
    state: Literal["done", "kept", "failed", "waiting"] = "waiting"
    seconds: float | None = None
    mean_cosine: float | None = None
    folded_percent: float | None = None
    dice_before: float | None = None
    dice_after: float | None = None
    undone: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, state: Literal["done", "kept"], report: Mapping[str, Any]) -> Outcome:
        """From the content of a result.json."""
        dice = {
            when: float(np.mean(list(values.values()))) for when, values in report.get("dice", {}).items() if values
        }
        return cls(
            name,
            state,
            float(report["pair_seconds"]),
            float(report["mean_cosine"]),
            float(report["jacobian"]["folded_percent"]),
            dice.get("before"),
            dice.get("after"),
            tuple(str(stage["name"]) for stage in report["stages"] if not stage["kept"]),
            tuple(map(str, report["warnings"])),
        )

    def cells(self) -> list[str]:
        """The fields as text: three or four digits, lists separated by semicolons."""
        return [_text(getattr(self, name)) for name in _COLUMNS]


_COLUMNS = tuple(field.name for field in fields(Outcome) if field.name != "notes")


def write_table(outcomes: Iterable[Outcome], path: str | Path) -> None:
    """Write a CSV file with a row an outcome, whole or not at all.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    with io.atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(_COLUMNS)
        table.writerows(outcome.cells() for outcome in outcomes)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "; ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
