"""Representations from a server: the same as here, whatever happens on the way, or one clear line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from dsir_metric_cli.main import app

pytest.importorskip("tritonclient.http")
pytest.importorskip("tritonclient.grpc")
from servers import MAIN, Last, Server, certificate, relayed, scan, whole_answers

from dsir_metric import io
from dsir_metric.errors import ConfigError, MissingDependencyError, ModelFileError, RemoteError
from dsir_metric.phantom import PhantomPair
from dsir_metric.represent import Representer, load_card, represent_pair, transport
from dsir_metric.represent.remote import RemoteConfig
from dsir_metric.represent.transport import Address, is_remote
from dsir_metric.represent.wire import CARD, CROP, DESCRIPTORS, IMAGE, STRIDE, WINDOW
from dsir_metric.represent.zoo import model_path
from dsir_metric.sitk import ImageRegistrationMethod

EXACT, HALF = 1e-6, 2**-12 + 1e-6
BOTH = pytest.mark.parametrize("protocol", ["http", "grpc"])


@pytest.fixture(scope="module")
def local() -> Representer:
    return Representer(device="cpu", threads=1)


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No settings of whoever runs the tests, and quick retries."""
    for name in ("TOKEN", "CA_FILE", "TIMEOUT", "RETRIES", "IN_FLIGHT"):
        monkeypatch.delenv(f"DSIR_METRIC_{name}", raising=False)
    monkeypatch.setattr(RemoteConfig, "__init__", _hasty(RemoteConfig.__init__))
    return monkeypatch


def _hasty(plain: Callable[..., None]) -> Callable[..., None]:
    return lambda self, *values, **named: plain(self, *values, **{"backoff_s": 0.02, **named})


def refusal(address: str, kind: type[Exception] = RemoteError) -> str:
    """The one line that opening or using a model at `address` ends with."""
    with pytest.raises(kind) as caught:
        Representer(address)(scan((12, 10, 9)))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


@BOTH
def test_equal_to_the_local_one(half_server: Server, single_server: Server, local: Representer, protocol: str) -> None:
    image = scan((22, 20, 18))
    expected = local(image)
    for server, tolerance, precision in ((half_server, HALF, "fp16"), (single_server, EXACT, "fp32")):
        address = getattr(server, protocol)
        representer = Representer(address)
        came = representer(image)
        assert np.abs(came.values - expected.values).max() <= tolerance
        assert came.values.dtype == np.float32
        assert came.grid == expected.grid
        assert representer.card == local.card == load_card(address)
        assert came.provenance == {**expected.provenance, "provider": f"{address}, {precision}"}


@BOTH
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_asks_as_its_parent_did(half_server: Server, tmp_path: Path, protocol: str) -> None:
    script = f"""
import multiprocessing
from servers import scan
from dsir_metric.represent import Representer

def ask(_):
    return Representer({getattr(half_server, protocol)!r})(scan((12, 10, 14))).values.tobytes()

here = ask(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(ask, range(2)).get(60) == [here, here]
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


@BOTH
def test_many_volumes_leave_no_file_open(half_server: Server, protocol: str) -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc")
    representer, image = Representer(getattr(half_server, protocol)), scan((12, 10, 9))
    representer(image)
    before = len(list(folder.iterdir()))
    for _ in range(8):
        representer(image)
    assert len(list(folder.iterdir())) < before + 6


@BOTH
def test_a_slice(single_server: Server, local: Representer, protocol: str) -> None:
    """A 2-D image: many slices go there, one comes back."""
    image = scan((31, 26, 2))[:, :, 0]
    came = Representer(getattr(single_server, protocol))(image)
    assert came.values.shape == (1, 26, 31, 24)
    assert np.abs(came.values - local(image).values).max() <= EXACT


@BOTH
@pytest.mark.parametrize(("size", "tile"), [((200, 16, 16), 24), ((300, 16, 16), None)])
def test_tiles_in_flight_with_a_busy_server(
    single_server: Server,
    local: Representer,
    settings: pytest.MonkeyPatch,
    protocol: str,
    size: tuple[int, int, int],
    tile: int | None,
) -> None:
    """Four at once, to a server that takes one and sends the others away."""
    settings.setenv("DSIR_METRIC_RETRIES", "12")
    image = scan(size)
    came = Representer(getattr(single_server, protocol), tile=tile)(image)
    assert np.abs(came.values - local(image).values).max() <= EXACT


@BOTH
def test_broken_connections_lose_nothing(
    half_server: Server, local: Representer, settings: pytest.MonkeyPatch, protocol: str
) -> None:
    """Every third connection breaks within an answer; of gRPC, which has one at a time for all tiles, the first two."""
    settings.setenv("DSIR_METRIC_RETRIES", "9")
    broken = []

    def down(data: bytes, number: int) -> bytes:
        due = number % 3 == 2 if protocol == "http" else number not in broken and len(broken) < 2
        if due and len(data) > 4000:
            broken.append(number)
            return Last(data[:1000])
        return data

    image = scan((200, 8, 8))
    with relayed(half_server, protocol, down=down) as (address, _):
        Representer(address)  # the first connection is one of the good ones
        came = Representer(address, tile=16)(image)
    assert len(set(broken)) >= (4 if protocol == "http" else 1)
    assert np.abs(came.values - local(image).values).max() <= HALF


@BOTH
def test_server_that_is_down(settings: pytest.MonkeyPatch, protocol: str) -> None:
    settings.setenv("DSIR_METRIC_RETRIES", "2")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/v2/models/masrnet" if protocol == "http" else f"grpc://127.0.0.1:{port}/m"
    text = refusal(address)
    assert "cannot be reached" in text
    assert text.endswith(", 3 times")


@BOTH
def test_slow_server(half_server: Server, settings: pytest.MonkeyPatch, protocol: str) -> None:
    settings.setenv("DSIR_METRIC_TIMEOUT", "0.5")
    asked = []

    def up(data: bytes, number: int) -> bytes:
        asked.append(number)
        time.sleep(1.2)
        return data

    with relayed(half_server, protocol, up=up) as (address, _):
        started = time.monotonic()
        assert "did not answer within 0.5 s" in refusal(address)
    assert time.monotonic() - started < 3  # it is not asked again: that would make it slower


@pytest.mark.parametrize(("protocol", "connections", "code"), [("http", 3, 2), ("http", 3, 130), ("grpc", 1, 130)])
def test_nobody_waits_for_tiles_that_are_of_no_use(
    half_server: Server, tmp_path: Path, protocol: str, connections: int, code: int
) -> None:
    """No tile under way is answered; one breaks (2) or Ctrl-C comes (130): the command ends at once."""
    asked, over, sent = [], threading.Event(), Counter[int]()

    def up(data: bytes, number: int) -> bytes | None:
        sent[number] += len(data)  # a tile may come in small pieces
        if sent[number] < 20_000:
            return data
        asked.append(number)
        if code == 2 and len(asked) == connections:
            return None
        over.wait(120)
        return None

    io.write_image(scan((80, 40, 40)), tmp_path / "scan.nrrd")
    with relayed(half_server, protocol, up=up) as (address, _):
        arguments = ["represent", str(tmp_path / "scan.nrrd"), "-o", str(tmp_path / "dsir.npz"), "--model", address]
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *arguments, "--tile", "16"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "DSIR_METRIC_RETRIES": "0"},
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores Ctrl-C
        )
        while len(asked) < connections and process.poll() is None:
            time.sleep(0.01)
        if code == 130:
            process.send_signal(signal.SIGINT)
        try:
            _, told = process.communicate(timeout=60)
        finally:
            over.set()
            process.kill()
    assert process.returncode == code, told
    assert told.count("\n") <= 2, told
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nrrd"]


def test_answer_that_comes_in_drops(half_server: Server, settings: pytest.MonkeyPatch) -> None:
    settings.setenv("DSIR_METRIC_TIMEOUT", "0.6")
    with relayed(half_server, drip_s=0.05) as (address, _):
        assert "did not answer within 0.6 s" in refusal(address)


@BOTH
def test_model_and_version_that_are_not_there(half_server: Server, protocol: str) -> None:
    address = getattr(half_server, protocol)
    for wrong in (address.replace("masrnet", "brain"), f"{address}/versions/2"):
        assert refusal(wrong).startswith(f"{wrong}: has no such model or version")
    assert Representer(f"{address}/versions/1").card


def test_protocols_mixed_up(half_server: Server, settings: pytest.MonkeyPatch) -> None:
    settings.setenv("DSIR_METRIC_RETRIES", "1")
    http, grpc = half_server.port("http"), half_server.port("grpc")
    assert "port for gRPC?" in refusal(f"http://127.0.0.1:{grpc}/v2/models/masrnet")
    assert "cannot be reached" in refusal(f"grpc://127.0.0.1:{http}/masrnet")


def test_model_of_another_kind(half_server: Server) -> None:
    with relayed(half_server, down=whole_answers(lambda answer: answer.replace(b'"stride"', b'"strude"'))) as (
        address,
        _,
    ):
        text = refusal(address)
    assert "is no model of dsir-metric: stride is not as expected, it has image FP32 [1, 1, -1, -1, -1]" in text


def changed(pattern: bytes, by: bytes) -> Callable[[bytes], bytes]:
    """Answers with descriptors, one pattern in them replaced by another of the same length."""
    assert len(pattern) == len(by)

    def change(answer: bytes) -> bytes:
        return answer.replace(pattern, by) if b'"name":"descriptors"' in answer and len(answer) > 30000 else answer

    return change


def page(status: int, words: str) -> bytes:
    """What a gateway answers to whoever may be there."""
    body = f"<html>\r\n<head><title>{status} {words}</title></head>\r\n<body>...</body>\r\n</html>\r\n"
    return f"HTTP/1.1 {status} {words}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def nan(answer: bytes) -> bytes:
    return answer[:10000] + b"\xff" * 40 + answer[10040:] if len(answer) > 60000 else answer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(b"[1,9,12,10,24]", b"[1,9,10,12,24]"), r"answers float16 \(1, 9, 10, 12, 24\) where float16"),
        (changed(b'"FP16"', b'"INT8"'), "the answer is truncated|answers int8"),
        (changed(b'"descriptors"', b'"descriptions"'[:13]), "the answer lacks descriptors|truncated"),
        (nan, "answers with NaN or infinity"),
        (changed(b'"halo": "', b'"halo": "'[:8] + b"'"), "has another model now than a moment ago"),
        (lambda answer: answer[: len(answer) // 2], "the answer is truncated"),
        (lambda answer: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "truncated|lacks|no model"),
        (lambda answer: b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "truncated"),
        (
            lambda answer: b"HTTP/1.1 401 Nope\r\nContent-Length: 2\r\n\r\n{}",
            "wants a valid token; .*DSIR_METRIC_TOKEN",
        ),
        (lambda answer: b"HTTP/1.1 413 Big\r\nContent-Length: 3\r\n\r\nbig", "choose smaller tiles"),
        (lambda answer: b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "503.*, 2 times"),
        (lambda answer: page(502, "Bad Gateway"), r"is busy \(502 Bad Gateway\), 2 times$"),
        (lambda answer: page(401, "Authorization Required"), r"DSIR_METRIC_TOKEN \(401 Authorization Required\)$"),
    ],
)
def test_answers_that_are_wrong(
    half_server: Server, settings: pytest.MonkeyPatch, change: Callable[[bytes], bytes], message: str
) -> None:
    settings.setenv("DSIR_METRIC_RETRIES", "1")
    with relayed(half_server, down=whole_answers(change)) as (address, _):
        text = refusal(address)
    assert text.startswith(address)
    assert re.search(message, text), text


def test_a_server_that_repeats_the_token(half_server: Server, settings: pytest.MonkeyPatch) -> None:
    body = b'{"error":"who is Bearer s3cret?"}'
    answer = b"HTTP/1.1 401 Nope\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    settings.setenv("DSIR_METRIC_TOKEN", "s3cret")
    with relayed(half_server, down=whole_answers(lambda _: answer)) as (address, _):
        text = refusal(address)
    assert "wants a valid token" in text
    assert "who is Bearer (the token)?" in text


def test_half_an_answer_is_asked_for_again(half_server: Server, local: Representer) -> None:
    """An answer that is cut off once costs a repetition, no more."""
    cut = []

    def once(answer: bytes) -> bytes:
        if len(answer) > 40000 and not cut:
            cut.append(answer)
            return answer[:20000]
        return answer

    image = scan((12, 10, 9))
    with relayed(half_server, down=whole_answers(once)) as (address, _):
        came = Representer(address)(image)
    assert cut
    assert np.abs(came.values - local(image).values).max() <= HALF


def test_server_without_binary_tensors(half_server: Server, single_server: Server) -> None:
    """One that refuses bytes, and one that takes them and answers in text."""

    def refusing(data: bytes, number: int) -> bytes:
        return re.sub(rb"(?i)inference-header-content-length", b"Inference-Header-Content-Lengtx", data)

    with relayed(half_server, up=refusing) as (address, _):
        assert "cannot do binary tensors over HTTP; give its gRPC address" in refusal(address)
    texting = {"up": lambda data, number: data.replace(b'"binary_data":true', b'"binary_data":null')}
    with relayed(single_server, **texting) as (address, _):
        assert "cannot do binary tensors over HTTP" in refusal(address)


@BOTH
def test_tiles_too_large_for_the_server(single_server: Server, protocol: str) -> None:
    with pytest.raises(ConfigError, match=r"takes 60000 voxels .* have \d+: choose smaller tiles") as caught:
        Representer(getattr(single_server, protocol), tile=200)(scan((300, 16, 16)))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="raise the server's --max-voxels"):
        Representer(getattr(single_server, protocol))(scan((60, 60, 60)))


@BOTH
def test_tls_with_an_authority_of_ones_own(
    half_server: Server, settings: pytest.MonkeyPatch, tmp_path: Path, protocol: str
) -> None:
    pytest.importorskip("cryptography")
    context, authority = certificate(tmp_path)
    seen = []

    def up(data: bytes, number: int) -> bytes:
        seen.append(data)
        return data

    with relayed(half_server, protocol, tls=context, up=up) as (address, _):
        secure = address.replace("://127.0.0.1", "s://localhost")
        text = refusal(secure)
        assert re.search("no TLS connection .*set DSIR_METRIC_CA_FILE", text)
        assert not text.endswith("times")  # another try would not help
        assert not seen
        settings.setenv("DSIR_METRIC_CA_FILE", str(authority))
        settings.setenv("DSIR_METRIC_TOKEN", "s3cret")
        came = Representer(secure)(scan((12, 10, 9)))
    assert "s3cret" not in json.dumps(dict(came.provenance))
    if protocol == "http":
        heads = [data for data in seen if data.startswith((b"GET", b"POST"))]
        assert len(heads) == 3
        assert all(b"authorization: bearer s3cret" in data.lower() for data in heads)
    else:
        assert len(b"".join(seen)) > 4 * 12 * 10 * 9


def test_a_server_with_a_certificate(
    half_server: Server, local: Representer, settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`serve --tls-cert` is met by our own client, over both protocols, and by none that does not trust it."""
    pytest.importorskip("cryptography")
    _, authority = certificate(tmp_path)
    server = Server("--tls-cert", authority, "--tls-key", tmp_path / "private.pem")
    image = scan((12, 10, 9))
    try:
        for address in (server.http, server.grpc):
            assert address.startswith(("https://", "grpcs://"))
            settings.delenv("DSIR_METRIC_CA_FILE", raising=False)
            assert "DSIR_METRIC_CA_FILE" in refusal(address)
            settings.setenv("DSIR_METRIC_CA_FILE", str(authority))
            assert np.abs(Representer(address)(image).values - local(image).values).max() <= HALF
            settings.setenv("DSIR_METRIC_RETRIES", "0")
            assert refusal(address.replace("s://", "://", 1))  # nothing is answered without encryption
    finally:
        assert server.stop() == 0


@BOTH
def test_a_proxy_is_not_asked_about_this_machine(
    half_server: Server, settings: pytest.MonkeyPatch, protocol: str
) -> None:
    settings.setenv("DSIR_METRIC_RETRIES", "0")
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        settings.setenv(name, "http://127.0.0.1:9")
    assert Representer(getattr(half_server, protocol)).card


def test_what_goes_along_with_grpc_requests(settings: pytest.MonkeyPatch) -> None:
    """A gRPC server that tells about its model, lets nobody use it, and writes down who asked for what."""
    import grpc
    from tritonclient.grpc import service_pb2

    seen = []

    class Porter(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            token = dict(details.invocation_metadata).get("authorization")
            method = details.method.rpartition("/")[2]
            return grpc.unary_unary_rpc_method_handler(
                lambda asked, context: self.answer(method, token, asked, context)
            )

        def answer(self, method: str, token: str | None, asked: bytes, context: grpc.ServicerContext) -> bytes:
            request = getattr(service_pb2, f"{method}Request").FromString(asked)
            seen.append((method, token, request.version if method == "ModelMetadata" else request.model_version))
            if method == "ModelInfer":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
            tensor = service_pb2.ModelMetadataResponse.TensorMetadata
            told = [tensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in (IMAGE, WINDOW, STRIDE, CROP)]
            out = [tensor(name=name, datatype="FP16", shape=[-1]) for name in (DESCRIPTORS, CARD)]
            return bytes(service_pb2.ModelMetadataResponse(inputs=told, outputs=out).SerializeToString())

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Porter()])
    address = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}/masrnet/versions/3"
    server.start()
    try:
        assert re.search("wants a valid token; .*DSIR_METRIC_TOKEN", refusal(address))
        settings.setenv("DSIR_METRIC_TOKEN", " s3cret\n")
        assert "s3cret" not in refusal(address)
    finally:
        server.stop(None)
    methods = ("ModelMetadata", "ModelInfer")
    assert seen == [(method, token, "3") for token in (None, "Bearer s3cret") for method in methods]


@pytest.mark.parametrize("address", ["http://example.org/v2/models/m", "grpc://example.org:8001/m"])
def test_token_stays_here_without_encryption(settings: pytest.MonkeyPatch, address: str) -> None:
    settings.setenv("DSIR_METRIC_TOKEN", "s3cret")
    text = refusal(address, ConfigError)
    assert "would go out unencrypted" in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TIMEOUT", "soon", "TIMEOUT must be a number from .* got 'soon'"),
        ("TIMEOUT", "0", "TIMEOUT must be a number from .* got '0'"),
        ("RETRIES", "-1", "RETRIES must be a number from 0 .* got '-1'"),
        ("IN_FLIGHT", "0", "IN_FLIGHT must be a number from 1 .* got '0'"),
        ("IN_FLIGHT", "inf", "IN_FLIGHT"),
        ("CA_FILE", "/nowhere.pem", "'/nowhere.pem' cannot be read .No such file"),
        ("CA_FILE", __file__, "cannot be read .*give a PEM file"),
        ("TOKEN", "a\nb", "characters that a token cannot have"),
    ],
)
def test_environment_out_of_range(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RemoteConfig.from_environment({f"DSIR_METRIC_{name}": value})


def test_environment_is_read() -> None:
    given = {"TIMEOUT": "2.5", "RETRIES": "0", "IN_FLIGHT": "9", "TOKEN": "t"}
    config = RemoteConfig.from_environment({f"DSIR_METRIC_{name}": value for name, value in given.items()})
    assert (config.access.timeout_s, config.retries, config.in_flight) == (2.5, 0, 9)
    assert config.access.headers == {"authorization": "Bearer t"}
    assert "Bearer" not in repr(config)
    assert "'t'" not in repr(config)


@pytest.mark.parametrize(
    ("text", "server", "model", "version"),
    [
        ("http://a:8000/v2/models/m", "a:8000", "m", ""),
        ("https://a/v2/models/m/versions/3/", "a", "m", "3"),
        ("http://a:80/x/y/v2/models/m", "a:80/x/y", "m", ""),
        ("grpc://[::1]:8001/m", "[::1]:8001", "m", ""),
        ("grpcs://a:443/m/versions/2", "a:443", "m", "2"),
    ],
)
def test_addresses(text: str, server: str, model: str, version: str) -> None:
    assert is_remote(text)
    address = Address.parse(text)
    assert (address.server, address.model, address.version) == (server, model, version)
    assert address.secure == text.split(":")[0].endswith("s")
    assert address.loopback == ("::1" in text)


@pytest.mark.parametrize(
    "text",
    [
        "http://a:8000/masrnet",
        "grpc://a/m",
        "grpc://a:8001",
        "http://:80/v2/models/m",
        "http://a:b/v2/models/m",
        "https://",
    ],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a model; give http://HOST"):
        Representer(text)


@pytest.mark.parametrize("text", ["grpc://me:pass@a:8001/m", "http://a/v2/models/m?token=pass"])
def test_secrets_in_an_address_are_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match="DSIR_METRIC_TOKEN") as caught:
        Representer(text)
    assert "pass" not in str(caught.value)


def test_names_and_files_are_no_addresses() -> None:
    for model in ("default", "models/a.onnx", Path("a.onnx"), "ftp://a/b", "http"):
        assert not is_remote(model)


@pytest.mark.parametrize("model", ["grpc://localhost:8001/masrnet", "http://localhost:8000/v2/models/masrnet"])
def test_where_a_file_is_needed(model: str) -> None:
    with pytest.raises(ModelFileError, match="is on a server; a file"):
        model_path(model)


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_PACKAGE", transport.Package("remote", "no-such-client", "1"))
    with pytest.raises(MissingDependencyError, match=r"pip install 'dsir-metric\[remote\]'"):
        Representer("grpc://localhost:8001/masrnet")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@BOTH
def test_command_line_without_onnx_runtime(
    half_server: Server, settings: pytest.MonkeyPatch, tmp_path: Path, pair: PhantomPair, protocol: str
) -> None:
    settings.setitem(sys.modules, "onnxruntime", None)
    address = getattr(half_server, protocol)
    for name in ("fixed", "moving"):
        io.write_image(getattr(pair, name), tmp_path / f"{name}.nrrd")
    options = ["--model", address, "--stages", "centre", "--spacing", 9, "--threads", 1, "-q"]
    result = call("register", tmp_path / "fixed.nrrd", tmp_path / "moving.nrrd", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "result.json").read_text())
    assert report["config"]["model"] == address
    result = call("represent", tmp_path / "fixed.nrrd", "-o", tmp_path / "dsir.npz", "--model", address)
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "dsir.npz") as made:
        assert json.loads(str(made["provenance"]))["provider"] == f"{address}, fp16"
    assert json.loads(call("models", "show", address).stdout)["name"] == "default"
    refused = call("represent", tmp_path / "fixed.nrrd", "-o", tmp_path / "x.npz", "--model", address + "s")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "x.npz").exists()


def test_python_faces(half_server: Server, pair: PhantomPair) -> None:
    method = ImageRegistrationMethod()
    method.SetMetricAsDNSCosine(model=half_server.grpc, spacing_mm=9.0)
    method.SetInitialTransform(sitk.Euler3DTransform())
    here = ImageRegistrationMethod()
    here.SetMetricAsDNSCosine(spacing_mm=9.0)
    here.SetInitialTransform(sitk.Euler3DTransform())
    values = [m.MetricEvaluate(pair.fixed, pair.moving) for m in (method, here)]
    assert abs(values[0] - values[1]) < 1e-4
    there, _ = represent_pair(pair.fixed, pair.moving, Representer(half_server.http), spacing_mm=9.0)
    assert there.channels == 24
