"""Signals that ask a command to end: it cleans up and says so in a line."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Any

__all__ = ["Stopped", "heed_signals", "leave_quietly", "received"]

_NAMES = ("SIGTERM", "SIGHUP", "SIGINT")  # Windows has no SIGHUP
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
_CLEANUP_S = 5.0  # that long a second signal does not disturb the cleaning up
_AGAIN_S = 0.05
_first: list[tuple[signal.Signals, float]] = []


class Stopped(KeyboardInterrupt):
    """A signal came; raised wherever the main thread is."""


def heed_signals() -> None:
    """From now on let SIGTERM, SIGHUP and SIGINT raise `Stopped`; one that is ignored, as by nohup, stays so."""
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in _DEFAULTS:
            signal.signal(number, _stop)
    show, show_ignored = sys.excepthook, sys.unraisablehook

    def show_others(kind: type[BaseException], *error: Any) -> None:
        if not issubclass(kind, Stopped):  # C++ libraries print what a callback raises
            show(kind, *error)

    def raise_again(ignored: Any) -> None:
        if not issubclass(ignored.exc_type, Stopped):
            show_ignored(ignored)
        elif hasattr(signal, "setitimer"):  # it came where Python lets nothing be raised
            signal.signal(signal.SIGALRM, _raise)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)

    sys.excepthook, sys.unraisablehook = show_others, raise_again


def leave_quietly() -> None:
    """After a signal, show nothing more: libraries complain of what was cut short until the process is gone."""
    if _first:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def received() -> signal.Signals | None:
    """The signal that came, also where a C++ library has made another error of `Stopped` on its way."""
    return _first[0][0] if _first else None


def _stop(number: int, _: FrameType | None) -> None:
    if _first and time.monotonic() - _first[0][1] < _CLEANUP_S:
        return
    _first[:] = [(signal.Signals(number), time.monotonic())]
    raise Stopped


def _raise(*_: object) -> None:
    raise Stopped
