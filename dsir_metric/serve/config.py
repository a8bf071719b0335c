"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dsir_metric.bounds import MOST_NUMBER, Bytes, Length, Range, Threads
from dsir_metric.config import Settings
from dsir_metric.errors import ConfigError
from dsir_metric.represent.wire import MODEL_NAME, Precision

__all__ = ["LEAST_COST", "VERSION", "ServeConfig"]

VERSION = "1"  # the only one
_MOST_VOXELS = 20_000_000  # 24 channels in single precision, and protobuf's 2 GiB
_COST_PER_VOXEL = 3  # the halos of a cube of 16 million voxels make 1.6; long tiles need less
LEAST_COST = 64_000  # computed voxels that any request may cost: 40^3, a few tenths of a second on one core

Port = Annotated[int, Range(0, 65535)]
Seconds = Annotated[int, Range(1, 86_400)]  # a day


@dataclass(frozen=True)
class ServeConfig(Settings):
    """Settings of a server.

    Parameters
    ----------
    model : str or Path
        Name of a shipped model, or an .onnx file.
    name : str
        By which clients ask for it.
    host : str
        Address to listen on; by default this machine alone can connect.
    http_port, grpc_port : int
        0 for any that is free.
    certificate, key : Path, optional
        PEM files, the certificate with those that lead to its authority; then both protocols are encrypted.
    precision : {"fp16", "fp32"}
        Of the descriptors that are answered.
    max_voxels : int
        The largest image of one request. A request needs up to 2 GiB and some 300 bytes a voxel.
    max_cost : int, optional
        What one request may cost: the voxels that the network computes for it, halos and padding included (see
        `dsir_metric.represent.plan.computed_voxels`). By default three times `max_voxels`.
    concurrency : int
        Requests that are computed at the same time.
    queue : int
        Requests that may wait; further ones are told to come back later.
    max_connections : int
        Connections of clients, for HTTP and for gRPC each. When all are taken, an idle one is closed for a new one.
    buffer_bytes : int
        Requests and answers that are held in memory, of all clients together; at least one request is.
    patience_s : int
        Seconds within which a request must begin and go on, and an answer be read; who lets the server wait is hung up
        on.
    grace_s : int
        Seconds that requests under way are given when the server is stopped.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    threads : int or None
        CPU threads of one request; None for every core.

    Raises
    ------
    ConfigError
        If one of these is out of range.
    """

    model: str | Path = "default"
    name: Annotated[str, Length(1, 200)] = MODEL_NAME
    host: Annotated[str, Length(1, 253)] = "127.0.0.1"  # the longest name of a host
    http_port: Port = 8000
    grpc_port: Port = 8001
    certificate: Path | None = None
    key: Path | None = None
    precision: Precision = "fp16"
    max_voxels: Annotated[int, Range(1, _MOST_VOXELS)] = 16_000_000
    max_cost: Annotated[int, Range(1, MOST_NUMBER)] | None = None
    concurrency: Annotated[int, Range(1, 1024)] = 1  # as threads
    queue: Annotated[int, Range(0, 1_000_000)] = 64
    max_connections: Annotated[int, Range(1, 1_000_000)] = 512
    buffer_bytes: Bytes = 256_000_000
    patience_s: Seconds = 60
    grace_s: Annotated[int, Range(0, 86_400)] = 30
    device: str = "auto"
    threads: Threads | None = None

    def check_together(self) -> None:
        """See that the name fits an address, and that a certificate has its key."""
        if "/" in self.name:
            raise ConfigError(f"name must have no slash, got {self.name!r}; it becomes a part of the address")
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("a certificate and its key belong together; give both, or neither for no encryption")

    @property
    def most_cost(self) -> int:
        """Computed voxels that one request may cost."""
        return max(LEAST_COST, _COST_PER_VOXEL * self.max_voxels) if self.max_cost is None else self.max_cost

    @property
    def request_bytes(self) -> int:
        """The longest request: its voxels and what surrounds them."""
        return 4 * self.max_voxels + (1 << 20)

    @property
    def room_bytes(self) -> int:
        """What is held in memory of requests and answers: `buffer_bytes`, but room for the longest request."""
        return max(self.buffer_bytes, self.request_bytes)

    @property
    def secure(self) -> bool:
        """Whether connections are encrypted."""
        return self.certificate is not None

    def authority(self, port: int) -> str:
        """Host and port as they stand in an address."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"
