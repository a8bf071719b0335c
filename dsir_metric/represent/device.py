"""Names of devices: "auto", "cpu", "cuda", "cuda:1"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from dsir_metric.errors import ConfigError

__all__ = ["Device"]


@dataclass(frozen=True)
class Device:
    """Where something runs.

    Parameters
    ----------
    kind : {"auto", "cpu", "cuda"}
        "auto" is CUDA where it can be used and the CPU elsewhere; the others are that or an error.
    index : int
        Which GPU.
    """

    kind: Literal["auto", "cpu", "cuda"]
    index: int = 0

    @classmethod
    def of(cls, name: str) -> Device:
        """The device of that name.

        Raises
        ------
        ConfigError
            If there is none.
        """
        found = re.fullmatch(r"(auto|cpu|cuda)(?::(\d{1,3}))?", str(name))
        if found is None or (found[2] and found[1] != "cuda"):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N with the number of a GPU, got {name!r}")
        return cls(cast(Literal["auto", "cpu", "cuda"], found[1]), int(found[2] or 0))
