"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsir_metric.errors import ConfigError
from dsir_metric.represent.wire import MODEL_NAME, Precision

__all__ = ["VERSION", "ServeConfig"]

VERSION = "1"  # the only one
_MOST_VOXELS = 20_000_000  # 24 channels in single precision, and protobuf's 2 GiB


@dataclass(frozen=True)
class ServeConfig:
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
    concurrency : int
        Requests that are computed at the same time.
    queue : int
        Requests that may wait; further ones are told to come back later.
    patience_s : int
        Seconds within which an HTTP request must begin and go on; who lets the server wait is hung up on.
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
    name: str = MODEL_NAME
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    certificate: Path | None = None
    key: Path | None = None
    precision: Precision = "fp16"
    max_voxels: int = 16_000_000
    concurrency: int = 1
    queue: int = 64
    patience_s: int = 60
    grace_s: int = 30
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ConfigError(f"name {self.name!r} is no name for a model; it becomes a part of the address")
        for port in (self.http_port, self.grpc_port):
            if not 0 <= port < 65536:
                raise ConfigError(f"port {port} is none; give one up to 65535, or 0 for any that is free")
        if not 1 <= self.max_voxels <= _MOST_VOXELS:
            raise ConfigError(
                f"max_voxels is {self.max_voxels}; 1 to {_MOST_VOXELS} are possible: clients cut larger images up"
            )
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("a certificate and its key belong together; give both, or neither for no encryption")
        for name, least in (("concurrency", 1), ("queue", 0), ("patience_s", 1), ("grace_s", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; give {least} or more")

    @property
    def request_bytes(self) -> int:
        """The longest request: its voxels and what surrounds them."""
        return 4 * self.max_voxels + (1 << 20)

    @property
    def secure(self) -> bool:
        """Whether connections are encrypted."""
        return self.certificate is not None

    def authority(self, port: int) -> str:
        """Host and port as they stand in an address."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"
