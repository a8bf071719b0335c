"""Hostile settings: TOML, model cards, tables of pairs and options end in one line, never in a traceback or a hang."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from click.testing import CliRunner
from dsir_metric_cli.main import app
from fuzzing import Victim, fuzz
from hypothesis import given
from hypothesis import strategies as st

from dsir_metric.batch.pairs import COLUMNS, read_pairs
from dsir_metric.bounds import Length, Range
from dsir_metric.config import Settings, from_dict, load_toml, to_dict
from dsir_metric.errors import DsirError
from dsir_metric.register import RegisterConfig
from dsir_metric.register.lapirn import RegistrationCard, network_path
from dsir_metric.register.presets import load_settings
from dsir_metric.represent.card import ModelCard
from dsir_metric.represent.runtime import metadata_of, open_session
from dsir_metric.represent.wire import Offer
from dsir_metric.represent.zoo import model_path

MEMORY_BYTES = 8 << 30
NUMBERS = [0, -1, 1, 2, 0.5, -20.0, 1e-9, 1e9, 1e15, 10**18, 10**400, math.nan, math.inf, -math.inf, 5e-324, True]
TEXTS = [
    "",
    "x",
    "a" * 5000,
    "\0",
    "\ud800",
    "line\nline",
    "\x1b[2J",
    "auto",
    "ct:nan,1",
    "window:1,1",
    "../..",
    "é" * 300,
]


def deep(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


SCALARS = st.one_of(
    st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.floats(), st.integers(), st.none(), st.booleans()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["a", "b\n", "x" * 99]), inner)
    ),
    max_leaves=8,
) | st.sampled_from([deep(30), [1] * 5000, [[0.0] * 24] * 24])


def all_settings() -> list[type]:
    """Every class of settings that this installation has."""
    for optional in ("dsir_metric_train.registration.recipe", "dsir_metric_export.triton", "dsir_metric.torch.convex"):
        try:
            __import__(optional)
        except ImportError:
            continue
    found, waiting = [], [Settings]
    while waiting:
        new = waiting.pop().__subclasses__()
        waiting += new
        found += [cls for cls in new if cls.__module__.startswith("dsir_metric")]
    return sorted(found, key=lambda cls: cls.__qualname__)


def numbers_without_range(hint: Any, declared: bool = False) -> Iterator[Any]:
    """Number types in a hint that no `Range` bounds."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        declared = any(isinstance(limit, Range) for limit in arguments[1:])
        yield from numbers_without_range(arguments[0], declared)
    elif hint in (int, float):
        if not declared:
            yield hint
    else:
        for argument in arguments:
            yield from numbers_without_range(argument)


def lists_without_length(hint: Any, declared: bool = False) -> Iterator[Any]:
    """Lists of numbers in a hint that no `Length` bounds."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        declared = any(isinstance(limit, Length) for limit in arguments[1:])
        yield from lists_without_length(arguments[0], declared)
    elif origin is tuple and arguments[-1] is Ellipsis and get_origin(arguments[0]) is Annotated and not declared:
        yield hint
    else:
        for argument in arguments:
            yield from lists_without_length(argument)


@pytest.mark.parametrize("cls", all_settings(), ids=lambda cls: cls.__qualname__)
def test_every_number_declares_its_range(cls: type) -> None:
    free = {"parity", "validation"}  # figures of a training, for people
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if name not in free:
            assert not list(numbers_without_range(hint)), f"{cls.__qualname__}.{name}"
            assert not list(lists_without_length(hint)), f"{cls.__qualname__}.{name}"


def tree_of(cls: type) -> dict[str, Any]:
    """Settings of a class by default, as far as it has defaults."""
    required = {"sources": [{"kind": "scans", "files": ["*.nii.gz"]}], "kind": "scans", "files": ["*.nii.gz"]}
    names = {f.name for f in dataclasses.fields(cls)}
    return to_dict(from_dict(cls, {k: v for k, v in required.items() if k in names}))


def places(tree: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value of a tree."""
    if at:
        yield at
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*at, key))


def changed(tree: Any, at: tuple[Any, ...], value: object) -> Any:
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[at[0]] = changed(copy[at[0]], at[1:], value) if at[1:] else value
    return copy


def toml(value: object) -> str:
    """A value as TOML has it, or nearly."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value if v is not None) + "]"
    return (
        hex(value)
        if isinstance(value, int) and value > 10**100
        else str(value)
        if isinstance(value, int | float)
        else json.dumps(value)
    )


def written(tree: dict[str, Any]) -> bytes:
    lines = "".join(f"{json.dumps(k)} = {toml(v)}\n" for k, v in tree.items() if v is not None)
    return lines.encode("utf-8", "surrogatepass")


CARDS = (ModelCard, RegistrationCard, Offer)
RECIPES = [cls for cls in all_settings() if cls not in CARDS]


@st.composite
def settings_files(draw: st.DrawFn) -> tuple[type, bytes]:
    """A class of settings and a file for it with a few wild values, or with wild bytes."""
    cls = draw(st.sampled_from(RECIPES))
    tree = tree_of(cls)
    for _ in range(draw(st.integers(0, 3))):
        tree = changed(tree, draw(st.sampled_from(sorted(places(tree), key=str))), draw(VALUES))
    content = written(tree)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(content)))
        piece = draw(
            st.sampled_from([b"\xff", b"\0", b"[", b"'", b'"""', b"=", b"\n", b"a." * 40, b"[[", b"#", b"{" * 2000])
        )
        content = content[:at] + piece + content[at + draw(st.integers(0, 3)) :]
    return cls, content


def read_settings(cls: type, content: bytes, folder: str) -> None:
    path = Path(folder) / "settings.toml"
    path.write_bytes(content)
    loaded = load_toml(path, cls)
    assert from_dict(cls, to_dict(loaded)) == loaded


def test_any_toml(tmp_path: Path) -> None:
    with Victim(read_settings, memory_bytes=MEMORY_BYTES) as victim:

        @fuzz(200)
        @given(settings_files())
        def run(case: tuple[type, bytes]) -> None:
            assert victim.finding(*case, str(tmp_path)) is None

        run()


def cards() -> dict[type, dict[str, str]]:
    found: dict[type, dict[str, str]] = {}
    for cls, path in ((ModelCard, model_path("default")), (RegistrationCard, network_path("lapirn"))):
        found[cls] = metadata_of(open_session(path, "cpu", 1), path)
    found[Offer] = Offer(ModelCard.from_metadata(found[ModelCard], "default"), 1_000_000).to_metadata()
    return found


def read_card(cls: type, metadata: dict[str, Any]) -> None:
    if cls is Offer:
        Offer.from_bytes(json.dumps(metadata).encode(), "server")
        return
    card = cls.from_metadata(metadata, Path("model.onnx"))  # type: ignore[attr-defined]
    json.dumps(to_dict(card), ensure_ascii=False).encode()  # as `models show` prints it


JSON = st.one_of(
    VALUES.map(lambda value: json.dumps(value)),
    st.sampled_from(
        ["", "[" * 100_000 + "]" * 100_000, '{"a":' * 5000, "9" * 5000, "1e400", "NaN", '"\\ud800"', "{", "nul"]
    ),
)


def test_any_card() -> None:
    known = cards()
    with Victim(read_card, memory_bytes=MEMORY_BYTES) as victim:

        @fuzz(200)
        @given(st.sampled_from(CARDS), st.data())
        def run(cls: type, data: st.DataObject) -> None:
            names = st.sampled_from([*known[cls], "another"])
            wild = data.draw(st.dictionaries(names, JSON, min_size=1, max_size=3))
            assert victim.finding(cls, known[cls] | wild) is None

        run()


def read_offer(content: bytes) -> None:
    Offer.from_bytes(content, "server")


@pytest.mark.parametrize(
    "content", [b"null", b"[]", b'{"max_voxels": 3}', b'{"format": {}}', b"[" * 10**6, b"9" * 5000]
)
def test_any_answer_of_a_server(content: bytes) -> None:
    with pytest.raises(DsirError) as caught:
        read_offer(content)
    assert len(str(caught.value).splitlines()) == 1


CELLS = st.one_of(
    st.sampled_from(
        ["", "fixed.nii.gz", "a" * 300, "a" * 200_000, "\0", "../x", '"', '"a', "a\nb", "\ufeff", "é", "id", ","]
    ),
    st.text(max_size=8),
)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A table of pairs: wild cells, then wild bytes."""
    header = draw(
        st.lists(st.sampled_from([*COLUMNS, "fixed", "moving", "b\n" * 99]), max_size=9) | st.just(["fixed", "moving"])
    )
    out = io.StringIO()
    table = csv.writer(out, delimiter=draw(st.sampled_from(",;\t")))
    table.writerows([header, *draw(st.lists(st.lists(CELLS, min_size=len(header), max_size=len(header)), max_size=3))])
    content = out.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-8"])), "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(content)))
        content = (
            content[:at]
            + draw(st.sampled_from([b"\xff", b"\0", b'"', b"\r", b"\n", b",", b"\xef\xbb\xbf"]))
            + content[at:]
        )
    return content


def read_table(content: bytes, folder: str) -> None:
    path = Path(folder) / "pairs.csv"
    path.write_bytes(content)
    read_pairs(path, Path(folder) / "out")


def test_any_table_of_pairs(tmp_path: Path) -> None:
    with Victim(read_table, memory_bytes=MEMORY_BYTES) as victim:

        @fuzz(100)
        @given(tables())
        def run(content: bytes) -> None:
            assert victim.finding(content, str(tmp_path)) is None

        run()


COMMANDS = {
    "register": ["fixed.nii", "moving.nii", "-o", "out"],
    "register-batch": ["pairs.csv", "-o", "out"],
    "represent": ["fixed.nii", "-o", "out.mha"],
    "train": ["recipe.toml", "-o", "out"],
    "train-registration": ["recipe.toml", "-o", "out"],
    "export": ["last.ckpt", "-o", "out.onnx"],
    "models show": ["none"],
    "models verify": ["none"],
}
OPTIONS = [
    "--threads", "--seed", "--spacing", "--stages", "--intensity", "--fixed-intensity", "--backend", "--metric",
    "--init", "--refine-io", "--channels", "--device", "--model", "--config", "--memory", "--format", "--fixed-mask",
    "--tile", "--workers", "--cache-size", "--scheduler", "--for", "--steps", "--crop", "--data", "--devices",
    "--max-voxels", "--version", "--initial-transform", "--cache", "--velocity", "--dry-run", "--resume", "-q",
]  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(
        [str(n) for n in NUMBERS if n != 10**400] + ["9" * 5000, "1e400", "9" * 400 + "GB", "4GB", "-1GB", "²GB"]
    ),
    st.sampled_from([t for t in TEXTS if "\0" not in t]),
    st.sampled_from(
        ["http://[", "grpc://x", "tcp://", "a" * 300, "/dev/null", "/dev/zero", "/", ".", "pipe", "sitk", "torch"]
    ),
)  # an argument of a process has no NUL


def call(command: str, options: list[str], folder: str) -> None:
    """Run a command in an empty folder; every input it names is missing, so whatever it says is one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, [*command.split(), *COMMANDS[command], *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert (result.exit_code, len(lines)) == (2, 1), (result.exit_code, result.output)
    assert lines[0].startswith("error: ")


def test_any_options(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with Victim(call, timeout_s=60, memory_bytes=MEMORY_BYTES) as victim:

        @fuzz(60)
        @given(st.sampled_from(sorted(COMMANDS)), st.lists(st.tuples(st.sampled_from(OPTIONS), WORDS), max_size=3))
        def run(command: str, options: list[tuple[str, str]]) -> None:
            assert victim.finding(command, [word for pair in options for word in pair], str(tmp_path)) is None

        run()


def test_options_and_settings_are_judged_together(tmp_path: Path) -> None:
    (tmp_path / "dense.toml").write_text('[instance]\nparametrisation = "dense"\nmetric = "mind"\n')
    config = load_settings(tmp_path / "dense.toml", {"backend": "torch", "instance": {"metric": "nmi"}})
    assert isinstance(config, RegisterConfig)
    assert (config.backend, config.instance.metric, config.instance.parametrisation) == ("torch", "nmi", "dense")
