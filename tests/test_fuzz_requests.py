"""Requests that are damaged in every way: each is answered or refused in one line, and the server lives."""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from servers import Server

from dsir_metric.errors import DsirError
from dsir_metric.represent import Representer
from dsir_metric.represent.wire import Offer
from dsir_metric.serve import binary_protocol, text_protocol
from dsir_metric.serve.answer import Answerer
from dsir_metric.serve.request import NUMPY_KINDS, InferenceRequest

MOST_VOXELS = 60_000
SHAPE = (3, 4, 5)
HUGE = (2**31, 2**32, 2**63 - 1, 2**63, 2**64, 2**200, -1, -(2**63), 10**17)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(HUGE),
    st.integers(-3, 9),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["descriptors", "card", "image", "BYTES", "FP16", "fp32", "INT64", "\ud800", "x" * 999]),
    st.lists(st.one_of(st.integers(-2, 9), st.sampled_from(HUGE), st.none(), st.floats()), max_size=9),
    st.dictionaries(st.sampled_from(["name", "binary_data", "binary_data_size"]), st.integers(-1, 99), max_size=3),
)
VALUES = st.one_of(st.floats(width=64), st.sampled_from([-1e308, 1e308, 5e-324, float("nan"), 3.5e38, 0.0]))
NUMBERS = st.one_of(st.integers(-2, 6), st.sampled_from([2**63 - 1, -(2**63), 2**40]))


@st.composite
def tensors(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Inputs of a request, which may make sense, with their bytes under "raw"."""
    shape = draw(st.one_of(st.just(SHAPE), st.tuples(*[st.integers(0, 40)] * 3)))
    whole = [0, 0, 0, *shape]
    content = {
        "image": ("FP32", [1, 1, *shape], np.arange(np.prod(shape), dtype="<f4").tobytes()),
        "window": ("FP64", [2], struct.pack("<2d", *draw(st.one_of(st.just((0.0, 60.0)), st.tuples(VALUES, VALUES))))),
        "stride": ("INT64", [1], struct.pack("<q", draw(NUMBERS))),
        "crop": ("INT64", [2, 3], struct.pack("<6q", *draw(st.one_of(st.just(whole), st.tuples(*[NUMBERS] * 6))))),
    }
    found = [{"name": n, "datatype": kind, "shape": sizes, "raw": raw} for n, (kind, sizes, raw) in content.items()]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(found) - 1))
        change = draw(st.sampled_from(["drop", "repeat", "name", "datatype", "shape", "raw"]))
        if change == "drop" and len(found) > 1:
            del found[place]
        elif change == "repeat":
            found += [dict(found[place])] * draw(st.sampled_from([1, 20]))
        elif change == "datatype":
            found[place] |= {"datatype": draw(st.sampled_from([*NUMPY_KINDS, "BYTES", "", "fp32", "FP8"]))}
        elif change == "shape":
            sizes = st.lists(st.one_of(st.integers(-2, 8), st.sampled_from([2**31, 2**32, 2**63 - 1])), max_size=10)
            found[place] |= {"shape": draw(sizes)}
        elif change == "name":
            found[place] |= {"name": draw(st.text(max_size=5))}
        else:
            found[place] |= {"raw": found[place]["raw"][draw(st.integers(0, 9)) :] + draw(st.binary(max_size=9))}
    return found


@st.composite
def texts(draw: st.DrawFn) -> tuple[bytes, int]:
    """A request over HTTP, and how much of it is said to be JSON."""
    inputs, raw = [], b""
    for entry in draw(tensors()):
        fields = {name: value for name, value in entry.items() if name != "raw"}
        if draw(st.integers(0, 4)):
            fields["parameters"] = {"binary_data_size": len(entry["raw"])}
            raw += entry["raw"]
        elif entry["datatype"] in NUMPY_KINDS and len(entry["raw"]) % NUMPY_KINDS[entry["datatype"]].itemsize == 0:
            fields["data"] = np.frombuffer(entry["raw"], NUMPY_KINDS[entry["datatype"]]).tolist()
        inputs.append(fields)
    told: Any = {"inputs": inputs}
    if draw(st.booleans()):
        told["outputs"] = [{"name": "descriptors", "parameters": {"binary_data": True}}]
    for _ in range(draw(st.integers(0, 2))):
        target = draw(st.sampled_from([told, *inputs]))
        target[draw(st.sampled_from([*target, "id", "parameters", "outputs", "data"]))] = draw(JUNK)
    content = json.dumps(told).encode()
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(content)))
        dirt = draw(st.sampled_from([b"", b"\xff", b"[" * 5000, b"9" * 5000, b"\\ud800"]))
        content = content[:at] + dirt + content[at + 1 :]
    return content + raw, max(0, len(content) + draw(st.sampled_from([0, 0, 0, 0, 0, -1, 1, 7, 10**6])))


def message_class() -> Any:
    """ModelInferRequest as tritonclient has it: kserve's cannot be imported beside it."""
    return pytest.importorskip("tritonclient.grpc").service_pb2.ModelInferRequest


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A request over gRPC."""
    told = message_class()(model_name="masrnet")
    fits = st.integers(0, 9).map(bool)
    for entry in draw(tensors()):
        tensor = told.inputs.add(name=entry["name"], datatype=entry["datatype"], shape=entry["shape"])
        if draw(fits):
            told.raw_input_contents.append(entry["raw"])
        else:
            tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=4)))
    for name in draw(st.lists(st.sampled_from(["descriptors", "card", "cheese", ""]), max_size=3)):
        told.outputs.add(name=name)
    told.id = draw(st.one_of(st.just("me"), st.text(st.characters(exclude_categories=["Cs"]), max_size=300)))
    content = bytearray(told.SerializeToString())
    if draw(st.integers(0, 3)) == 0:
        for _ in range(draw(st.integers(1, 4))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    if draw(st.integers(0, 9)) == 0:
        content = content[: draw(st.integers(0, len(content)))] + draw(st.binary(max_size=20))
    return bytes(content)


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    local = Representer(device="cpu", threads=1).local
    assert local is not None
    return Answerer(local, Offer(local.card, MOST_VOXELS), 64_000)


def respond(answerer: Answerer, request: InferenceRequest) -> None:
    """Answer a request, if it is small."""
    task = answerer.check(request.inputs)
    assert task.cost <= 64_000
    if task.cost < 300:
        value = answerer.describe(task)
        assert np.isfinite(value).all()
        text_protocol.encode(request, "masrnet", {"descriptors": value})


def one_line(error: DsirError) -> None:
    assert str(error).isascii()
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 600


@pytest.mark.filterwarnings("error")
@given(request=texts())
@fuzz(400)
def test_requests_over_http(answerer: Answerer, request: tuple[bytes, int]) -> None:
    body, length = request
    try:
        text = text_protocol.json_bytes(str(length), len(body))
        respond(answerer, text_protocol.decode(memoryview(body), text))
    except DsirError as error:
        one_line(error)


@pytest.mark.filterwarnings("error")
@given(message=messages())
@fuzz(400)
def test_requests_over_grpc(answerer: Answerer, message: bytes) -> None:
    errors = pytest.importorskip("google.protobuf.message").DecodeError
    try:
        head, contents = binary_protocol.split(message)
        told = binary_protocol.parse(message_class(), errors, head)
        respond(answerer, binary_protocol.decode(told, contents))
    except DsirError as error:
        one_line(error)


@given(noise=st.binary(max_size=300))
@fuzz(200)
def test_noise(noise: bytes) -> None:
    for read in (lambda: text_protocol.decode(memoryview(noise), len(noise)), lambda: binary_protocol.split(noise)):
        try:
            read()
        except DsirError as error:
            one_line(error)


@pytest.fixture(scope="module")
def target(single_server: Server) -> Iterator[Server]:
    yield single_server
    assert single_server.alive
    assert not [line for line in single_server.lines if "Traceback" in line]


PATHS = st.one_of(
    st.sampled_from(["/v2/models/masrnet/infer", "/v2/models/masrnet/versions/1/infer"]),
    st.lists(
        st.sampled_from(["v1", "v2", "models", "masrnet", "cheese", "versions", "1", "9", "ready", "infer", "load"]),
        max_size=6,
    ).map(lambda parts: "/" + "/".join(parts)),
    st.text(st.characters(codec="ascii", exclude_characters=" \r\n"), max_size=20).map(lambda text: f"/{text}"),
)


@given(
    request=texts(),
    path=PATHS,
    method=st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "HEAD", "DELETE"]),
    kind=st.sampled_from(["application/json", "application/octet-stream", "application/cloudevents+json", "x"]),
    accept=st.sampled_from(["*/*", "", ";", "application/openmetrics-text; version=x"]),
)
@fuzz(60)
def test_a_server_over_http(
    target: Server, request: tuple[bytes, int], path: str, method: str, kind: str, accept: str
) -> None:
    body, length = request
    connection = http.client.HTTPConnection("127.0.0.1", target.port("http"), timeout=60)
    headers = {"content-type": kind, "accept": accept, "inference-header-content-length": str(length)}
    try:
        connection.request(method, path, body, headers)
        assert connection.getresponse().status < 500
    except (http.client.InvalidURL, UnicodeEncodeError):
        pass  # it never left
    finally:
        connection.close()


@given(message=messages(), method=st.sampled_from(["ModelInfer", "ModelInfer", "ModelMetadata", "ModelReady"]))
@fuzz(60)
def test_a_server_over_grpc(target: Server, message: bytes, method: str) -> None:
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(f"127.0.0.1:{target.port('grpc')}") as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}").future(message, timeout=60)
        assert call.code().name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND"), call.details()


def test_the_server_still_answers_rightly(target: Server, answerer: Answerer) -> None:
    representer = Representer(target.grpc)
    assert representer.card == answerer.offer.card
    scaled = np.random.default_rng(0).random((6, 7, 8), np.float32)
    local = Representer(device="cpu", threads=1).describe(scaled)
    assert np.abs(representer.describe(scaled) - local).max() <= 1e-6
