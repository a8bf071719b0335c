"""Throw hostile input at a function in a process of its own: a traceback, a signal or a hang is a finding.

`DSIR_FUZZ=50` makes every fuzz test fifty times as long and draws new inputs; without it they are always the same.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from hypothesis import HealthCheck, settings

from dsir_metric.errors import DsirError

__all__ = ["Victim", "fuzz"]

_FACTOR = os.environ.get("DSIR_FUZZ")


def fuzz(examples: int) -> settings:
    """Hypothesis settings of a fuzz test: `examples` inputs in CI, `DSIR_FUZZ` times as many on demand."""
    return settings(
        max_examples=round(examples * float(_FACTOR or 1)),
        derandomize=_FACTOR is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Victim:
    """A process that calls a function again and again, replaced when it dies or hangs; a context manager.

    Parameters
    ----------
    function : callable
        Importable by name. It may return or raise a `DsirError` of one line; anything else is a finding.
    timeout_s : float
        A call that takes longer hangs.
    memory_bytes : int, optional
        Limit on the address space, so that an allocation that a header promises is a finding too.
    """

    def __init__(self, function: Callable[..., object], timeout_s: float = 20.0, memory_bytes: int | None = None):
        self._function, self._timeout_s, self._memory_bytes = function, timeout_s, memory_bytes
        self._process: Any = None

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def finding(self, *arguments: object) -> str | None:
        """Call the function; what went wrong, or None."""
        if self._process is None:
            self._start()
        self._connection.send(arguments)
        if not self._connection.poll(self._timeout_s):
            self._end()
            return f"hangs: no answer in {self._timeout_s:g} s"
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self._end()
            return f"the process ends with exit code {code}"

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._function, self._memory_bytes), daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(120):
            raise RuntimeError("the process under test does not start")
        self._connection.recv()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def _serve(connection: Connection, function: Callable[..., object], memory_bytes: int | None) -> None:
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    connection.send(None)
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        connection.send(_outcome(function, arguments))


def _outcome(function: Callable[..., object], arguments: tuple[object, ...]) -> str | None:
    try:
        function(*arguments)
    except DsirError as error:
        return None if len(str(error).splitlines()) == 1 else f"the message is not one line: {str(error)!r}"
    except BaseException:
        return traceback.format_exc()
    return None
