"""The server: what it answers, what it refuses and lives on, and how it ends."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from click.testing import CliRunner
from dsir_metric_cli.main import app
from numpy.typing import NDArray
from servers import MAIN, Server, relayed

from dsir_metric.errors import ConfigError, DataError, DsirError, MissingDependencyError, ShapeError
from dsir_metric.represent import Representer
from dsir_metric.represent.intensity import IntensityRule
from dsir_metric.represent.wire import Offer
from dsir_metric.serve import Answerer, ServeConfig, parts, serve
from dsir_metric.serve.limit import Full, Turnstile

SHAPE = (14, 11, 17)
Arrays = dict[str, NDArray[Any]]
BOTH = pytest.mark.parametrize("protocol", ["http", "grpc"])
HALF = 2**-12 + 1e-6


@pytest.fixture(scope="module")
def local() -> Representer:
    return Representer(device="cpu", threads=1)


def request(**other: Any) -> Arrays:
    """A request for every voxel of a volume."""
    image = np.random.default_rng(0).normal(300, 200, (1, 1, *SHAPE)).astype(np.float32)
    given: Arrays = {
        "image": image,
        "window": np.array([100.0, 700.0]),
        "stride": np.array([1]),
        "crop": np.array([[0] * 3, SHAPE]),
    }
    return {name: value for name, value in {**given, **other}.items() if value is not None}


BAD: dict[str, tuple[Mapping[str, Any], type[DsirError], str]] = {
    "no stride": ({"stride": None}, ShapeError, r"stride must be INT64 \[1\]; nothing came"),
    "type": (
        {"image": np.zeros((1, 1, 4, 4, 4))},
        ShapeError,
        r"image must be FP32 .*; float64 \[1, 1, 4, 4, 4\] came",
    ),
    "axes": ({"image": np.zeros((4, 4, 4), np.float32)}, ShapeError, "image must be FP32"),
    "batch": ({"image": np.zeros((2, 1, 4, 4, 4), np.float32)}, ShapeError, "image must be FP32"),
    "empty": ({"image": np.zeros((1, 1, 0, 4, 4), np.float32)}, ShapeError, "image has 0 voxels"),
    "large": (
        {"image": np.zeros((1, 1, 40, 40, 40), np.float32)},
        ShapeError,
        "takes 1 to 60000 in a request: send tiles",
    ),
    "nan": ({"image": np.full((1, 1, *SHAPE), np.nan, np.float32)}, DataError, "NaN or infinite"),
    "window": ({"window": np.array([2.0, 2.0])}, ConfigError, "window is 2.0 to 2.0"),
    "no window": ({"window": np.array([np.nan, 2.0])}, ConfigError, "window is nan to 2.0"),
    "step": ({"stride": np.array([0])}, ConfigError, "stride is 0"),
    "outside": ({"crop": np.array([[0] * 3, [14, 11, 18]])}, ShapeError, r"crop is \[0, 0, 0\] to \[14, 11, 18\]"),
    "inside out": ({"crop": np.array([[3] * 3, [3] * 3])}, ShapeError, "a box within the image"),
    "negative": ({"crop": np.array([[-1] * 3, [3] * 3])}, ShapeError, "a box within the image"),
}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", HALF)])
@pytest.mark.parametrize("stride", [1, 2])
def test_answers_are_the_local_ones(local: Representer, precision: Any, tolerance: float, stride: int) -> None:
    assert local.local is not None
    answerer = Answerer(local.local, Offer(local.card, 60000, precision))
    given = request(stride=np.array([stride]), crop=np.array([[1, 0, 5], [13, 11, 16]]))
    came = answerer(given)
    scaled = IntensityRule("window", 100.0, 700.0).apply(given["image"][0, 0])
    expected = local.describe(scaled)[1:13:stride, 0:11:stride, 5:16:stride]
    assert came.shape == (1, *expected.shape)
    assert came.dtype == ("float16" if precision == "fp16" else "float32")
    assert np.abs(came[0].astype(np.float32) - expected).max() <= tolerance


@pytest.mark.parametrize("name", BAD)
def test_requests_that_make_no_sense(local: Representer, name: str) -> None:
    change, kind, message = BAD[name]
    assert local.local is not None
    with pytest.raises(kind, match=message):
        Answerer(local.local, Offer(local.card, 60000))(request(**change))


def test_turnstile() -> None:
    running = most = 0
    release = threading.Event()

    def work() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        release.wait(10)
        running -= 1
        return 7

    async def crowd() -> list[Any]:
        turnstile = Turnstile(2, 1)
        tasks = [asyncio.create_task(turnstile.run(work)) for _ in range(5)]
        await asyncio.sleep(0.2)
        release.set()
        first = await asyncio.gather(*tasks, return_exceptions=True)
        return [*first, await turnstile.run(work)]

    came = asyncio.run(crowd())
    assert came[:3] == [7, 7, 7]
    assert all(isinstance(entry, Full) for entry in came[3:5])
    assert came[5] == 7
    assert most == 2


def test_turnstile_keeps_the_place_of_a_call_that_nobody_waits_for() -> None:
    """Clients that give up must not let more calls in than there is memory for; one that waits need not run."""
    begun: list[int] = []
    release = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        release.wait(10)
        return number

    async def crowd() -> int:
        turnstile = Turnstile(1, 1)
        for number in range(2):
            task = asyncio.create_task(turnstile.run(lambda number=number: work(number)))
            while not begun:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.sleep(0.05)
        last = asyncio.create_task(turnstile.run(lambda: work(2)))
        await asyncio.sleep(0.1)
        assert begun == [0]
        release.set()
        return await last

    assert asyncio.run(crowd()) == 2
    assert begun == [0, 2]


@pytest.mark.parametrize(
    "values",
    [
        {"name": "a/b"},
        {"name": ""},
        {"http_port": 65536},
        {"grpc_port": -1},
        {"max_voxels": 0},
        {"max_voxels": 10**8},
        {"concurrency": 0},
        {"queue": -1},
        {"max_cost": 0},
        {"max_connections": 0},
        {"buffer_bytes": 0},
        {"patience_s": 0},
        {"grace_s": -1},
    ],
)
def test_settings_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServeConfig(**values)


def test_without_kserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_PACKAGE", parts.Package("serve", "no-such-server", "1"))
    with pytest.raises(MissingDependencyError, match=r"pip install 'dsir-metric\[serve\]'"):
        serve(ServeConfig())
    result = CliRunner().invoke(app, ["serve"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def ask(
    server: Server,
    protocol: str,
    given: Arrays,
    outputs: tuple[str, ...] = ("descriptors",),
    *,
    named: bool = True,
    port: int = 0,
) -> Arrays:
    """One request by tritonclient itself, answered in bytes; `named`: it says which outputs it wants."""
    module = pytest.importorskip(f"tritonclient.{protocol}")
    kinds = {"float32": "FP32", "float64": "FP64", "int64": "INT64"}
    inputs = [module.InferInput(name, list(value.shape), kinds[value.dtype.name]) for name, value in given.items()]
    for entry, value in zip(inputs, given.values(), strict=True):
        entry.set_data_from_numpy(value)
    with module.InferenceServerClient(f"127.0.0.1:{port or server.port(protocol)}") as client:
        wanted = [module.InferRequestedOutput(name) for name in outputs] if named else None
        answer = client.infer("masrnet", inputs, outputs=wanted)
        if protocol == "http":
            assert not any("data" in answer.get_output(name) for name in outputs)
        else:
            assert len(answer.get_response().raw_output_contents) == len(outputs)
        return {name: answer.as_numpy(name) for name in outputs}


@BOTH
@pytest.mark.parametrize("named", [True, False])
def test_descriptors_and_card(single_server: Server, local: Representer, protocol: str, named: bool) -> None:
    given = request(stride=np.array([3]), crop=np.array([[2, 0, 4], [14, 8, 17]]))
    came = ask(single_server, protocol, given, ("card", "descriptors"), named=named)
    scaled = IntensityRule("window", 100.0, 700.0).apply(given["image"][0, 0])
    assert np.abs(came["descriptors"][0] - local.describe(scaled)[2:14:3, 0:8:3, 4:17:3]).max() <= 1e-6
    assert Offer.from_bytes(came["card"].tobytes(), "") == Offer(local.card, 60000, "fp32")


@BOTH
@pytest.mark.parametrize("name", BAD)
def test_refusals_over_the_wire(single_server: Server, protocol: str, name: str) -> None:
    exception = pytest.importorskip("tritonclient.utils").InferenceServerException
    change, _, message = BAD[name]
    with pytest.raises(exception, match=message) as caught:
        ask(single_server, protocol, request(**change))
    assert caught.value.status() == ("400" if protocol == "http" else "StatusCode.INVALID_ARGUMENT")
    assert ask(single_server, protocol, request())["descriptors"].shape == (1, *SHAPE, 24)


def fetch(
    server: Server, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Status and text of a plain HTTP request."""
    url = f"http://127.0.0.1:{server.port('http')}{path}"
    try:
        with urlopen(Request(url, body, dict(headers or {})), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_health_metadata_and_metrics(half_server: Server) -> None:
    assert fetch(half_server, "/v2/health/live") == (200, '{"live":true}')
    assert fetch(half_server, "/v2/health/ready") == (200, '{"ready":true}')
    assert fetch(half_server, "/v2/models/masrnet/ready")[0] == 200
    told = json.loads(fetch(half_server, "/v2/models/masrnet")[1])
    assert told["outputs"][0] == {"name": "descriptors", "datatype": "FP16", "shape": [1, -1, -1, -1, 24]}
    ask(half_server, "grpc", request())
    metrics = fetch(half_server, "/metrics")[1]
    assert 'request_predict_seconds_count{model_name="masrnet"}' in metrics


TEXT = {
    "inputs": [
        {"name": "image", "datatype": "FP32", "shape": [1, 1, 2, 2, 2], "data": [0, 1, 2, 3, 4, 5, 6, 7]},
        {"name": "window", "datatype": "FP64", "shape": [2], "data": [0, 7]},
        {"name": "stride", "datatype": "INT64", "shape": [1], "data": [1]},
        {"name": "crop", "datatype": "INT64", "shape": [2, 3], "data": [0, 0, 0, 2, 2, 2]},
    ],
    "outputs": [{"name": "descriptors"}],
}
INFER = "/v2/models/masrnet/infer"
JSON = {"content-type": "application/json"}
BYTES: dict[str, str] = {}  # a binary request, all of which is JSON


def with_input(place: int, **other: Any) -> bytes:
    """A request as text, one of whose inputs is another."""
    inputs = [dict(entry) for entry in TEXT["inputs"]]
    inputs[place] |= other
    return json.dumps({**TEXT, "inputs": inputs}).encode()


def test_text_is_understood(single_server: Server, local: Representer) -> None:
    status, text = fetch(single_server, INFER, json.dumps(TEXT).encode(), JSON)
    assert status == 200, text
    (output,) = json.loads(text)["outputs"]
    expected = local.describe((np.arange(8, dtype=np.float32) / 7).reshape(2, 2, 2))
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"])[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        (INFER, b"", JSON, (400, 422)),
        (INFER, b"{", JSON, (400, 422)),
        (INFER, b"[]", JSON, (400, 422)),
        (INFER, b'{"inputs": 3}', JSON, (400, 422)),
        (INFER, b'{"inputs": [{"name": "image"}]}', JSON, (400, 422)),
        (INFER, json.dumps(TEXT).replace("[2]", "[3]").encode(), JSON, (400,)),
        (INFER, json.dumps(TEXT).replace("INT64", "INT63").encode(), JSON, (400,)),
        (INFER, json.dumps({**TEXT, "outputs": [{"name": "cheese"}]}).encode(), JSON, (400,)),
        (INFER, b"\x00\xff" * 50, {"inference-header-content-length": "9"}, (400,)),
        (INFER, b"{}" + b"x" * 50, {"inference-header-content-length": "2"}, (400,)),
        (INFER, b'{"inputs": []}' + b"x", {"inference-header-content-length": "14"}, (400,)),
        (INFER, b'{"inputs": []}', {"inference-header-content-length": "ten"}, (400,)),
        (INFER, with_input(0, name=[1]), BYTES, (400,)),
        (INFER, with_input(0, parameters=[1]), BYTES, (400,)),
        (INFER, with_input(2, data=[2**70]), BYTES, (400,)),
        (INFER, b'{"inputs":' + b"[" * 100_000, BYTES, (400,)),
        (INFER, json.dumps({**TEXT, "parameters": [1]}).encode(), BYTES, (400,)),
        (INFER, json.dumps({**TEXT, "outputs": [{"name": {}}]}).encode(), BYTES, (400,)),
        (INFER, b"1" * (4 * 60000 + 2**20 + 1), JSON, (413,)),
        ("/v1/models/masrnet:predict", b'{"instances": [1]}', JSON, (400, 500)),
        ("/v2/repository/models/masrnet/unload", b"", {}, (404,)),
        ("/v2/models/masrnet/versions/2/infer", json.dumps(TEXT).encode(), JSON, (404,)),
        ("/v2/models/cheese/infer", json.dumps(TEXT).encode(), JSON, (404,)),
    ],
)
def test_damaged_requests(
    single_server: Server, path: str, body: bytes, headers: dict[str, str], status: tuple[int, ...]
) -> None:
    length = {"inference-header-content-length": str(len(body))} if headers is BYTES else headers
    found, text = fetch(single_server, path, body, length)
    assert found in status, text
    assert fetch(single_server, INFER, json.dumps(TEXT).encode(), JSON)[0] == 200
    assert single_server.alive


def test_what_cannot_be_text_is_refused_before_it_is_computed(single_server: Server, half_server: Server) -> None:
    large = with_input(0, shape=[1, 1, 39, 39, 39], data=[0] * 39**3)
    for server, body, reason in (
        (half_server, with_input(0), "half precision"),
        (single_server, large, "50000 voxels"),
    ):
        status, text = fetch(server, INFER, body, JSON)
        assert (status, "ask for binary data" in text, reason in text) == (400, True, True), text


def test_web_sockets_are_not_spoken(single_server: Server) -> None:
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "x"}
    assert fetch(single_server, "/v2/health/live", None, upgrade) == (200, '{"live":true}')


@BOTH
@pytest.mark.parametrize("noise", [b"\x00\xff\x13" * 3000, b"POST /v2/models/masrnet/infer HTTP/1.1\r\ncontent-le"])
def test_noise_on_the_line(single_server: Server, protocol: str, noise: bytes) -> None:
    with socket.create_connection(("127.0.0.1", single_server.port(protocol)), 5) as line:
        line.sendall(noise)
        line.settimeout(5)
        with suppress(OSError):  # the server may have hung up
            line.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while line.recv(1 << 16):
                pass
    assert ask(single_server, protocol, request())["descriptors"].shape == (1, *SHAPE, 24)


def test_length_that_is_not_said(single_server: Server) -> None:
    with socket.create_connection(("127.0.0.1", single_server.port("http")), 5) as line:
        line.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".encode())
        assert b" 411 " in line.recv(4096)


HEAD = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n"


@pytest.mark.parametrize(
    "sent", ["", HEAD, HEAD + "\r\n", HEAD + "\r\nabc"], ids=["nothing", "head", "no body", "body"]
)
def test_who_lets_the_server_wait_is_hung_up_on(half_server: Server, sent: str) -> None:
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", half_server.port("http")), 5) as line:
        line.sendall(sent.encode())
        line.settimeout(60)
        with suppress(OSError):
            while sent == HEAD:  # drop by drop
                line.sendall(b"x")
                time.sleep(0.1)
        with suppress(ConnectionResetError):
            assert line.recv(4096) == b""
    assert time.monotonic() - started > 1


def test_many_who_are_slow_keep_nobody_away(half_server: Server) -> None:
    lines = [socket.create_connection(("127.0.0.1", half_server.port("http")), 5) for _ in range(300)]
    for line in lines:
        line.sendall(HEAD.encode())
    assert ask(half_server, "http", request())["descriptors"].shape == (1, *SHAPE, 24)
    for line in lines:
        line.close()


def test_messages_too_long_for_grpc(single_server: Server) -> None:
    exception = pytest.importorskip("tritonclient.utils").InferenceServerException
    with pytest.raises(exception, match="larger than max"):
        ask(single_server, "grpc", request(image=np.zeros((1, 1, 80, 80, 80), np.float32)))
    assert ask(single_server, "grpc", request())["descriptors"].shape == (1, *SHAPE, 24)


def test_one_at_a_time(single_server: Server) -> None:
    """Of several requests at once the server computes one, and sends the others away, whichever way they came."""
    exception = pytest.importorskip("tritonclient.utils").InferenceServerException
    told: list[str] = []
    given = request(image=np.zeros((1, 1, 39, 39, 39), np.float32))

    def one(protocol: str) -> None:
        try:
            ask(single_server, protocol, given)
            told.append("answered")
        except exception as error:
            told.append(f"{error.status()}: {error.message()}")

    threads = [threading.Thread(target=one, args=(protocol,)) for protocol in ("http", "grpc") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert "answered" in told
    away = {text for text in told if text != "answered"}
    assert away
    assert away <= {
        f"{code}: busy: 1 requests are computed or wait; come back later" for code in ("503", "StatusCode.UNAVAILABLE")
    }


@BOTH
def test_repository_stays(half_server: Server, protocol: str) -> None:
    module = pytest.importorskip(f"tritonclient.{protocol}")
    exception = pytest.importorskip("tritonclient.utils").InferenceServerException
    with module.InferenceServerClient(f"127.0.0.1:{half_server.port(protocol)}") as client:
        with pytest.raises(exception, match="one model, which stays"):
            client.unload_model("masrnet")
        assert client.is_model_ready("masrnet")


@BOTH
def test_one_version(half_server: Server, protocol: str) -> None:
    module = pytest.importorskip(f"tritonclient.{protocol}")
    exception = pytest.importorskip("tritonclient.utils").InferenceServerException
    with module.InferenceServerClient(f"127.0.0.1:{half_server.port(protocol)}") as client:
        assert client.get_model_metadata("masrnet", "1")
        with pytest.raises(exception, match="version 2 is not here; there is version 1"):
            client.get_model_metadata("masrnet", "2")


@BOTH
def test_this_machine_alone(half_server: Server, protocol: str) -> None:
    """It listens on 127.0.0.1, and on no other address, such as that machine's neighbour."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", half_server.port(protocol)), 2).close()


@pytest.mark.skipif(
    find_spec("kserve") is None or find_spec("tritonclient") is None, reason="needs kserve, tritonclient"
)
@BOTH
def test_stop_finishes_what_runs(protocol: str, local: Representer) -> None:
    server = Server("--fp32", "--name", "masrnet")
    given = request(
        image=np.random.default_rng(0).random((1, 1, 80, 80, 80), np.float32),
        window=np.array([0.0, 1.0]),
        crop=np.array([[0] * 3, [80, 80, 40]]),
    )
    answers: list[Arrays] = []

    def slowly(data: bytes, _: int) -> bytes:
        time.sleep(0.02)
        return data

    with relayed(server, protocol, down=slowly) as (_, relay):
        thread = threading.Thread(target=lambda: answers.append(ask(server, protocol, given, port=relay.port)))
        thread.start()
        predicting = f"http://127.0.0.1:{server.port('http')}/metrics"
        while "request_preprocess_seconds_count" not in urlopen(predicting, timeout=20).read().decode():
            time.sleep(0.02)
        assert not answers
        if protocol == "grpc":
            server.process.terminate()
            while not any("stopping" in line for line in server.lines):
                time.sleep(0.02)
            with pytest.raises(Exception, match=r"UNAVAILABLE.*this server is stopping"):
                ask(server, protocol, request())
        assert server.stop() == 0
        thread.join(10)
    (answer,) = answers
    expected = local.describe(given["image"][0, 0])[:, :, :40]
    assert np.abs(answer["descriptors"][0] - expected).max() <= 1e-6
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port("http")), 2).close()
    assert any("stopping" in line for line in server.lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--http-port", "{http}", "--grpc-port", "0"], "choose another http port"),
        (["--http-port", "0", "--grpc-port", "{grpc}"], "choose another grpc port"),
        (["--host", "203.0.113.7"], "cannot be had"),
        (["--model", "cheese"], "there is no model"),
        (["--max-voxels", "0"], "max_voxels must be a whole number from 1 to"),
        (["--tls-cert", "a.pem"], "belong together"),
        (["--tls-cert", "a.pem", "--tls-key", "b.pem"], "are no certificate and its key"),
    ],
)
def test_server_that_cannot_start(half_server: Server, options: list[str], message: str, tmp_path: Path) -> None:
    taken = {protocol: half_server.port(protocol) for protocol in ("http", "grpc")}
    filled = [option.format(**taken) for option in options]
    answer = subprocess.run(
        [sys.executable, "-c", MAIN, "serve", *filled], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert message in answer.stderr
