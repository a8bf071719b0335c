"""gRPC before kserve: messages that are read as far as there is room, and an end that loses no request."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

from dsir_metric.errors import DataError, DsirError, ModelFileError
from dsir_metric.serve.binary_protocol import decode, encode, parse, split
from dsir_metric.serve.config import VERSION, ServeConfig
from dsir_metric.serve.gate import REPOSITORY_STAYS, Infer, wrong_version
from dsir_metric.serve.limit import Full
from dsir_metric.serve.request import quoted
from dsir_metric.serve.room import Late, Room

__all__ = ["Calls", "admission", "servicer"]

_READ_S = 2.0  # what an answer needs to be read by its client, at the end
_GRACE_S = 20.0  # for a whole message, whose progress is not seen, when others wait for the room
_LEAST_RATE = 1 << 18  # bytes a second, of a message or an answer, beside the patience
_MOST_OTHER_BYTES = 1 << 16  # of a message that asks for anything but descriptors
_UNREAD = ("ServerLive", "ServerReady", "ServerMetadata")  # nothing is in their requests
_INFER = "ModelInfer"

_log = logging.getLogger("dsir_metric.serve")


class Absent(Exception):  # noqa: N818  # as seen from here
    """There is no such model, version or service."""


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


def admission(kserve: SimpleNamespace, room: Room, config: ServeConfig) -> Any:
    """An interceptor that lets a message be read when there is room for the longest one, and parses it itself.

    The handlers are declared to take streams: to a client that is the same, but the message is not read before it is
    asked for.
    """

    class Admission(kserve.aio.ServerInterceptor):  # type: ignore[misc, name-defined]
        """The outermost interceptor."""

        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            handler = await continuation(details)
            if handler is None or handler.unary_unary is None:
                return handler
            method = details.method.rpartition("/")[2]

            async def behave(requests: AsyncIterator[bytes], context: Any) -> Any:
                with _told_as_status(kserve) as refused:
                    if method in _UNREAD:
                        return await handler.unary_unary(_parsed(kserve, method, b""), context)
                    return await _answered(kserve, method, handler.unary_unary, requests, context, room, config)
                return await context.abort(*refused)

            serializer = None if method == _INFER else handler.response_serializer
            return kserve.stream_unary_rpc_method_handler(behave, None, serializer)

    return Admission()


@contextmanager
def _told_as_status(kserve: SimpleNamespace) -> Iterator[list[Any]]:
    """Catch what a client is told about; then the list has gRPC's code and the reason."""
    refused: list[Any] = []
    try:
        yield refused
    except (Full, Late) as error:
        refused += kserve.StatusCode.UNAVAILABLE, str(error)
    except Absent as error:
        refused += kserve.StatusCode.NOT_FOUND, str(error)
    except ModelFileError as error:
        _log.error("%s", error)
        refused += kserve.StatusCode.INTERNAL, str(error)
    except DsirError as error:
        refused += kserve.StatusCode.INVALID_ARGUMENT, str(error)


async def _answered(
    kserve: SimpleNamespace,
    method: str,
    answer: Callable[[Any, Any], Awaitable[Any]],
    requests: AsyncIterator[bytes],
    context: Any,
    room: Room,
    config: ServeConfig,
) -> Any:
    """The answer to the one message of a call, which takes its room until the call ends.

    Raises
    ------
    Full, Late
        If there is no room, or the message does not come.
    DsirError
        If the request makes no sense.
    """
    held = await room.enter(config.request_bytes, _GRACE_S)
    call = cast("asyncio.Task[Any]", asyncio.current_task())  # gRPC's, which ends when the answer has been sent
    call.add_done_callback(lambda _: room.leave(held))
    async with held.coming(config.patience_s + config.request_bytes / _LEAST_RATE):
        message = await anext(aiter(requests), None)
    if message is None:
        raise DataError("the request has no message; send one")
    held.size = len(message)
    given = await asyncio.to_thread(_parsed, kserve, method, message)
    del message
    found = await answer(given, context)
    if isinstance(found, bytes):
        held.size += len(found)
        call.get_loop().call_later(config.patience_s + len(found) / _LEAST_RATE, call.cancel)  # nobody reads it then
    return found


def _parsed(kserve: SimpleNamespace, method: str, message: bytes) -> Any:
    """What the message of a call says; with the bytes of its tensors, where it asks for descriptors."""
    message_class = getattr(kserve.grpc_predict_v2_pb2, f"{method}Request")
    if method == _INFER:
        head, contents = split(message)
        return parse(message_class, kserve.DecodeError, head), contents
    if len(message) > _MOST_OTHER_BYTES:
        raise DataError(f"the request must have {_MOST_OTHER_BYTES} bytes or fewer, got {len(message)}")
    return parse(message_class, kserve.DecodeError, message)


def servicer(kserve: SimpleNamespace, plane: Any, infer: Infer, calls: Calls, config: ServeConfig) -> Any:
    """kserve's answers to gRPC requests, but for descriptors, versions, the repository, and at the end."""  # noqa: D403

    class Servicer(kserve.InferenceServicer):  # type: ignore[misc, name-defined]
        """Sizes are limited before."""

        async def ModelInfer(self, request: Any, context: Any) -> bytes:
            request, contents = request
            _check_model(config.name, request.model_name, request.model_version)
            if calls.ending:
                raise Full("this server is stopping")
            with calls.one_more():
                given = await asyncio.to_thread(decode, request, contents)
                return await asyncio.to_thread(encode, kserve, given, config.name, await infer(given))

        async def ModelReady(self, request: Any, context: Any) -> Any:
            _check_model(config.name, request.name, request.version)
            return await super().ModelReady(request, context)

        async def ModelMetadata(self, request: Any, context: Any) -> Any:
            _check_model(config.name, request.name, request.version)
            return await super().ModelMetadata(request, context)

        async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
            raise Absent(REPOSITORY_STAYS)

        async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
            raise Absent(REPOSITORY_STAYS)

    return Servicer(plane, kserve.ModelRepositoryExtension(plane.model_registry))


def _check_model(ours: str, name: str, version: str) -> None:
    """See that a request is for the one model there is."""
    if name != ours:
        raise Absent(f"there is no model {quoted(name)}; this server has {ours}")
    if version not in ("", VERSION):
        raise Absent(wrong_version(version))
