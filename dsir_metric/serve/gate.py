"""What a request passes before kserve: patience, the largest size, the one version there is, and no repository."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from dsir_metric.serve.config import VERSION, ServeConfig

__all__ = ["Calls", "Gate", "patient", "servicer"]

_STAYS = "this server has one model, which stays"
_READ_S = 2.0  # what an answer needs to be read by its client, at the end
Scope = dict[str, Any]
Application = Callable[[Scope, Any, Any], Awaitable[None]]


class Gate:
    """Before the HTTP application.

    Parameters
    ----------
    application : ASGI application
    config : ServeConfig
    """

    def __init__(self, application: Application, config: ServeConfig) -> None:
        self._application = application
        self._most_bytes = config.request_bytes
        self._versions = re.compile(rf"(/v2/models/{re.escape(config.name)})/versions/([^/]+)")

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer what is refused, and pass on the rest without its version."""
        refused = self._refusal(scope)
        if refused is None:
            path = self._versions.sub(r"\1", scope["path"])
            await self._application({**scope, "path": path, "raw_path": path.encode()}, receive, send)
            return
        status, reason = refused
        while status == 413 and (await receive()).get("more_body"):
            pass  # who is still sending would not read why it is refused
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": reason}).encode()})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason."""
        found = self._versions.match(scope["path"])
        if found and found[2] != VERSION:
            return 404, _absent(found[2])
        if scope["path"].startswith("/v2/repository"):
            return 404, _STAYS
        if scope["method"] == "POST":
            length = dict(scope["headers"]).get(b"content-length", b"")
            if not length.isdigit():
                return 411, "a request must say how long it is (content-length)"
            if int(length) > self._most_bytes:
                return 413, f"the request has {int(length)} bytes; this server takes {self._most_bytes}: send tiles"
        return None


def patient(protocol: Any, patience_s: float) -> Any:
    """uvicorn's protocol for a connection, which hangs up on a client that does not go on with its request."""  # noqa: D403

    class Patient(protocol):  # type: ignore[misc]
        """A head must be complete in time; of a body something must come."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._heard_s = self.loop.time()
            self._watch()

        def data_received(self, data: bytes) -> None:
            if self.cycle is not None and self.cycle.more_body:
                self._heard_s = self.loop.time()
            super().data_received(data)

        def _watch(self) -> None:
            now = self.loop.time()
            if self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete):
                self._heard_s = now  # it is us who take their time
            if now - self._heard_s > patience_s:
                self.transport.abort()
            if not self.transport.is_closing():
                self.loop.call_later(patience_s / 4, self._watch)

    return Patient


class Calls:
    """The gRPC requests that are being answered, until all have been.

    Attributes
    ----------
    ending : bool
        No further ones are taken.
    """

    def __init__(self) -> None:
        self.ending = False
        self._under_way = 0
        self._answered_s = -math.inf

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """While it is answered."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._answered_s = time.monotonic()

    async def end(self, latest: float) -> None:
        """Take no more, and wait until those that came have been answered and the answers read.

        A gRPC server that is told to stop closes a connection with its last answer still in the buffers of the kernel,
        which drops that if the client says anything more; and clients do, to have the rest of it sent.

        Parameters
        ----------
        latest : float
            When to wait no longer, in seconds of `time.monotonic`.
        """
        self.ending = True
        while (now := time.monotonic()) < latest and (self._under_way or now < self._answered_s + _READ_S):
            await asyncio.sleep(0.05)


def servicer(kserve: SimpleNamespace, plane: Any, calls: Calls) -> Any:
    """kserve's answers to gRPC requests, but for versions, for the repository, and at the end."""  # noqa: D403

    def refuse(reason: str) -> None:
        absent = kserve.ModelNotFound()
        absent.reason = reason
        raise absent

    def check(version: str) -> None:
        if version not in ("", VERSION):
            refuse(_absent(version))

    class Servicer(kserve.InferenceServicer):  # type: ignore[misc, name-defined]
        """Size is limited by the gRPC server itself."""

        async def ModelInfer(self, request: Any, context: Any) -> Any:
            check(request.model_version)
            if calls.ending:
                ending = kserve.ServerNotReady()
                ending.reason = "this server is stopping"
                raise ending
            with calls.one_more():
                return await super().ModelInfer(request, context)

        async def ModelMetadata(self, request: Any, context: Any) -> Any:
            check(request.version)
            return await super().ModelMetadata(request, context)

        async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
            refuse(_STAYS)

        async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
            refuse(_STAYS)

    return Servicer(plane, kserve.ModelRepositoryExtension(plane.model_registry))


def _absent(version: str) -> str:
    return f"version {version} is not here; there is version {VERSION}"
