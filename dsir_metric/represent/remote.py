"""The network on an inference server: the same tiles, sent instead of computed.

How a server is reached is read from the environment, so that it holds wherever a model is named, and no secret stands
on a command line or in a result:

DSIR_METRIC_TOKEN
    Bearer token. It is sent over TLS or to this machine only.
DSIR_METRIC_CA_FILE
    PEM file of the authorities to trust instead of the system's.
DSIR_METRIC_TIMEOUT
    Seconds within which a request must be answered; 300.
DSIR_METRIC_RETRIES
    How often a request is repeated when the server is down or busy or the connection breaks; 6.
DSIR_METRIC_IN_FLIGHT
    Tiles that are under way at the same time; 4.
"""

from __future__ import annotations

import os
import random
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dsir_metric.bounds import Range, quoted
from dsir_metric.errors import ConfigError, RemoteError
from dsir_metric.io import Boxes
from dsir_metric.represent.card import ModelCard
from dsir_metric.represent.plan import PROCESS_BYTES, Plan
from dsir_metric.represent.tiling import Box, Shape, Tile, core_of, cropped, tiles
from dsir_metric.represent.transport import (
    Access,
    Address,
    Failure,
    Signature,
    Transport,
    is_remote,
    one_line,
    open_transport,
)
from dsir_metric.represent.wire import CARD, CROP, DESCRIPTORS, IMAGE, STRIDE, WINDOW, Offer

__all__ = ["RemoteConfig", "RemoteNetwork", "is_remote"]

Answer = TypeVar("Answer")
_LONGEST_WAIT_S = 16.0
_BYTES_PER_NUMBER = 8  # of a tile that is sent and answered: what came, and a copy


@dataclass(frozen=True)
class RemoteConfig:
    """How to deal with a server.

    Parameters
    ----------
    access : Access
    retries : int
        How often a request is repeated after what may pass.
    backoff_s : float
        Wait before the first repetition; twice as long before each further one, and up to half less by chance.
    in_flight : int
        Tiles under way at the same time.
    """

    access: Access = field(default_factory=Access)
    retries: int = 6
    backoff_s: float = 0.5
    in_flight: int = 4

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RemoteConfig:
        """Settings of the environment variables of this module.

        Raises
        ------
        ConfigError
            If one is no number or out of range, the token has characters that no header may have, or the authorities
            cannot be read.
        """
        found = os.environ if environment is None else environment
        token = (found.get("DSIR_METRIC_TOKEN") or "").strip() or None
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ConfigError("DSIR_METRIC_TOKEN has characters that a token cannot have; set it again")
        ca_file = found.get("DSIR_METRIC_CA_FILE") or None
        _check_authorities(ca_file)
        return cls(
            Access(_number(found, "DSIR_METRIC_TIMEOUT", 300.0, Range(0.001, 604_800)), token, ca_file),
            retries=int(_number(found, "DSIR_METRIC_RETRIES", 6, Range(0, 1000))),
            in_flight=int(_number(found, "DSIR_METRIC_IN_FLIGHT", 4, Range(1, 256))),
        )


class RemoteNetwork:
    """A model on a server that takes a volume of any size.

    Parameters
    ----------
    address : str
        http://HOST:PORT/v2/models/NAME or grpc://HOST:PORT/NAME, or https and grpcs; /versions/N at the end for a
        certain version.
    tile : int or None
        Edge of a tile's core in voxels. None takes the largest that the server takes.
    config : RemoteConfig, optional
        Read from the environment by default.

    Raises
    ------
    ConfigError
        If `address` is none, the environment is out of range, or a token would go out unencrypted.
    MissingDependencyError
        If tritonclient is not installed.
    RemoteError
        If the server does not answer, or has another kind of model.
    ModelFileError
        If the card of the model is damaged or has another format.
    """

    def __init__(self, address: str, tile: int | None = None, config: RemoteConfig | None = None) -> None:
        self._address = Address.parse(address)
        self._config = RemoteConfig.from_environment() if config is None else config
        if self._config.access.token is not None and not (self._address.secure or self._address.loopback):
            raise ConfigError(
                f"{address}: the token in DSIR_METRIC_TOKEN would go out unencrypted; use https or grpcs, or unset it"
            )
        self._tile = tile
        self._transport = open_transport(self._address, self._config.access)
        self._check(self._ask(self._transport.signature))
        self._told = self._card_bytes()
        self.offer = Offer.from_bytes(self._told, address)

    @property
    def card(self) -> ModelCard:
        """Card of the model."""
        return self.offer.card

    @property
    def provider(self) -> str:
        """Address of the model, and the precision of its answers."""
        return f"{self._address.text}, {self.offer.precision}"

    def describe(
        self,
        scaled: NDArray[np.float32],
        out: Boxes,
        crop: Box | None = None,
        *,
        held: int = 0,
        scratch: Path | None = None,
    ) -> None:
        """Write the descriptors of a volume (z, y, x) in [0, 1], or of a `crop` of it, into `out` (z, y, x, channels).

        `held` and `scratch` are of no effect: the server has the feature map.

        Raises
        ------
        RemoteError
            If a tile was not answered after all retries, or with something else than was asked for.
        ConfigError
            If the tiles are larger than what the server takes.
        """
        pieces = self._pieces(scaled.shape)
        if crop is not None:
            pieces = list(cropped(pieces, crop))
        halt = threading.Event()

        def fetch(tile: Tile) -> None:
            out[tile.core] = self._ask(lambda: self._infer(scaled, tile), halt)

        try:
            _at_once(fetch, pieces, self._config.in_flight, halt, self._transport.leave)
        finally:
            halt.set()

    def within(self, memory_bytes: int | None) -> RemoteNetwork:
        """The same: the memory is the server's."""
        return self

    def plan(self, shape: Shape, held: int = 0, *, streamed: bool = False) -> Plan:
        """The tiles that are sent, some of them at a time; nothing else depends on `held` and `streamed`."""
        pieces = tuple(self._pieces(shape))
        answer = _BYTES_PER_NUMBER * (1 + self.card.channels) * max(tile.voxels for tile in pieces)
        return Plan(pieces, (), min(self._config.in_flight, len(pieces)) * answer, 0, scratch=False)

    def least_bytes(self, shape: Shape, held: int) -> int:
        """Memory with which a volume (z, y, x) can be described; it does not depend on how much there is."""
        return PROCESS_BYTES + held + self.plan(shape).tile_bytes

    def _pieces(self, shape: Shape) -> list[Tile]:
        """Tiles of a volume, each with the halo of both halves of the network, none larger than the server takes."""
        card, most = self.card, self.offer.max_voxels
        halo = -(-(card.halo + card.head_halo) // card.multiple) * card.multiple
        pieces = list(tiles(shape, core_of(shape, self._tile, halo, card.multiple, most, padded=True), halo))
        largest = max(prod(s.stop - s.start for s in tile.source) for tile in pieces)
        if largest > most:
            hint = "raise the server's --max-voxels" if self._tile is None else "choose smaller tiles"
            raise ConfigError(
                f"{self._address.text}: takes {most} voxels in a request; a tile and its halo of {halo} have "
                f"{largest}: {hint}"
            )
        return pieces

    def _infer(self, scaled: NDArray[np.float32], tile: Tile) -> NDArray[Any]:
        """Descriptors (z, y, x, channels) of the core of a tile. The server is told that 0 is black and 1 is white."""
        image = np.ascontiguousarray(scaled[tile.source])[None, None]
        crop = [[s.start for s in tile.inner], [s.stop for s in tile.inner]]
        answer = self._transport.infer(_request(image, crop), [DESCRIPTORS, CARD])
        if answer[CARD].tobytes() != self._told:
            raise Failure("has another model now than a moment ago; start again")
        came = answer[DESCRIPTORS]
        expected = (1, *(s.stop - s.start for s in tile.inner), self.card.channels)
        kind = {"fp16": "float16", "fp32": "float32"}[self.offer.precision]
        if came.shape != expected or came.dtype != kind:
            raise Failure(f"answers {came.dtype} {came.shape} where {kind} {expected} was asked for")
        if not np.isfinite(came).all():
            raise Failure("answers with NaN or infinity; look at the server's precision, or export the model again")
        values: NDArray[Any] = came[0]
        return values

    def _card_bytes(self) -> bytes:
        """What the server says about its model; one voxel is sent along, for a graph wants its inputs."""
        request = _request(np.zeros((1, 1, 1, 1, 1), np.float32), [[0] * 3, [1] * 3])
        try:
            return self._ask(lambda: self._transport.infer(request, [CARD]))[CARD].tobytes()
        except RemoteError:
            if not self._address.scheme.startswith("grpc") and _understands_text(self._transport, request):
                raise RemoteError(
                    f"{self._address.text}: cannot do binary tensors over HTTP; give its gRPC address, such as "
                    f"grpc://HOST:8001/{self._address.model}"
                ) from None
            raise

    def _check(self, found: Signature) -> None:
        """See that the model takes and gives what this client sends and wants."""
        expected = {t.name: (t.datatype, t.shape) for t in (IMAGE, WINDOW, STRIDE, CROP)}
        wrong = [name for name, tensor in expected.items() if found.get(name) != tensor]
        wrong += [name for name in (DESCRIPTORS, CARD) if name not in found]
        if wrong:
            has = ", ".join(f"{name} {kind} {list(sizes[:6])}" for name, (kind, sizes) in found.items()) or "no tensor"
            raise RemoteError(
                f"{self._address.text}: is no model of dsir-metric: {', '.join(wrong)} is not as expected, it has "
                f"{one_line(has)}; make it with `dsir-metric export --triton`"
            )

    def _ask(self, call: Callable[[], Answer], halt: threading.Event | None = None) -> Answer:
        """Ask again, later and later, while that may help and nothing else has failed."""
        halt = halt or threading.Event()
        attempt = 0
        while True:
            try:
                return call()
            except Failure as failure:
                delay = min(self._config.backoff_s * 2**attempt, _LONGEST_WAIT_S) * random.uniform(0.5, 1)
                hopeless = not failure.worth_retrying or attempt >= self._config.retries
                if hopeless or halt.wait(delay):
                    times = f", {attempt + 1} times" if attempt else ""
                    reason = self._config.access.without_token(f"{failure}{times}")
                    raise RemoteError(f"{self._address.text}: {reason}") from failure
            attempt += 1


def _at_once(
    fetch: Callable[[Tile], None],
    pieces: Sequence[Tile],
    most: int,
    halt: threading.Event,
    leave: Callable[[], None],
) -> None:
    """Fetch every tile, `most` at the same time, until an error or `halt` ends it; a thread ends with `leave`.

    The threads are daemons: neither that error nor Ctrl-C has to wait for a server that does not answer.
    """
    waiting: SimpleQueue[Tile] = SimpleQueue()
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    for tile in pieces:
        waiting.put(tile)

    def work() -> None:
        failed = None
        try:
            while not halt.is_set():
                fetch(waiting.get_nowait())
        except Empty:
            pass
        except BaseException as error:
            failed = error
        try:
            leave()
        finally:
            ended.put(failed)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(most, len(pieces)))]
    for thread in threads:
        thread.start()
    for _ in threads:
        error = ended.get()
        if error is not None:
            raise error


def _request(image: NDArray[np.float32], crop: list[list[int]]) -> dict[str, NDArray[Any]]:
    return {
        IMAGE.name: image,
        WINDOW.name: np.array([0.0, 1.0]),
        STRIDE.name: np.array([1], np.int64),
        CROP.name: np.array(crop, np.int64),
    }


def _understands_text(transport: Transport, request: dict[str, NDArray[Any]]) -> bool:
    """Whether the request that failed goes well when its numbers are written out."""
    try:
        return bool(transport.infer(request, [CARD], binary=False)[CARD].size)
    except Failure:
        return False


def _check_authorities(ca_file: str | None) -> None:
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or str(error)
        raise ConfigError(
            f"DSIR_METRIC_CA_FILE: {ca_file!r} cannot be read ({reason}); give a PEM file of certificates"
        ) from error


def _number(found: Mapping[str, str], name: str, default: float, limits: Range) -> float:
    text = found.get(name)
    try:
        value = default if not text else float(text)
    except ValueError:
        value = float("nan")
    if value not in limits:
        raise ConfigError(f"{name} must be a number {limits}, got {quoted(text)}")
    return value
