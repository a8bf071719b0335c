"""A server under attack: what it reads, computes and keeps is bounded, and it goes on answering."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from servers import Server, relayed

from dsir_metric.errors import DataError, DsirError, ShapeError
from dsir_metric.represent import Representer
from dsir_metric.represent.tiled import TiledNetwork
from dsir_metric.represent.tiling import Shape, choose_core, tiles
from dsir_metric.represent.wire import Offer
from dsir_metric.serve.answer import Abandoned, Answerer
from dsir_metric.serve.binary_protocol import split
from dsir_metric.serve.config import ServeConfig
from dsir_metric.serve.gate import Gate
from dsir_metric.serve.limit import Full, Turnstile
from dsir_metric.serve.model import Outputs
from dsir_metric.serve.request import InferenceRequest
from dsir_metric.serve.room import Late, Room
from dsir_metric.serve.text_protocol import decode, encode, json_bytes

MODEL = "/v2/models/masrnet"
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
BUFFER_MB = 40
needs_server = pytest.mark.skipif(
    find_spec("kserve") is None or find_spec("tritonclient") is None, reason="needs kserve, tritonclient"
)


@pytest.fixture(scope="module")
def network() -> TiledNetwork:
    local = Representer(device="cpu", threads=1).local
    assert local is not None
    return local


@pytest.fixture(scope="module")
def victim() -> Iterator[Server]:
    """A server with little room: two requests of 4 million voxels, and 24 connections."""
    if find_spec("kserve") is None or find_spec("tritonclient") is None:
        pytest.skip("kserve or tritonclient is not installed")
    options = ("--max-voxels", 4_000_000, "--buffer-mb", BUFFER_MB, "--queue", 4, "--max-connections", 24)
    server = Server("--fp32", *options, "--patience", 8)
    yield server
    assert server.alive
    assert server.stop() == 0
    assert not [line for line in server.lines if "Traceback" in line]


def arrays(shape: Shape, **other: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Inputs of a request for every voxel of noise."""
    image = np.random.default_rng(0).random((1, 1, *shape)).astype(np.float32)
    given = {
        "image": image,
        "window": np.array([0.0, 1.0]),
        "stride": np.array([1]),
        "crop": np.array([[0] * 3, shape]),
    }
    return {**given, **other}


def body_of(given: dict[str, NDArray[Any]], outputs: int = 1) -> tuple[bytes, int]:
    """A binary request over HTTP, and how much of it is JSON."""
    kinds = {"float32": "FP32", "float64": "FP64", "int64": "INT64"}
    inputs = [
        {"name": n, "shape": v.shape, "datatype": kinds[v.dtype.name], "parameters": {"binary_data_size": v.nbytes}}
        for n, v in given.items()
    ]
    wanted = [{"name": "descriptors", "parameters": {"binary_data": True}}] * outputs
    head = json.dumps({"inputs": inputs, "outputs": wanted}).encode()
    return head + b"".join(v.tobytes() for v in given.values()), len(head)


def head_of(length: int, text: int) -> bytes:
    lines = f"POST {MODEL}/infer HTTP/1.1", "host: x", f"inference-header-content-length: {text}"
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


def post(server: Server, given: dict[str, NDArray[Any]], outputs: int = 1) -> tuple[int, bytes]:
    """Status and content of an answer."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    body, length = body_of(given, outputs)
    address = f"http://127.0.0.1:{server.port('http')}{MODEL}/infer"
    try:
        with urlopen(Request(address, body, {"inference-header-content-length": str(length)}), timeout=120) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def get(server: Server, path: str) -> tuple[int, str]:
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{server.port('http')}{path}", timeout=60) as answer:
        return answer.status, answer.read().decode()


def until(true: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether something becomes true in time."""
    latest = time.monotonic() + seconds
    while not true() and time.monotonic() < latest:
        time.sleep(0.05)
    return true()


def resident_mb(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


# What is read


@needs_server
def test_bodies_that_are_held_back_do_not_pile_up(victim: Server) -> None:
    """Twelve clients send 15 MB each, without the end: together more than four times what may be held."""
    assert post(victim, arrays((8, 8, 8)))[0] == 200
    before = resident_mb(victim)
    with ExitStack() as lines:

        def hold() -> None:
            line = lines.enter_context(socket.create_connection(("127.0.0.1", victim.port("http")), 60))
            with suppress(OSError):
                line.sendall(head_of(15_000_001, 100) + bytes(15_000_000))

        threads = [threading.Thread(target=hold) for _ in range(12)]
        for thread in threads:
            thread.start()
        most = before
        while any(thread.is_alive() for thread in threads):
            most = max(most, resident_mb(victim))
            assert get(victim, "/v2/health/live")[0] == 200
            time.sleep(0.05)
        assert most - before < BUFFER_MB + 40  # what is being copied, and the sockets
        assert post(victim, arrays((8, 8, 8)))[0] == 200  # the slow ones make way
    assert until(lambda: resident_mb(victim) < before + 40)


@needs_server
def test_messages_that_are_held_back_do_not_pile_up(victim: Server) -> None:
    """The same by gRPC, where a message does not say in advance how long it is."""
    grpc = pytest.importorskip("grpc")
    before, over, sent = resident_mb(victim), threading.Event(), dict[int, int]()

    def up(data: bytes, number: int) -> bytes | None:
        sent[number] = sent.get(number, 0) + len(data)
        if sent[number] > 14_000_000:
            over.wait(60)
            return None
        return data

    with relayed(victim, "grpc", up=up) as (_, relay), ExitStack() as channels:
        calls = []  # a call that nobody holds is cancelled
        for _ in range(12):
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
            channel = channels.enter_context(grpc.insecure_channel(f"127.0.0.1:{relay.port}", options))
            calls.append(channel.unary_unary(GRPC_INFER).future(bytes(15_000_000), timeout=100))
        most, latest = before, time.monotonic() + 8
        while time.monotonic() < latest:
            most = max(most, resident_mb(victim))
            time.sleep(0.05)
        assert sum(size > 10_000_000 for size in sent.values()) >= 2  # it did read as far as there was room
        assert sum(sent.values()) < 8 * 14_000_000
        assert most - before < BUFFER_MB + 60
        over.set()
    assert until(lambda: resident_mb(victim) < before + 50)
    assert until(lambda: post(victim, arrays((8, 8, 8)))[0] == 200)


@needs_server
def test_more_connections_than_there_may_be(victim: Server) -> None:
    """Further ones are told so; after a second of silence the idle ones make way."""
    address = ("127.0.0.1", victim.port("http"))
    with ExitStack() as stack:
        lines = [stack.enter_context(socket.create_connection(address, 30)) for _ in range(40)]
        told = []
        for line in lines[24:]:
            with suppress(OSError):
                told.append(line.recv(4096))
        assert any(b" 503 " in answer and b"retry-after" in answer for answer in told)
        time.sleep(1.5)
        assert get(victim, "/v2/health/live")[0] == 200


@needs_server
def test_a_head_without_end(victim: Server) -> None:
    with socket.create_connection(("127.0.0.1", victim.port("http")), 30) as line:
        line.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n")
        with suppress(OSError):
            for k in range(2000):
                line.sendall(f"x-{k}: ".encode() + b"y" * 1000 + b"\r\n")
        answer = b""
        with suppress(OSError):
            answer = line.recv(4096)
        assert answer == b"" or b" 431 " in answer
    assert get(victim, "/v2/health/live")[0] == 200


def test_room_is_bounded_and_slow_clients_make_way() -> None:
    async def crowd() -> None:
        room = Room(100, waiting=1, patience_s=30)
        slow = await room.enter(60, grace_s=0.1)
        quick = await room.enter(40, grace_s=30)
        assert room.taken == 100
        gone = asyncio.Event()

        async def read() -> None:
            try:
                async with slow.coming():
                    await asyncio.Event().wait()
            except Late:
                room.leave(slow)
                gone.set()

        async def read_quickly() -> None:
            async with quick.coming():
                await asyncio.sleep(0.5)

        reading = [asyncio.create_task(read()), asyncio.create_task(read_quickly())]
        waiting = asyncio.create_task(room.enter(50, grace_s=30))
        await asyncio.sleep(0)
        with pytest.raises(Full, match="1 requests wait"):
            await room.enter(1, grace_s=30)
        await waiting
        await asyncio.gather(*reading)
        assert gone.is_set()
        assert room.taken == 90

    asyncio.run(crowd())


def test_room_for_one_is_always_there_and_waiting_ends() -> None:
    async def crowd() -> None:
        room = Room(100, waiting=5, patience_s=0.2)
        async with room.share(500, grace_s=1):
            with pytest.raises(Full, match="500 bytes"):
                await room.enter(1, grace_s=1)
        assert room.taken == 0

    asyncio.run(crowd())


# What is computed


@pytest.mark.parametrize(
    "shape", [(1, 1, 8000), (1, 8000, 1), (8000, 1, 1), (2, 2, 2000), (1, 4, 20000), (3, 1, 5000), (1, 1, 4_000_000)]
)
def test_needles_are_refused_for_their_cost(network: TiledNetwork, shape: Shape) -> None:
    answerer = Answerer(network, Offer(network.card, 16_000_000))
    with pytest.raises(ShapeError, match=r"costs \d+ computed voxels .* more compact tiles"):
        answerer.check(arrays(shape))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 900), (20, 20, 20), (1, 90, 90), (1, 1000, 1000), (3, 20, 700)])
def test_slices_cubes_and_small_images_are_not(network: TiledNetwork, shape: Shape) -> None:
    task = Answerer(network, Offer(network.card, 16_000_000), ServeConfig().most_cost).check(arrays(shape))
    assert math.prod(shape) <= task.cost <= max(64_000, 6 * math.prod(shape))


def test_the_largest_images_cost_less_than_may_be(network: TiledNetwork) -> None:
    for shape in ((252, 252, 252), (200, 283, 283), (57, 512, 512), (8, 1414, 1414), (100, 400, 400)):
        assert network.cost(shape, tuple(slice(0, n) for n in shape)) < ServeConfig().most_cost  # type: ignore[arg-type]


def test_a_limit_on_the_cost(network: TiledNetwork) -> None:
    with pytest.raises(ShapeError, match="takes 5000 for it"):
        Answerer(network, Offer(network.card, 16_000_000), 5000).check(arrays((20, 20, 20)))


def test_cost_is_the_tiles_that_are_computed(network: TiledNetwork) -> None:
    """Of a volume in several tiles, and of a crop, whose second half is cheaper."""
    small = TiledNetwork(network.network, tile=16)
    shape, crop = (30, 20, 41), (slice(3, 9), slice(0, 20), slice(10, 30))
    counted = [0, 0]

    class Counting:
        def features(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
            counted[0] += math.prod(-(-n // 8) * 8 for n in image.shape)
            return network.network.features(image)

        def descriptors(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
            counted[1] += math.prod(features.shape[1:])
            return network.network.descriptors(features)

    for box in (crop, tuple(slice(0, n) for n in shape)):
        counted[:] = [0, 0]
        watched = TiledNetwork(network.network, tile=16)
        watched.network = Counting()  # type: ignore[assignment]
        scaled = np.random.default_rng(0).random(shape, np.float32)
        watched.describe(scaled, np.empty((*(s.stop - s.start for s in box), 24), np.float32), box)
        assert small.cost(shape, box) == sum(counted) // 2  # type: ignore[arg-type]


def test_padding_counts_in_the_size_of_a_tile() -> None:
    """A column of voxels takes 64 times its memory in the network."""
    core = choose_core((1, 1, 4000), 48, 8, 20_000, padded=True)
    assert max(tile.padded(8) for tile in tiles((1, 1, 4000), core, 48)) <= 20_000
    assert choose_core((1, 1, 4000), 48, 8, 20_000) == (8, 8, 4000)


def test_what_nobody_waits_for_ends_before_the_next_tile(network: TiledNetwork) -> None:
    abandoned, begun = threading.Event(), []

    class Leaving:
        def features(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
            begun.append(image.shape)
            abandoned.set()
            return network.network.features(image)

    tiled = TiledNetwork(network.network, tile=8)
    answerer = Answerer(tiled, Offer(network.card, 60_000))
    task = answerer.check(arrays((8, 8, 30)))
    tiled.network = Leaving()  # type: ignore[assignment]
    with pytest.raises(Abandoned):
        answerer.describe(task, abandoned)
    assert len(begun) == 1


def test_turnstile_tells_a_call_that_nobody_waits() -> None:
    release, told = threading.Event(), threading.Event()

    async def leave() -> None:
        waiting = asyncio.create_task(Turnstile(1, 0).run(lambda: release.wait(20), told.set))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.sleep(0.1)

    asyncio.run(leave())
    assert told.is_set()
    release.set()


@needs_server
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_client_that_hangs_up_is_not_computed_for(victim: Server, protocol: str) -> None:
    given = arrays((112, 112, 112))
    stopped = sum("nobody waits" in line for line in victim.lines)

    def begun() -> str:
        return next(line for line in get(victim, "/metrics")[1].splitlines() if "preprocess_seconds_count" in line)

    assert post(victim, arrays((4, 4, 4)))[0] == 200
    before = begun()
    if protocol == "http":
        body, length = body_of(given)
        with socket.create_connection(("127.0.0.1", victim.port("http")), 60) as line:
            line.sendall(head_of(len(body), length) + body)
            assert until(lambda: begun() != before)
            time.sleep(0.3)
    else:
        triton = pytest.importorskip("tritonclient.grpc")
        kinds = {"float32": "FP32", "float64": "FP64", "int64": "INT64"}
        inputs = [triton.InferInput(name, list(v.shape), kinds[v.dtype.name]) for name, v in given.items()]
        for entry, value in zip(inputs, given.values(), strict=True):
            entry.set_data_from_numpy(value)
        with triton.InferenceServerClient(f"127.0.0.1:{victim.port('grpc')}") as client:
            call = client.async_infer("masrnet", inputs, lambda *_: None)
            assert until(lambda: begun() != before)
            time.sleep(0.3)
            call.cancel()
    assert until(lambda: sum("nobody waits" in line for line in victim.lines) > stopped, 120)
    assert post(victim, arrays((4, 4, 4)))[0] == 200


def test_the_gate_cancels_what_a_client_does_not_wait_for() -> None:
    body, length = body_of(arrays((2, 2, 2)))
    ended: list[str] = []

    async def infer(request: InferenceRequest) -> Outputs:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
        return {}

    async def visit() -> list[Any]:
        messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0.05)
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        room = Room(10**6, 1, 1.0)
        headers = [(b"content-length", b"%d" % len(body)), (b"inference-header-content-length", b"%d" % length)]
        scope = {"type": "http", "method": "POST", "path": f"{MODEL}/infer", "headers": headers}

        async def application(*_: Any) -> None:
            raise AssertionError

        await Gate(application, infer, room, ServeConfig())(scope, receive, send)
        await asyncio.sleep(0.05)
        assert room.taken == 0
        return sent

    assert asyncio.run(visit()) == []
    assert ended == ["cancelled"]


# What is said

TENSOR = {"name": "window", "datatype": "FP64", "shape": [2], "data": [0, 1]}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"inputs": [TENSOR] * 17}, "16 inputs or fewer, got 17"),
        ({"inputs": [TENSOR, TENSOR]}, "input 'window' occurs twice"),
        ({"inputs": [], "outputs": [{"name": "descriptors"}] * 60_000}, "16 outputs or fewer, got 60000"),
        ({"inputs": [], "outputs": [{"name": "descriptors"}] * 2}, "asked for twice"),
        ({"inputs": [], "outputs": [{"name": "cheese\n\ud800"}]}, r"output 'cheese\\n\\ud800' is unknown"),
        ({"inputs": [], "parameters": {str(k): k for k in range(17)}}, "16 parameters or fewer"),
        ({"inputs": [], "id": "x" * 257}, "256 characters or fewer"),
        ({"inputs": [], "id": 7}, "the id must be text"),
        ({}, "the inputs must be a list, got nothing"),
        ({"inputs": [{**TENSOR, "datatype": "BYTES"}]}, "datatype 'BYTES'; give one of BOOL"),
        ({"inputs": [{**TENSOR, "datatype": ["FP64"]}]}, "give one of BOOL"),
        ({"inputs": [{**TENSOR, "shape": [-2]}]}, "size -2 in its shape"),
        ({"inputs": [{**TENSOR, "shape": [2.0]}]}, "size 2.0 in its shape"),
        ({"inputs": [{**TENSOR, "shape": [True, 2]}]}, "size True in its shape"),
        ({"inputs": [{**TENSOR, "shape": [2**63, 2]}]}, "size 9223372036854775808 in its shape"),
        ({"inputs": [{**TENSOR, "shape": [0, 2**30, 2**30], "data": []}]}, "fewer than 2147483648 numbers"),
        ({"inputs": [{**TENSOR, "shape": [1] * 9}]}, "a shape of up to 8 numbers"),
        ({"inputs": [{**TENSOR, "data": [0, "x"]}]}, "does not fit FP64"),
        ({"inputs": [{**TENSOR, "data": {}}]}, "does not fit FP64"),
        ({"inputs": [{**TENSOR, "data": [[0], [1, 2]]}]}, "does not fit FP64"),
        ({"inputs": [{**TENSOR, "datatype": "INT64", "data": [0.5, 1]}]}, "does not fit INT64"),
        ({"inputs": [{**TENSOR, "datatype": "INT64", "data": [2**63, 1]}]}, "does not fit INT64"),
        ({"inputs": [{**TENSOR, "parameters": {"binary_data_size": 16}}]}, "either data or binary_data_size"),
        ({"inputs": [{"name": "window", "parameters": {"binary_data_size": -1}}]}, "a number of bytes, got -1"),
        ({"inputs": [{"name": "window", "parameters": {"binary_data_size": True}}]}, "a number of bytes, got True"),
        (
            {"inputs": [{**TENSOR, "data": None, "parameters": {"binary_data_size": 10**30}}]},
            "must have 16 bytes for FP64",
        ),
    ],
)
def test_text_that_makes_no_sense(told: dict[str, Any], message: str) -> None:
    content = json.dumps(told).encode()
    with pytest.raises(DataError, match=message) as caught:
        decode(memoryview(content), len(content))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"7" * 5000, b"nul", b"3"])
def test_what_is_no_request(content: bytes) -> None:
    with pytest.raises(DataError):
        decode(memoryview(content), len(content))


def test_bytes_and_json_must_fit_together() -> None:
    body, length = body_of(arrays((2, 3, 4)))
    assert decode(memoryview(body), length).inputs["image"].shape == (1, 1, 2, 3, 4)
    for wrong in (body + b"x", body[:-1]):
        with pytest.raises(DataError, match="bytes"):
            decode(memoryview(wrong), length)
    for header in ("-1", "1e3", "٣", "9" * 20, str(len(body) + 1)):
        with pytest.raises(DataError, match="inference-header-content-length"):
            json_bytes(header, len(body))
    with pytest.raises(DataError, match="send binary data"):
        json_bytes(None, 3_000_000)


def test_an_answer_has_what_was_asked_for() -> None:
    values = {"descriptors": np.arange(6, dtype=np.float32).reshape(1, 6) / 3, "card": np.array([7, 8], np.uint8)}
    request = InferenceRequest({}, ("descriptors", "card"), frozenset({"card"}), "me")
    length, parts = encode(request, "masrnet", values)
    told = json.loads(b"".join(parts)[:length])
    assert (told["id"], told["model_name"]) == ("me", "masrnet")
    assert told["outputs"][1] == {"name": "card", "shape": [2], "datatype": "UINT8", "data": [7, 8]}
    assert told["outputs"][0]["parameters"] == {"binary_data_size": 24}
    np.testing.assert_array_equal(np.frombuffer(b"".join(parts)[length:], np.float32), values["descriptors"][0])
    del values["card"]
    length, parts = encode(InferenceRequest({}, ("descriptors",), frozenset({"descriptors"})), "masrnet", values)
    assert length is None
    found = np.array(json.loads(b"".join(parts))["outputs"][0]["data"], np.float32)
    np.testing.assert_array_equal(found, values["descriptors"][0])


def test_messages_of_many_fields_are_not_parsed() -> None:
    """An empty output takes two bytes of a message, and a hundred of memory."""
    assert split(b"\x0a\x07masrnet\x3a\x04abcd") == (b"\x0a\x07masrnet", [b"abcd"])
    for message, reason in (
        (b"\x32\x00" * 60_000, "16 inputs, outputs and parameters or fewer"),
        (b"\x2a" + b"\x80\x80\x80\x01" + bytes(2**21), "2097152 bytes or fewer beside"),
        (b"\x0a\x09masrnet", "no ModelInferRequest"),
        (b"\xff" * 20, "no ModelInferRequest"),
        (b"\x08\x01", "no ModelInferRequest"),
    ):
        with pytest.raises(DataError, match=reason):
            split(message)


@pytest.mark.parametrize(
    "other",
    [
        {"window": np.array([-1e308, 1e308])},
        {"window": np.array([0, 1e-320])},
        {"window": np.array([0, np.inf])},
        {"window": np.array([-3e38, 3e38])},
        {"stride": np.array([-(2**63)])},
        {"crop": np.array([[0] * 3, [2**62] * 3])},
        {"crop": np.array([[-(2**63)] * 3, [2**63 - 1] * 3])},
        {"image": np.full((1, 1, 4, 4, 4), np.inf, np.float32)},
        {"cheese": np.zeros(1)},
    ],
)
def test_values_that_make_no_sense(network: TiledNetwork, other: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(DsirError) as caught:
        Answerer(network, Offer(network.card, 60_000)).check(arrays((4, 4, 4), **other))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_values_at_the_edge_of_single_precision(network: TiledNetwork) -> None:
    image = np.full((1, 1, 4, 4, 4), -3e38, np.float32)
    image[..., 2] = 3e38
    given = arrays((4, 4, 4), image=image, window=np.array([1e38, 1.1e38]), stride=np.array([2**63 - 1]))
    answer = Answerer(network, Offer(network.card, 60_000, "fp32"))(given)
    assert answer.shape == (1, 1, 1, 1, 24)
    assert np.isfinite(answer).all()


@needs_server
def test_sixty_thousand_outputs_are_refused_by_both_protocols(victim: Server) -> None:
    grpc = pytest.importorskip("grpc")
    status, content = post(victim, arrays((4, 4, 4)), outputs=60_000)
    assert (status, b"send binary data" in content or b"16 outputs" in content) == (400, True)
    with grpc.insecure_channel(f"127.0.0.1:{victim.port('grpc')}") as channel:
        call = channel.unary_unary(GRPC_INFER)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\x0a\x07masrnet" + b"\x32\x0d\x0a\x0bdescriptors" * 60_000, timeout=60)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        for method in ("ServerLive", "ServerReady"):
            assert channel.unary_unary(GRPC_INFER.replace("ModelInfer", method))(b"", timeout=60) == b"\x08\x01"


@needs_server
@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/cheese",
        "/v2/models/cheese/ready",
        "/v2/models/cheese/versions/1",
        "/v2/models/masrnet/versions/7/ready",
        "/v2/models/%0a%00%ff",
        "/v2/repository/index",
        "/v2/cheese",
        "/docs",
        "/openapi.json",
        "/%2e%2e/%2e%2e/etc/passwd",
    ],
)
def test_what_is_not_there(victim: Server, path: str) -> None:
    from urllib.error import HTTPError

    with pytest.raises(HTTPError) as caught:
        get(victim, path)
    assert caught.value.code == 404


@needs_server
@pytest.mark.parametrize(
    ("method", "message", "code"),
    [
        ("ModelMetadata", b"\x0a\x06cheese", "NOT_FOUND"),
        ("ModelReady", b"\x0a\x06cheese", "NOT_FOUND"),
        ("ModelReady", b"\x0a\x07masrnet\x12\x017", "NOT_FOUND"),
        ("RepositoryModelLoad", b"\x0a\x07masrnet", "NOT_FOUND"),
        ("RepositoryModelUnload", b"", "NOT_FOUND"),
        ("ModelMetadata", b"\xff\xff\xff", "INVALID_ARGUMENT"),
        ("ModelMetadata", b"\x0a\x03\xff\xfe\xfd", "INVALID_ARGUMENT"),
        ("ModelMetadata", bytes(100_000), "INVALID_ARGUMENT"),
        ("ModelInfer", b"", "NOT_FOUND"),
        ("ModelInfer", b"\x0a\x07masrnet\x3a\x01x", "INVALID_ARGUMENT"),
        ("ModelCheese", b"", "UNIMPLEMENTED"),
    ],
)
def test_calls_that_make_no_sense(victim: Server, method: str, message: bytes, code: str) -> None:
    grpc = pytest.importorskip("grpc")
    channel = grpc.insecure_channel(f"127.0.0.1:{victim.port('grpc')}")
    with channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(GRPC_INFER.replace("ModelInfer", method))(message, timeout=60)
    assert caught.value.code().name == code, caught.value.details()
