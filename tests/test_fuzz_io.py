"""Files that lie are refused in one line: no traceback, signal or hang, and no memory for what is not there."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from fuzzing import Victim, fuzz
from hypothesis import given
from hypothesis import strategies as st

from dsir_metric import io
from dsir_metric.geometry import Grid

MEMORY_BYTES = 4 << 30  # of the address space, half of which the libraries take
IMAGES = (
    *("a.nii", "a.nii.gz", "a.hdr", "a.img.gz", "a.nrrd", "a.zipped.nrrd", "a.nhdr"),
    *("a.mha", "a.zipped.mha", "a.mhd", "a.zipped.mhd", "a.gipl", "a.gipl.gz"),
)
TRANSFORMS = ("t.h5", "chain.h5", "t.tfm", "chain.tfm", "t.mat", "t.xfm", "warp.nii.gz", "warp.nrrd", "warp.mha")
INTEGERS = (0, 1, -1, 2, 4, 8, 127, 255, 348, 540, 32767, -32768, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1)
FLOATS = (0.0, -1.0, 1e-45, 1e30, -1e30, 352.5, 2.0**31, float("nan"), float("inf"), -float("inf"))
WORDS = (
    *("0", "-1", "1", "2", "4", "9", "16", "17", "300", "2000000000", "99999999999", "9" * 30, "1e400", "nan", "-inf"),
    *(
        "",
        "x" * 5000,
        "1 " * 3000,
        "%s%s%n",
        "%03d.raw 1 9 1",
        "LIST",
        "LOCAL",
        "../../x",
        "/dev/zero",
        "True",
        "False",
    ),
    *("MET_LONG", "MET_OTHER", "double", "block", "none", "bzip2", "hex", "ascii", "\xe5\xff", "\0", "0 0 0"),
    *("1 1 1 1 1 1 1 1 1", "99999999999 99999999999 99999999999", "65536 65536 65536", "(nan,0,0) (0,1,0) (0,0,1)"),
    *("CompositeTransform_double_3_3", "BSplineTransform_double_3_3", "DisplacementFieldTransform_double_3_3"),
)
Edit = tuple[Any, ...]

share = st.floats(0, 1, exclude_max=True)
edits = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), share),
        st.tuples(st.just("byte"), share, st.integers(0, 255)),
        st.tuples(st.just("pack"), st.integers(0, 360), st.sampled_from("bhiq"), st.sampled_from(INTEGERS)),
        st.tuples(st.just("pack"), st.integers(0, 90).map(lambda n: 4 * n), st.just("f"), st.sampled_from(FLOATS)),
        st.tuples(st.just("word"), st.integers(0, 30), st.sampled_from(WORDS)),
        st.tuples(st.just("line"), st.integers(0, 30), st.sampled_from(["drop", "twice", "last"])),
        st.tuples(st.just("append"), st.binary(max_size=40)),
    ),
    min_size=1,
    max_size=3,
)


def edited(content: bytes, edit: Edit) -> bytes:
    """A file with one thing wrong; lines are those of a header in text."""
    kind, *how = edit
    if kind == "cut":
        return content[: int(how[0] * len(content))]
    if kind == "append":
        return content + how[0]
    if kind == "byte":
        at = int(how[0] * len(content))
        return content[:at] + bytes([how[1]]) + content[at + 1 :]
    if kind == "pack":
        at, form, value = how
        value = value if form == "f" else value % 2 ** (8 * struct.calcsize(form))
        packed = struct.pack("<" + (form if form == "f" else form.upper()), value)
        return content[:at] + packed + content[at + len(packed) :]
    return _edited_line(content, kind, *how)


def _edited_line(content: bytes, kind: str, number: int, how: str) -> bytes:
    lines = content.split(b"\n")
    number %= max(min(len(lines), 20), 1)
    line = lines[number]
    if kind == "word":
        mark = next((m for m in (b" = ", b": ", b":") if m in line), b"")
        lines[number] = line.split(mark)[0] + mark + how.encode("latin-1") if mark else how.encode("latin-1")
    elif how == "drop":
        del lines[number]
    else:
        lines.insert(number if how == "twice" else len(lines), line)
    return b"\n".join(lines)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sound files, one of every kind."""
    folder = tmp_path_factory.mktemp("seeds")
    rng = np.random.default_rng(0)
    image = sitk.GetImageFromArray(rng.integers(0, 1000, (5, 6, 7)).astype(np.int16))
    image.SetSpacing((1.5, 1, 2))
    floats = sitk.Cast(image, sitk.sitkFloat32) / 7
    for name in IMAGES:
        (folder / name).mkdir()
        kind = image if "gipl" in name or "mh" in name else floats
        sitk.WriteImage(kind, str(folder / name / name), useCompression="zipped" in name)
    warp = sitk.GetImageFromArray(rng.random((4, 5, 6, 3)), isVector=True)
    affine = sitk.AffineTransform([1, 0.1, 0, 0, 1, 0, 0, 0, 1], [1, 2, 3])
    spline = sitk.BSplineTransformInitializer(image, [2, 2, 2])
    chain = sitk.CompositeTransform([affine, spline, sitk.DisplacementFieldTransform(sitk.Image(warp))])
    for name in TRANSFORMS:
        (folder / name).mkdir()
        if name.startswith("warp"):
            sitk.WriteImage(warp, str(folder / name / name))
        else:
            sitk.WriteTransform(chain if name.startswith("chain") else affine, str(folder / name / name))
    return folder


@pytest.fixture(scope="module")
def victims() -> Iterator[Callable[[Callable[..., object]], Victim]]:
    """A victim for each function, started when it is needed."""
    with ExitStack() as stack:
        started: dict[Callable[..., object], Victim] = {}

        def victim(function: Callable[..., object]) -> Victim:
            if function not in started:
                started[function] = stack.enter_context(Victim(function, 60, MEMORY_BYTES))
            return started[function]

        yield victim


def spoil(folder: Path, target: Path, which: int, inside: bool, changes: list[Edit]) -> None:
    """Copy a sound file, with all that belongs to it, and spoil one of them; `inside` what is zipped."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    files = sorted(target.iterdir())
    path = files[which % len(files)]
    content = path.read_bytes()
    zipped = inside and content[:2] == b"\x1f\x8b"
    content = gzip.decompress(content) if zipped else content
    for change in changes:
        content = edited(content, change)
    path.write_bytes(gzip.compress(content, 1) if zipped else content)


READERS = (io.read_image, io.read_image, io.read_labels, io.read_grid, io.read_mask)


@fuzz(60)
@given(
    name=st.sampled_from(IMAGES),
    which=st.integers(0, 1),
    inside=st.booleans(),
    changes=edits,
    reader=st.sampled_from(READERS),
)
def test_images(
    seeds: Path,
    tmp_path_factory: pytest.TempPathFactory,
    victims: Callable[[Callable[..., object]], Victim],
    name: str,
    which: int,
    inside: bool,
    changes: list[Edit],
    reader: Callable[..., object],
) -> None:
    target = tmp_path_factory.getbasetemp() / "image"
    spoil(seeds / name, target, which, inside, changes)
    like = (Grid((7, 6, 5), (1.5, 1, 2)),) if reader is io.read_mask else ()
    assert victims(reader).finding(target / name, *like) is None


@fuzz(30)
@given(name=st.sampled_from(TRANSFORMS), which=st.integers(0, 1), inside=st.booleans(), changes=edits)
def test_transforms(
    seeds: Path,
    tmp_path_factory: pytest.TempPathFactory,
    victims: Callable[[Callable[..., object]], Victim],
    name: str,
    which: int,
    inside: bool,
    changes: list[Edit],
) -> None:
    target = tmp_path_factory.getbasetemp() / "transform"
    spoil(seeds / name, target, which, inside, changes)
    assert victims(io.read_transform).finding(target / name) is None


HOSTILE: tuple[Any, ...] = (
    *(None, True, "", "x", "x" * 5000, [], {}, [[]], [1], 0, 1, -1, 3, 2.5, 10**5, 10**9, 10**15, 2**63, 10**30, 1e308),
    *(
        float("nan"),
        float("inf"),
        [0, 0, 0],
        [1, 1, 1],
        [-1, 2, 3],
        [10**5] * 3,
        [10**12] * 3,
        [1] * 9,
        [float("nan")] * 3,
    ),
    *("../..", "/etc", "0/../0", "int8", "float64", "complex64", "object", "<f8", "|O", "bytes", "pickle", "\ud800"),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything in a value of JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Replace one part of a value of JSON."""
    if not path:
        return new
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zarr")
    folder = tmp_path_factory.mktemp("stores")
    image = sitk.GetImageFromArray(np.random.default_rng(0).random((5, 6, 7), np.float32))
    for version in ("0.4", "0.5"):
        io.write_zarr(image, folder / f"{version}.ome.zarr", version=version)
    foreign = folder / "foreign.ome.zarr"
    shutil.copytree(folder / "0.5.ome.zarr", foreign)
    said = json.loads((foreign / "zarr.json").read_text())
    del said["attributes"]["dsir_metric"]
    (foreign / "zarr.json").write_text(json.dumps(said))
    return folder


@fuzz(80)
@given(
    name=st.sampled_from(["0.4.ome.zarr", "0.5.ome.zarr", "foreign.ome.zarr"]),
    which=st.integers(0, 5),
    wrong=st.lists(st.tuples(share, st.sampled_from(HOSTILE)), max_size=2),
    changes=st.one_of(st.just([]), edits),
    reader=st.sampled_from([io.read_image, io.read_grid, io.read_labels]),
)
def test_stores(
    stores: Path,
    tmp_path_factory: pytest.TempPathFactory,
    victims: Callable[[Callable[..., object]], Victim],
    name: str,
    which: int,
    wrong: list[tuple[float, Any]],
    changes: list[Edit],
    reader: Callable[..., object],
) -> None:
    target = tmp_path_factory.getbasetemp() / "x.ome.zarr"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(stores / name, target)
    files = sorted(p for p in target.rglob("*") if p.is_file())
    path = files[which % len(files)]
    content = path.read_bytes()
    if content[:1] == b"{":
        said = json.loads(content)
        for where, value in wrong:
            ways = places(said)
            said = put(said, ways[int(where * len(ways))], deepcopy(value))
        content = json.dumps(said).encode()
    for change in changes:
        content = edited(content, change)
    path.write_bytes(content)
    assert victims(reader).finding(target) is None
