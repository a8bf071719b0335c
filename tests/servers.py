"""Real servers in processes of their own, and what can go wrong on the way to them."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk

MAIN = "from dsir_metric_cli.main import main; main()"


class Server:
    """`dsir-metric serve` on two free ports."""

    def __init__(self, *options: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN, "serve", "--http-port", "0", "--grpc-port", "0", "--threads", "1"]
            + [str(option) for option in options],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"at (http\S+) and (grpc\S+)", line)
            if found:
                self.http, self.grpc = found.groups()
                break
        else:
            raise AssertionError("".join(self.lines))
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr or ()), daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def port(self, protocol: str) -> int:
        return int(re.findall(r":(\d+)/", getattr(self, protocol))[0])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._reader.join(5)
        return code


Hook = Callable[[bytes, int], bytes | None]


class Last(bytes):
    """What a hook gives when the connection is to break after it."""


class Relay:
    """A TCP relay to a server: every connection has a number, and what passes through goes through two hooks.

    A hook that gives None breaks the connection there; with `drip_s`, answers come byte by byte, so far apart.
    """

    def __init__(
        self,
        port: int,
        up: Hook | None = None,
        down: Hook | None = None,
        tls: ssl.SSLContext | None = None,
        drip_s: float = 0.0,
    ) -> None:
        self._to, self._up, self._down, self._tls, self._drip_s = port, up, down, tls, drip_s
        self.count = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self.count += 1
                threading.Thread(target=self._serve, args=(client, self.count), daemon=True).start()

    def _serve(self, client: socket.socket, number: int) -> None:
        with suppress(OSError):
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=_pump, args=(client, server, self._up, number, 0.0), daemon=True).start()
            _pump(server, client, self._down, number, self._drip_s)


def _pump(source: socket.socket, target: socket.socket, hook: Hook | None, number: int, drip_s: float) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 20):
            passed = data if hook is None else hook(data, number)
            if passed is None:
                break
            for k in range(0, len(passed), 1 if drip_s else max(1, len(passed))):
                target.sendall(passed[k : k + 1] if drip_s else passed)
                time.sleep(drip_s)
            if isinstance(passed, Last):
                break
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def whole_answers(change: Callable[[bytes], bytes]) -> Hook:
    """A hook for answers over HTTP that gives each one, complete, to `change`; one that got shorter is the last."""
    kept: dict[int, bytes] = {}

    def hook(data: bytes, number: int) -> bytes:
        kept[number] = kept.get(number, b"") + data
        head, _, body = kept[number].partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if length is None or len(body) < int(length[1]):
            return b""
        answer = kept.pop(number)
        passed = change(answer)
        return Last(passed) if len(passed) < len(answer) else passed

    return hook


@contextmanager
def relayed(server: Server, protocol: str = "http", **hooks: object) -> Iterator[tuple[str, Relay]]:
    """Address of a model behind a relay, and the relay."""
    relay = Relay(server.port(protocol), **hooks)  # type: ignore[arg-type]
    try:
        yield re.sub(r":\d+/", f":{relay.port}/", getattr(server, protocol)), relay
    finally:
        relay.close()


def scan(size: tuple[int, int, int]) -> sitk.Image:
    """Blocks and noise, size x, y, z, on an oblique grid whose axes are not in order."""
    random = np.random.default_rng(0)
    blocks = random.random([n // 6 + 1 for n in reversed(size)]).repeat(6, 0).repeat(6, 1).repeat(6, 2)
    blocks = 1000 * blocks[: size[2], : size[1], : size[0]]
    image = sitk.GetImageFromArray((blocks + 20 * random.standard_normal(blocks.shape)).astype(np.float32))
    image.SetSpacing([1.0, 1.5, 2.0])
    image.SetDirection([0, -1, 0, 1, 0, 0, 0, 0, -1])
    return image


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """TLS for localhost by an authority of its own, and the PEM file of that."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "public.pem", folder / "private.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context, public
