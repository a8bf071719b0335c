"""What can do the deformable stage; a backend is one line here and one module with a function `deform`.

Where more than a package can be missing, the module has a function `check` as well, and where it takes the
representations of one model alone a function `check_model`; both are called before the long part.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dsir_metric.bridges.registry import ENGINES
from dsir_metric.packages import Package

if TYPE_CHECKING:
    from dsir_metric.register.config import RegisterConfig
    from dsir_metric.register.problem import Deform

__all__ = ["BACKENDS", "Backend"]


@dataclass(frozen=True)
class Backend:
    """A way to deform.

    Parameters
    ----------
    name : str
    does : str
        What it is, in a few words.
    module : str
        Where its function `deform` is; imported when it is used.
    package : Package, optional
        What must be installed for it.
    """

    name: str
    does: str
    module: str
    package: Package | None = None

    def check(self, config: RegisterConfig) -> None:
        """See that it can be used here with these settings; raises what `Package.check` and the module's own raise."""
        if self.package is not None:
            self.package.check()
        self._ask("check", config)

    def check_model(self, config: RegisterConfig) -> None:
        """See that it takes the representations of the model in these settings; raises what the module's own raises."""
        self._ask("check_model", config)

    def _ask(self, name: str, config: RegisterConfig) -> None:
        own = getattr(importlib.import_module(self.module), name, None)
        if own is not None:
            own(config)

    @property
    def deform(self) -> Deform:
        """Its function."""
        return cast("Deform", importlib.import_module(self.module).deform)


_OURS = (
    Backend("sitk", "free-form deformation, compiled", "dsir_metric.register.deformable"),
    Backend("torch", "instance optimisation", "dsir_metric.torch.backend", Package("torch", "torch", "2.5")),
    Backend("lapirn", "registration network, LapIRN", "dsir_metric.register.lapirn"),
    Backend("itk", "ITK v4 by itk-impact", "dsir_metric.itk.backend", Package("itk-impact", "itk-impact", "0.1.6")),
)
_ENGINES = (Backend(e.name, f"on {e.channels} channels", "dsir_metric.register.engine", e) for e in ENGINES.values())
BACKENDS = {b.name: b for b in (*_OURS, *_ENGINES)}
