"""HTTP and gRPC servers around a model, from their start to an end that loses no request.

kserve's own ModelServer listens on every address, has no limits and reads `sys.argv`, so its parts are put together
here.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, SimpleNamespace
from typing import Any

from dsir_metric.errors import ConfigError
from dsir_metric.represent.loading import open_network
from dsir_metric.represent.tiled import TiledNetwork
from dsir_metric.represent.wire import Offer
from dsir_metric.serve.answer import Answerer
from dsir_metric.serve.config import ServeConfig
from dsir_metric.serve.connections import patient
from dsir_metric.serve.gate import Gate, Infer
from dsir_metric.serve.model import Outputs, data_plane
from dsir_metric.serve.parts import kserve_parts
from dsir_metric.serve.request import InferenceRequest
from dsir_metric.serve.room import Room
from dsir_metric.serve.rpc import Calls, admission, servicer

__all__ = ["Endpoints", "serve"]

_log = logging.getLogger("dsir_metric.serve")


@dataclass(frozen=True)
class Endpoints:
    """Where a server that has started is.

    Parameters
    ----------
    http, grpc : str
        Addresses of the model, as clients are given them.
    offer : Offer
    """

    http: str
    grpc: str
    offer: Offer


def serve(config: ServeConfig, on_start: Callable[[Endpoints], None] = lambda _: None) -> None:
    """Serve a model until SIGTERM or SIGINT comes; requests under way are finished first. Call it in the main thread.

    Parameters
    ----------
    config : ServeConfig
    on_start : callable
        Called when requests are taken.

    Raises
    ------
    ModelFileError, MissingDependencyError, ConfigError
        If the model cannot be opened, kserve is not installed, or a port or the certificate cannot be had.
    """
    kserve = kserve_parts()
    _check_certificate(config)
    opened = open_network(config.model, config.device, config.threads)
    if opened.obstacle:
        warnings.warn(opened.obstacle, RuntimeWarning, stacklevel=2)
    network = TiledNetwork(opened)
    answerer = Answerer(network, Offer(network.card, config.max_voxels, config.precision), config.most_cost)
    with _listen(config) as listening, _signals_noted():
        asyncio.run(_run(kserve, config, answerer, listening, on_start))


async def _run(
    kserve: SimpleNamespace,
    config: ServeConfig,
    answerer: Answerer,
    listening: socket.socket,
    on_start: Callable[[Endpoints], None],
) -> None:
    plane = data_plane(kserve, config, answerer)

    async def infer(request: InferenceRequest) -> Outputs:
        outputs, _ = await plane.infer(config.name, request)
        found: Outputs = outputs
        return found

    room, calls = Room(config.room_bytes, config.queue, config.patience_s), Calls()
    http = _http_server(kserve, config, plane, infer, room)
    answers = servicer(kserve, plane, infer, calls, config)
    grpc, grpc_port = _grpc_server(kserve, config, answers, admission(kserve, room, config))
    await grpc.start()
    serving = asyncio.create_task(http.serve(sockets=[listening]))
    while not (http.started or serving.done()):
        await asyncio.sleep(0.01)
    http_port, s = listening.getsockname()[1], "s" if config.secure else ""
    on_start(
        Endpoints(
            f"http{s}://{config.authority(http_port)}/v2/models/{config.name}",
            f"grpc{s}://{config.authority(grpc_port)}/{config.name}",
            answerer.offer,
        )
    )
    while not (http.should_exit or serving.done()):
        await asyncio.sleep(0.05)
    _log.info("stopping; requests under way have %d s", config.grace_s)
    await asyncio.gather(serving, _end(grpc, calls, time.monotonic() + config.grace_s))


async def _end(grpc: Any, calls: Calls, latest: float) -> None:
    """Stop a gRPC server when nothing is lost by it, or at `latest` of `time.monotonic`."""
    await calls.end(latest)
    await grpc.stop(max(0.0, latest - time.monotonic()))


def _http_server(kserve: SimpleNamespace, config: ServeConfig, plane: Any, infer: Infer, room: Room) -> Any:
    """kserve's application behind a gate: health, metadata and metrics."""  # noqa: D403
    extension = kserve.ModelRepositoryExtension(plane.model_registry)
    kserve.RESTServer("kserve.model_server:app", plane, extension, config.http_port).create_application()
    return kserve.Server(
        kserve.Config(
            Gate(kserve.app, infer, room, config),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            http=patient(kserve.AutoHTTPProtocol, config),
            timeout_graceful_shutdown=config.grace_s,
            ssl_certfile=config.certificate,
            ssl_keyfile=config.key,
        )
    )


def _grpc_server(kserve: SimpleNamespace, config: ServeConfig, answers: Any, admission: Any) -> tuple[Any, int]:
    """A gRPC server that is not started yet, and its port."""
    server = kserve.aio.server(
        interceptors=(admission,),
        maximum_concurrent_rpcs=config.max_connections,
        options=[
            ("grpc.max_allowed_incoming_connections", config.max_connections),
            ("grpc.server_handshake_timeout_ms", 1000 * config.patience_s),
            ("grpc.max_connection_idle_ms", 5000 * config.patience_s),  # a client opens another one
            ("grpc.keepalive_time_ms", 1000 * config.patience_s),  # who does not answer a ping in time has gone
            ("grpc.keepalive_timeout_ms", 1000 * config.patience_s),
            ("grpc.max_receive_message_length", config.request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
    )
    kserve.add_GRPCInferenceServiceServicer_to_server(answers, server)
    authority = config.authority(config.grpc_port)
    try:
        if config.certificate is None or config.key is None:
            return server, server.add_insecure_port(authority)
        pair = config.key.read_bytes(), config.certificate.read_bytes()
        return server, server.add_secure_port(authority, kserve.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise ConfigError(
            f"port {config.grpc_port} of {config.host} cannot be had; choose another grpc port"
        ) from error


def _check_certificate(config: ServeConfig) -> None:
    """See that the certificate and its key can be read and belong together."""
    if config.certificate is None or config.key is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.certificate, config.key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"{config.certificate} and {config.key} are no certificate and its key ({error}); give PEM files, the key "
            "without a password"
        ) from error


def _listen(config: ServeConfig) -> socket.socket:
    """A bound socket for HTTP.

    Raises
    ------
    ConfigError
        If the host or the port cannot be had.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((config.host, config.http_port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"port {config.http_port} of {config.host} cannot be had ({error.strerror}); choose another http port"
        ) from error
    return listening


@contextmanager
def _signals_noted() -> Iterator[None]:
    """Let uvicorn's own handlers stop the server, and nothing else happen when it passes the signal on."""

    def ignore(number: int, _: FrameType | None) -> None:
        _log.debug("signal %d", number)

    before = {number: signal.signal(number, ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
