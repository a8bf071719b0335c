"""What a setting may be: annotations of the fields of a dataclass, as in `threads: Annotated[int, Range(1, 1024)]`."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Annotated

__all__ = ["MOST_DEPTH", "MOST_ENTRIES", "MOST_LETTERS", "MOST_NUMBER", "Bytes", "Length", "Range", "Threads", "quoted"]

# What holds where a field declares nothing else.
MOST_NUMBER = 10**18  # magnitude; a whole number up to it fits 64 bits
MOST_LETTERS = 4096  # of a text; the longest path on Linux
MOST_ENTRIES = 1_000_000  # of a list or table
MOST_DEPTH = 16  # of tables in tables whose content is not declared, such as the recipe in a model card


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be. NaN and infinity are in no range.

    Parameters
    ----------
    low, high : float
        The smallest and the largest number.
    above, below : bool
        Whether the number must be above `low`, or below `high`, rather than equal it.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        over = self.low < value if self.above else self.low <= value
        return over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        return (
            f"{'above' if self.above else 'from'} {self.low:.12g} {'to below' if self.below else 'to'} {self.high:.12g}"
        )


@dataclass(frozen=True)
class Length:
    """How many entries a list or table, or letters a text, may have.

    Parameters
    ----------
    least, most : int
    """

    least: int
    most: int

    def __contains__(self, count: int) -> bool:
        return self.least <= count <= self.most

    def __str__(self) -> str:
        return f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"


Bytes = Annotated[int, Range(1, 1e15)]
Threads = Annotated[int, Range(1, 1024)]  # of a process; no machine has more cores for one


class _Quoting(reprlib.Repr):
    """Short text on one line for any value, however long, deep or large it is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 2, 6, 6, 4
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        """A whole number; of a huge one, for which Python has no digits, the size."""
        return str(x) if abs(x) < 10**30 else f"a number of {x.bit_length()} bits"


def quoted(value: object) -> str:
    """`repr` of a value that came from outside, cut to a length that a message can have."""
    text = _Quoting().repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
