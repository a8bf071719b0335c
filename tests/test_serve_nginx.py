"""The gateway of docs/serving.md, its very lines: TLS and a token before `dsir-metric serve`, both protocols."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from servers import Server, certificate, scan

from dsir_metric.errors import RemoteError
from dsir_metric.represent import Representer

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
if NGINX is None:
    pytest.skip("nginx is not installed", allow_module_level=True)
pytest.importorskip("tritonclient")

TOKEN = "0a" * 32
BOTH = pytest.mark.parametrize("protocol", ["https", "grpcs"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Gateway:
    """nginx with the lines of the page, but for ports, files and the token."""

    def __init__(self, folder: Path, behind: dict[str, int], most: str = "128m") -> None:
        text = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
        lines = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)[0]
        _, self.authority = certificate(folder)
        self.port = free_port()
        for old, new in (
            ("PUT-A-LONG-RANDOM-STRING-HERE", TOKEN),
            ("listen 443", f"listen 127.0.0.1:{self.port}"),
            ("server.pem", str(self.authority)),
            ("server.key", str(folder / "private.pem")),
            ("127.0.0.1:8000", f"127.0.0.1:{behind['http']}"),
            ("127.0.0.1:8001", f"127.0.0.1:{behind['grpc']}"),
            ("128m", most),
        ):
            assert lines.count(old) == 1, old
            lines = lines.replace(old, new)
        temporary = "".join(
            f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""  # nobody else may enter the folder
        main = folder / "nginx.conf"
        main.write_text(
            f"daemon off; {user} pid {folder / 'pid'}; error_log {folder / 'error.log'};\nevents {{}}\n"
            f"http {{ access_log off;\n{temporary}{lines}}}\n"
        )
        command = [str(NGINX), "-c", str(main), "-p", str(folder), "-e", str(folder / "error.log")]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)
        raise AssertionError("nginx does not listen")

    def address(self, protocol: str) -> str:
        path = "v2/models/masrnet" if protocol == "https" else "masrnet"
        return f"{protocol}://localhost:{self.port}/{path}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def gateway(half_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    behind = {protocol: half_server.port(protocol) for protocol in ("http", "grpc")}
    found = Gateway(tmp_path_factory.mktemp("nginx"), behind)
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, gateway: Gateway) -> pytest.MonkeyPatch:
    monkeypatch.setenv("DSIR_METRIC_CA_FILE", str(gateway.authority))
    monkeypatch.setenv("DSIR_METRIC_TOKEN", TOKEN)
    monkeypatch.setenv("DSIR_METRIC_RETRIES", "1")
    return monkeypatch


def refusal(address: str) -> str:
    with pytest.raises(RemoteError) as caught:
        Representer(address)(scan((70, 64, 64)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@BOTH
def test_through_the_gateway(gateway: Gateway, protocol: str) -> None:
    image = scan((22, 20, 18))
    came = Representer(gateway.address(protocol))(image)
    assert np.abs(came.values - Representer("default", "cpu", 1)(image).values).max() <= 2.5e-4


@BOTH
@pytest.mark.parametrize("token", [None, "other", TOKEN.upper(), TOKEN + "0"])
def test_only_the_token_opens(gateway: Gateway, settings: pytest.MonkeyPatch, protocol: str, token: str | None) -> None:
    settings.delenv("DSIR_METRIC_TOKEN")
    if token is not None:
        settings.setenv("DSIR_METRIC_TOKEN", token)
    told = refusal(gateway.address(protocol))
    assert re.search(r"wants a valid token; put it into the environment variable DSIR_METRIC_TOKEN \(.*401", told), told
    assert "<" not in told


@BOTH
def test_who_does_not_trust_the_gateway(gateway: Gateway, settings: pytest.MonkeyPatch, protocol: str) -> None:
    settings.delenv("DSIR_METRIC_CA_FILE")
    assert "for an authority of your own set DSIR_METRIC_CA_FILE" in refusal(gateway.address(protocol))


@BOTH
def test_no_server_or_too_large_a_request_behind_it(
    half_server: Server, tmp_path: Path, settings: pytest.MonkeyPatch, protocol: str
) -> None:
    port = free_port()
    for behind, most, message in (
        ({"http": port, "grpc": port}, "128m", r"cannot be reached or is busy \(.*502.*\), 2 times$"),
        ({p: half_server.port(p) for p in ("http", "grpc")}, "1m", r"takes no request of this size; .*413"),
    ):
        gateway = Gateway(tmp_path, behind, most)
        settings.setenv("DSIR_METRIC_CA_FILE", str(gateway.authority))
        try:
            told = refusal(gateway.address(protocol))
        finally:
            gateway.stop()
        assert re.search(message, told), told
