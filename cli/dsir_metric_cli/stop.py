"""Signals that ask a command to end: it cleans up, as after Ctrl-C, and says so in a line."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import Any

__all__ = ["Stopped", "heed_signals", "received"]

_NAMES = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_CLEANUP_S = 5.0  # that long a second signal does not disturb the cleaning up
_first: list[tuple[signal.Signals, float]] = []


class Stopped(KeyboardInterrupt):
    """A signal came; raised wherever the main thread is."""


def heed_signals() -> None:
    """From now on let SIGTERM and SIGHUP raise `Stopped`; one that is ignored, as by nohup, stays so."""
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)
    show = sys.excepthook

    def show_others(kind: type[BaseException], *error: Any) -> None:
        if not issubclass(kind, Stopped):  # C++ libraries print what a callback raises
            show(kind, *error)

    sys.excepthook = show_others


def received() -> signal.Signals | None:
    """The signal that came, also where a C++ library has made another error of `Stopped` on its way."""
    return _first[0][0] if _first else None


def _stop(number: int, _: FrameType | None) -> None:
    if _first and time.monotonic() - _first[0][1] < _CLEANUP_S:
        return
    _first[:] = [(signal.Signals(number), time.monotonic())]
    raise Stopped
