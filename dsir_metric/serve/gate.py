"""HTTP before kserve: what is refused unread, and requests for descriptors, which are read as far as there is room."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

from dsir_metric.errors import DsirError, ModelFileError
from dsir_metric.serve.answer import Abandoned
from dsir_metric.serve.config import VERSION, ServeConfig
from dsir_metric.serve.limit import Full
from dsir_metric.serve.model import Outputs
from dsir_metric.serve.request import InferenceRequest, quoted
from dsir_metric.serve.room import Held, Late, Room
from dsir_metric.serve.text_protocol import decode, encode, json_bytes

__all__ = ["REPOSITORY_STAYS", "RETRY_AFTER_S", "Gate", "Infer", "wrong_version"]

REPOSITORY_STAYS = "this server has one model, which stays"
RETRY_AFTER_S = 2  # a guess: a tile takes seconds
_GRACE_S = 4.0  # for 256 KiB, when others wait for the room
_LENGTH = b"inference-header-content-length"
_PIECE_BYTES = 1 << 18  # of an answer, written at a time; a client that reads none of it is noticed
_DRAINED = 4  # times the longest request: what is read of one that is refused, so that its client reads why
_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<rest>/.*)?")
_KNOWN = re.compile(r"/|/metrics|/v2|/v2/.*")

_log = logging.getLogger("dsir_metric.serve")
Scope = dict[str, Any]
Application = Callable[[Scope, Any, Any], Awaitable[None]]
Infer = Callable[[InferenceRequest], Awaitable[Outputs]]
Result = TypeVar("Result")


class _Gone(Exception):  # noqa: N818  # nothing is wrong
    """The client has hung up."""


class Gate:
    """Before the HTTP application.

    Parameters
    ----------
    application : ASGI application
        Answers all but requests for descriptors.
    infer : callable
        Answers those.
    room : Room
        For what is read and answered.
    config : ServeConfig
    """

    def __init__(self, application: Application, infer: Infer, room: Room, config: ServeConfig) -> None:
        self._application, self._infer, self._room = application, infer, room
        self._most_bytes = config.request_bytes
        self._name = config.name

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer what is refused and requests for descriptors, and pass on the rest without its version."""
        headers = dict(scope["headers"])
        refused = self._refusal(scope, headers)
        if refused is not None:
            await self._drain(receive, headers)
            await _say(send, *refused, close=True)
            return
        found = _MODEL.fullmatch(scope["path"])
        if found and found["rest"] == "/infer" and scope["method"] == "POST":
            await self._answer(receive, send, headers)
            return
        path = f"/v2/models/{found['name']}{found['rest'] or ''}" if found else scope["path"]
        await self._application({**scope, "path": path, "raw_path": path.encode()}, receive, send)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Status and reason."""
        if b"transfer-encoding" in headers:
            return 411, "a request must say how long it is (content-length)"
        return self._wrong_path(scope) or self._wrong_length(scope, headers)

    def _wrong_path(self, scope: Scope) -> tuple[int, str] | None:
        path = scope["path"]
        if path.startswith("/v2/repository"):
            return 404, REPOSITORY_STAYS
        if path.startswith("/v1/"):
            return 400, "only the Open Inference Protocol, /v2, is spoken here"
        if not _KNOWN.fullmatch(path):
            return 404, f"{quoted(path)} is not here; the protocol is at /v2, metrics are at /metrics"
        found = _MODEL.fullmatch(path)
        if found and found["name"] != self._name:
            return 404, f"there is no model {quoted(found['name'])}; this server has {self._name}"
        if found and found["version"] not in (None, VERSION):
            return 404, wrong_version(found["version"])
        return None

    def _wrong_length(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        length = headers.get(b"content-length")
        if length is None:
            return (411, "a request must say how long it is (content-length)") if scope["method"] == "POST" else None
        if not _number(length):
            return 400, "content-length must be a number of bytes"
        if int(length) > self._most_bytes:
            return 413, f"the request has {int(length)} bytes; this server takes {self._most_bytes}: send tiles"
        return None

    async def _drain(self, receive: Any, headers: dict[bytes, bytes]) -> None:
        """Let a client send the rest of a request: who is still sending would not read why it is refused."""
        length = headers.get(b"content-length", b"")
        if _number(length) and int(length) <= _DRAINED * self._most_bytes and b"expect" not in headers:
            while (await receive()).get("more_body"):
                pass

    async def _answer(self, receive: Any, send: Any, headers: dict[bytes, bytes]) -> None:
        """Answer a request for descriptors."""
        unread = True
        try:
            async with self._room.share(int(headers[b"content-length"]), _GRACE_S) as held:
                async with held.coming():
                    body = await _read(receive, held)
                unread = False
                length, parts = await _unless_gone(self._work(body, headers), receive)
                held.size += sum(map(len, parts))
                binary = {} if length is None else {_LENGTH.decode(): str(length)}
                kind = "application/json" if length is None else "application/octet-stream"
                await _send(send, 200, parts, {"content-type": kind, **binary})
        except (_Gone, Abandoned):
            pass  # nobody is there to be told
        except (Full, Late, DsirError) as error:
            if unread and not isinstance(error, Late):
                await self._drain(receive, headers)
            status = _status(error)
            await _say(send, status, str(error), close=unread)

    async def _work(self, body: memoryview, headers: dict[bytes, bytes]) -> tuple[int | None, list[Any]]:
        """The answer to the body of a request."""
        said = headers.get(_LENGTH)
        length = json_bytes(None if said is None else said.decode("latin-1"), len(body))
        request = await asyncio.to_thread(decode, body, length)
        outputs = await self._infer(request)
        return await asyncio.to_thread(encode, request, self._name, outputs)


def wrong_version(version: str) -> str:
    """Reason for refusing one."""
    return f"version {quoted(version)[1:-1]} is not here; there is version {VERSION}"


def _number(value: bytes) -> bool:
    return value.isdigit() and len(value) < 16


def _status(error: Exception) -> int:
    if isinstance(error, ModelFileError):
        _log.error("%s", error)
        return 500
    return 503 if isinstance(error, Full) else 408 if isinstance(error, Late) else 400


async def _read(receive: Any, held: Held) -> memoryview:
    """The body of a request."""
    body, at = np.empty(held.size, np.uint8).data, 0  # pages that are not written take no memory
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        piece = message["body"]
        body[at : at + len(piece)] = piece
        at += len(piece)
        held.progress(len(piece))
        if not message["more_body"]:
            return body[:at]


async def _unless_gone(work: Coroutine[Any, Any, Result], receive: Any) -> Result:
    """Result of `work`, which is cancelled when the client hangs up.

    Raises
    ------
    _Gone
        If it does.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_departure(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Gone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _departure(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _say(send: Any, status: int, reason: str, *, close: bool) -> None:
    """Say why a request is not answered."""
    fields = {"content-type": "application/json"}
    fields |= {"connection": "close"} if close else {}
    fields |= {"retry-after": str(RETRY_AFTER_S)} if status in (408, 503) else {}
    await _send(send, status, [json.dumps({"error": reason}).encode()], fields)


async def _send(send: Any, status: int, parts: list[Any], fields: dict[str, str]) -> None:
    """Send an answer, piece by piece as the client reads it."""
    fields = {"content-length": str(sum(map(len, parts))), **fields}
    headers = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in parts:
        for start in range(0, len(part), _PIECE_BYTES):
            piece = bytes(part[start : start + _PIECE_BYTES])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
