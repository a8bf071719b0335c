"""Connections for HTTP: how many there are, how long one may stay silent, and how long a head may be."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from dsir_metric.serve.config import ServeConfig
from dsir_metric.serve.gate import RETRY_AFTER_S

__all__ = ["patient"]

_MOST_HEAD_BYTES = 1 << 16  # of the first line and the headers, beyond the piece they begin in
_IDLE_S = 1.0  # after which a silent connection may be closed for a new one
_FULL = json.dumps({"error": "busy: every connection is taken; come back later"}).encode()


def patient(protocol: type, config: ServeConfig) -> type:
    """uvicorn's protocol for a connection, which hangs up on a client that does not go on with its request."""  # noqa: D403
    return type("PatientProtocol", (_Patient, protocol), {"limits": config})


class _Patient(asyncio.Protocol):
    """A head must be complete in time and not too long; of a body something must come, and answers be read."""

    limits: ServeConfig
    # uvicorn's
    loop: asyncio.AbstractEventLoop
    transport: Any
    connections: set[Any]
    cycle: Any
    flow: Any

    _heard_s = 0.0
    _in_head, _head_bytes, _lost = False, 0, False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._heard_s = self.loop.time()
        if len(self.connections) > self.limits.max_connections:
            self._make_way()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.cycle is not None and self.cycle.more_body:
            self._heard_s = self.loop.time()
        if self._in_head:
            self._head_bytes += len(data)
        if self._head_bytes > _MOST_HEAD_BYTES:
            self._turn_away(431, b'{"error":"the head of the request is too long"}')
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()  # type: ignore[misc]

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()  # type: ignore[misc]

    def resume_writing(self) -> None:
        self._heard_s = self.loop.time()
        super().resume_writing()

    def idle_s(self) -> float:
        """For how long the client has let us wait."""
        cycle = self.cycle
        ours = cycle is not None and not cycle.response_complete and not self.flow.write_paused
        ours = ours and (self.flow.read_paused or not cycle.more_body)
        if ours:  # it is us who take their time
            self._heard_s = self.loop.time()
        return float(self.loop.time() - self._heard_s)

    def _make_way(self) -> None:
        """Close the connection that has been silent for longest; if all are busy, this one."""
        others = [other for other in self.connections if other is not self and not other.transport.is_closing()]
        if len(others) < self.limits.max_connections:
            return
        idlest = max(others, key=lambda other: other.idle_s())
        if idlest.idle_s() > _IDLE_S:
            idlest.transport.abort()
        else:
            self._turn_away(503, _FULL)

    def _turn_away(self, status: int, reason: bytes) -> None:
        head = (
            f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(reason)}\r\n"
            f"retry-after: {RETRY_AFTER_S}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + reason)
        self.transport.close()

    def _watch(self) -> None:
        if self._lost:
            return
        if self.idle_s() > self.limits.patience_s:
            self.transport.abort()
        else:
            self.loop.call_later(self.limits.patience_s / 4, self._watch)
