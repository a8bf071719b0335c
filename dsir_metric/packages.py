"""Optional packages: whether one is here and new enough, and what to install when not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from dsir_metric.errors import MissingDependencyError

__all__ = ["Package"]


@dataclass(frozen=True)
class Package:
    """Something that can be used where a package is installed.

    Parameters
    ----------
    name : str
        Of what can then be used, and of the extra that installs it.
    package : str
        The wheel on PyPI.
    least : str
        The oldest version that works.
    """

    name: str
    package: str
    least: str

    @property
    def version(self) -> str | None:
        """Version installed here, or None."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be used here and what to do, or None."""
        found = self.version
        remedy = f"pip install 'dsir-metric[{self.name}]'"
        if found is None:
            return f"{self.package} is not installed: {remedy}"
        if _numbers(found) < _numbers(self.least):
            return f"{self.package} {found} is installed, {self.least} or newer is needed: {remedy}"
        return None

    def check(self) -> None:
        """See that it can be used here.

        Raises
        ------
        MissingDependencyError
            If the package is absent or too old; the message names the extra.
        """
        obstacle = self.obstacle
        if obstacle is not None:
            raise MissingDependencyError(obstacle if obstacle.startswith(self.name) else f"{self.name}: {obstacle}")


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text.partition("+")[0])]
