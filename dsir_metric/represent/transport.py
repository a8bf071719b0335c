"""Two ways to a model on an inference server: HTTP and gRPC of the Open Inference Protocol, through tritonclient.

Every request has a connection of its own, so that any number of threads can ask, and one that broke is not used again.
"""

from __future__ import annotations

import importlib
import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

import numpy as np
from numpy.typing import NDArray

from dsir_metric.errors import ConfigError, MissingDependencyError
from dsir_metric.packages import Package
from dsir_metric.represent.wire import MODEL_NAME

__all__ = ["Address", "Failure", "Grpc", "Http", "Signature", "Transport", "is_remote", "one_line", "open_transport"]

Arrays = dict[str, NDArray[Any]]
Signature = dict[str, tuple[str, tuple[int, ...]]]  # datatype and sizes of inputs and outputs, by name

_PACKAGE = Package("remote", "tritonclient", "2.50")
_CONNECT_S = 10.0
_HTTP_PATH = re.compile(r"(?P<base>(?:/[^/]+)*)/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/?")
_GRPC_PATH = re.compile(r"(?P<base>)/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/?")
_SCHEMES = {"http": _HTTP_PATH, "https": _HTTP_PATH, "grpc": _GRPC_PATH, "grpcs": _GRPC_PATH}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MOST_BYTES = 2**31 - 1  # of a message, says protobuf
_BUSY_HTTP = ("408", "429", "502", "503", "504")
_BUSY_GRPC = ("UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED")
_BUSY = "cannot be reached or is busy"
_STATUS = {
    "401": "wants a valid token; put it into the environment variable DSIR_METRIC_TOKEN",
    "403": "refuses the token in the environment variable DSIR_METRIC_TOKEN",
    "404": "has no such model or version",
    "413": "takes no request of this size; choose smaller tiles",
}
_GATEWAY = re.compile(r"Received http2 header with status: (\d+)")  # gRPC's words for an answer that is none
_PAGE = re.compile(r"<title>(.*?)</title>", re.DOTALL | re.IGNORECASE)  # a gateway's, where JSON was expected
_CODE = {"UNAUTHENTICATED": "401", "PERMISSION_DENIED": "403", "NOT_FOUND": "404"}


class Failure(Exception):  # noqa: N818  # it is never shown as such
    """One request that went wrong.

    Parameters
    ----------
    reason : str
        One line, without the address.
    worth_retrying : bool
        Whether the same request may go well in a moment.
    """

    def __init__(self, reason: str, worth_retrying: bool = False) -> None:
        super().__init__(one_line(reason))
        self.worth_retrying = worth_retrying


@dataclass(frozen=True)
class Address:
    """Where a model is served.

    Parameters
    ----------
    text : str
        As the user gave it.
    scheme : str
        "http", "https", "grpc" or "grpcs".
    server : str
        Host, port and, of HTTP, what comes before /v2.
    model, version : str
        The version is empty where the server may choose.
    """

    text: str
    scheme: str
    server: str
    model: str
    version: str = ""

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("https", "grpcs")

    @property
    def loopback(self) -> bool:
        """Whether the server is this machine."""
        return urlsplit(f"//{self.server}").hostname in _LOOPBACK

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises
        ------
        ConfigError
            If it is none of a model, or has a password in it.
        """
        parts = _split(text)
        path = _SCHEMES[parts.scheme].fullmatch(parts.path) if parts.scheme in _SCHEMES else None
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ConfigError(
                f"the address of a model on {parts.hostname} has a user, a query or a fragment in it; leave that out, "
                "and put a token into the environment variable DSIR_METRIC_TOKEN"
            )
        if path is None or not parts.hostname or (parts.scheme in ("grpc", "grpcs") and parts.port is None):
            raise ConfigError(
                f"{text!r} is no address of a model; give http://HOST:8000/v2/models/{MODEL_NAME} or "
                f"grpc://HOST:8001/{MODEL_NAME} (https, grpcs; /versions/N at the end for a certain version)"
            )
        return cls(text, parts.scheme, parts.netloc + path["base"], path["model"], path["version"] or "")


def is_remote(model: object) -> bool:
    """Whether `model` is the address of a server rather than a name or a file."""
    return isinstance(model, str) and model.partition("://")[0] in _SCHEMES and "://" in model


@dataclass(frozen=True)
class Access:
    """How to reach a server.

    Parameters
    ----------
    timeout_s : float
        Within which a request must be answered.
    token : str or None
        Sent as a bearer token.
    ca_file : str or None
        PEM file with the authorities that are trusted instead of the system's.
    """

    timeout_s: float = 300.0
    token: str | None = field(default=None, repr=False)
    ca_file: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What goes along with every request."""
        return {} if self.token is None else {"authorization": f"Bearer {self.token}"}

    def without_token(self, text: str) -> str:
        """What a server has to say, which may repeat what it was sent."""
        return text if self.token is None else text.replace(self.token, "(the token)")


class Transport(Protocol):
    """One protocol to one model. Every method raises `Failure`."""

    def signature(self) -> Signature:
        """Inputs and outputs of the model."""

    def infer(self, inputs: Arrays, outputs: Sequence[str], binary: bool = True) -> Arrays:
        """One request. `binary`: as bytes rather than as text, where the protocol has both."""

    def leave(self) -> None:
        """Let go of what the calling thread holds; it is about to end."""


def open_transport(address: Address, access: Access) -> Transport:
    """What talks to `address`.

    Raises
    ------
    MissingDependencyError
        If tritonclient is not installed.
    """
    _PACKAGE.check()
    return (Http if address.scheme in ("http", "https") else Grpc)(address, access)


class Http:
    """The protocol over HTTP, tensors as bytes behind the JSON."""

    def __init__(self, address: Address, access: Access) -> None:
        self._address = address
        self._access = access
        self._module = _module("tritonclient.http")

    def signature(self) -> Signature:
        """Inputs and outputs of the model."""
        with self._client() as client:
            told = client.get_model_metadata(self._address.model, self._address.version, self._access.headers)
            return _signature(told)

    def infer(self, inputs: Arrays, outputs: Sequence[str], binary: bool = True) -> Arrays:
        """One request."""
        given = []
        for name, value in inputs.items():
            entry = self._module.InferInput(name, list(value.shape), _datatype(value))
            entry.set_data_from_numpy(value, binary_data=binary)
            given.append(entry)
        wanted = [self._module.InferRequestedOutput(name, binary_data=binary) for name in outputs]
        with self._client() as client:
            answer = client.infer(
                self._address.model,
                given,
                self._address.version,
                outputs=wanted,
                headers=self._access.headers,
            )
            came = {name: answer.get_output(name) for name in outputs}
            if binary and any(entry is not None and "data" in entry for entry in came.values()):
                raise Failure("answers in text where bytes were asked for; " + _USE_GRPC)
            return _arrays(answer, outputs)

    def leave(self) -> None:
        """Free the event loop that gevent keeps for each thread, with its two open files."""
        _gevent().get_hub().destroy(destroy_loop=True)

    @contextmanager
    def _client(self) -> Iterator[Any]:
        gevent = _gevent()
        limit = gevent.Timeout(self._access.timeout_s)
        limit.start()
        try:
            with self._module.InferenceServerClient(
                self._address.server,
                connection_timeout=min(_CONNECT_S, self._access.timeout_s),
                network_timeout=self._access.timeout_s,
                ssl=self._address.secure,
                ssl_context_factory=self._tls if self._address.secure else None,
            ) as client:
                yield client
        except (gevent.Timeout, TimeoutError) as error:
            raise _late(self._access) from error
        except Exception as error:
            raise _http_failure(error) from error
        finally:
            limit.close()

    def _tls(self) -> ssl.SSLContext:
        context: ssl.SSLContext = _module("gevent.ssl").create_default_context(cafile=self._access.ca_file)
        return context


class Grpc:
    """The protocol over gRPC."""

    def __init__(self, address: Address, access: Access) -> None:
        self._address = address
        self._access = access
        self._module = _module("tritonclient.grpc")

    def signature(self) -> Signature:
        """Inputs and outputs of the model."""
        with self._client() as client:
            told = client.get_model_metadata(
                self._address.model,
                self._address.version,
                headers=self._access.headers,
                as_json=True,
                client_timeout=self._access.timeout_s,
            )
            return _signature(told)

    def infer(self, inputs: Arrays, outputs: Sequence[str], binary: bool = True) -> Arrays:
        """One request; always bytes."""
        given = []
        for name, value in inputs.items():
            entry = self._module.InferInput(name, list(value.shape), _datatype(value))
            entry.set_data_from_numpy(value)
            given.append(entry)
        with self._client() as client:
            answer = client.infer(
                self._address.model,
                given,
                self._address.version,
                outputs=[self._module.InferRequestedOutput(name) for name in outputs],
                headers=self._access.headers,
                client_timeout=self._access.timeout_s,
            )
            return _arrays(answer, outputs)

    def leave(self) -> None:
        """Nothing is kept for a thread."""

    @contextmanager
    def _client(self) -> Iterator[Any]:
        try:
            with self._module.InferenceServerClient(
                self._address.server,
                ssl=self._address.secure,
                root_certificates=self._access.ca_file,
                channel_args=[
                    ("grpc.max_send_message_length", _MOST_BYTES),
                    ("grpc.max_receive_message_length", _MOST_BYTES),
                    ("grpc.enable_http_proxy", int(not self._address.loopback)),  # http_proxy is for other machines
                ],
            ) as client:
                yield client
        except Exception as error:
            raise _grpc_failure(error, self._access) from error


_USE_GRPC = "this server cannot do binary tensors over HTTP: give its gRPC address, grpc://HOST:PORT/MODEL"


def _split(text: str) -> SplitResult:
    """Parts of an address; nonsense in the place of the port counts as none."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  # is checked when it is read
    except ValueError:
        return urlsplit("")
    return parts


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} cannot be imported ({error}); pip install 'dsir-metric[remote]'"
        ) from error
    except TypeError as error:  # protobuf's, if kserve was imported before: both define the same messages
        raise MissingDependencyError(
            f"{name} cannot be imported beside kserve in one process; talk to a server from another process"
        ) from error


@cache
def _gevent() -> Any:
    """The module, which gives a process that is forked from now on an event loop of its own."""
    gevent = _module("gevent")
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=gevent.reinit)
    return gevent


def _signature(told: Mapping[str, Any]) -> Signature:
    return {
        entry["name"]: (entry["datatype"], tuple(int(n) for n in entry["shape"]))
        for entry in (*told["inputs"], *told["outputs"])
    }


def _datatype(value: NDArray[Any]) -> str:
    return {"float32": "FP32", "float64": "FP64", "int64": "INT64"}[value.dtype.name]


def _arrays(answer: Any, outputs: Sequence[str]) -> Arrays:
    """Tensors of an answer; Failure if one is missing or shorter than its sizes say."""
    try:
        found = {name: answer.as_numpy(name) for name in outputs}
    except (ValueError, TypeError, KeyError) as error:
        raise Failure(f"the answer is truncated ({error})", worth_retrying=True) from error
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise Failure(f"the answer lacks {', '.join(missing)}")
    return {name: np.asarray(value) for name, value in found.items()}


def _late(access: Access) -> Failure:
    return Failure(
        f"did not answer within {access.timeout_s:g} s; allow more in the environment variable DSIR_METRIC_TIMEOUT, "
        "or choose smaller tiles"
    )


def _untrusted(told: str) -> Failure:
    return Failure(f"no TLS connection ({told}); for an authority of your own set DSIR_METRIC_CA_FILE")


def _http_failure(error: Exception) -> Failure:
    """What an exception of tritonclient.http, or of what lies below, means."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, ssl.SSLError):
        return _untrusted(str(error))
    status = _call(error, "status")
    if status is not None:
        return _refused(status, _call(error, "message") or str(error))
    if isinstance(error, OSError):
        return Failure(f"cannot be reached ({error})", worth_retrying=True)
    told = str(error) or type(error).__name__
    if type(error).__name__ == "HTTPParseError" and "Incomplete" not in told:
        return Failure(f"does not speak HTTP there ({told}); is it the port for gRPC?")
    return Failure(f"the answer is truncated ({told})", worth_retrying=True)


def _grpc_failure(error: Exception, access: Access) -> Failure:
    """What an exception of tritonclient.grpc means."""
    if isinstance(error, Failure):
        return error
    code = (_call(error, "status") or "").rpartition(".")[2]
    told = _call(error, "message") or str(error)
    if code == "DEADLINE_EXCEEDED":
        return _late(access)
    if "larger than max" in told:
        return Failure(f"takes no message of this size ({told}); raise its gRPC limit or choose smaller tiles")
    if "handshake failed" in told:
        return _untrusted(told)
    gateway = _GATEWAY.search(told)
    if gateway is not None:
        return _refused(gateway[1], "HTTP, perhaps a gateway's")
    if code in _BUSY_GRPC:
        return Failure(f"{_BUSY} ({told})", worth_retrying=True)
    return _refused(_CODE.get(code, code), told)


def _refused(status: str, told: str) -> Failure:
    """What a status of HTTP, or a code of gRPC without one, means."""
    page, busy = _PAGE.search(told), status in _BUSY_HTTP
    known = _BUSY if busy else _STATUS.get(status, "refuses the request")
    return Failure(f"{known} ({page[1] if page else f'{status}: {told}'})", worth_retrying=busy)


def _call(error: Exception, method: str) -> str | None:
    """Answer of one of the methods of tritonclient's exception, if it is one."""
    found = getattr(error, method, None)
    return found() if callable(found) else None


def one_line(text: str) -> str:
    """What a server said, on one line that is not too long."""
    line = " ".join(text.split())
    return line if len(line) <= 400 else line[:397] + "..."
