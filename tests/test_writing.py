"""What is written: whole or not at all, never over what is read, swept when its writer was killed, told in one line."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from dsir_metric_cli.main import app

from dsir_metric import io
from dsir_metric.errors import ConfigError, DataError
from dsir_metric.geometry import Grid
from dsir_metric.io import scratch
from dsir_metric.phantom import PhantomPair

resource = pytest.importorskip("resource")
QUICK = ("--stages", "centre", "--spacing", "6", "--threads", "1", "-q")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses longer files, as a full disk does, for everybody and everywhere."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def scans(tmp_path: Path, pair: PhantomPair) -> dict[str, Path]:
    """The phantom on disk, in a folder of its own."""
    (tmp_path / "scans").mkdir()
    paths = {n: tmp_path / "scans" / f"{n}.nii.gz" for n in ("fixed", "moving", "fixed_labels", "moving_labels")}
    for name, path in paths.items():
        io.write_image(getattr(pair, name), path)
    return paths


def registration(size: int = 20) -> dict[str, object]:
    """What `write_registration` takes, of noise that does not compress."""
    noise = np.random.default_rng(0).random((size, size, size), np.float32)
    field = sitk.GetImageFromArray(np.zeros((size, size, size, 3)), isVector=True)
    return {
        "transform": sitk.DisplacementFieldTransform(field),
        "moved": sitk.GetImageFromArray(noise),
        "report": {"made": "now"},
    }


# ---- files that belong together


def test_a_registration_replaces_all_files_of_the_one_before(tmp_path: Path) -> None:
    more = {"moved_labels": sitk.Image([9, 9, 9], sitk.sitkInt32), "inverse": sitk.AffineTransform(3)}
    io.write_registration(tmp_path, **registration(), **more)
    assert names(tmp_path) == ["inverse.h5", "moved.nii.gz", "moved_labels.nii.gz", "result.json", "transform.h5"]
    (tmp_path / "notes.txt").write_text("mine")
    io.write_registration(tmp_path, **registration(), ending=".ome.zarr")
    assert names(tmp_path) == ["moved.ome.zarr", "notes.txt", "result.json", "transform.h5"]
    io.write_registration(tmp_path, **registration(), ending=".mha")
    assert names(tmp_path) == ["moved.mha", "notes.txt", "result.json", "transform.h5"]


def test_a_report_knows_its_files(tmp_path: Path) -> None:
    io.write_registration(tmp_path, **registration())
    report = json.loads((tmp_path / "result.json").read_text())
    assert sorted(report["outputs"]) == ["moved.nii.gz", "transform.h5"]
    assert io.outputs_are_whole(tmp_path, report)
    io.write_transform(sitk.AffineTransform(3), tmp_path / "transform.h5")
    assert not io.outputs_are_whole(tmp_path, report)


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_a_report_never_stands_beside_files_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    io.write_registration(tmp_path, **registration())
    moves, replace = [], os.replace

    def interrupted(source: Path, target: Path) -> None:
        if len(moves) == stop_at:
            raise KeyboardInterrupt
        moves.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        io.write_registration(tmp_path, **registration(21))
    assert "result.json" not in names(tmp_path)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "moved.nii.gz").mkdir()
    (tmp_path / "result.json").write_text("old")
    with pytest.raises(DataError, match=r"moved\.nii\.gz: cannot be written \(a folder has this name\)"):
        io.write_registration(tmp_path, **registration())
    assert (tmp_path / "result.json").read_text() == "old"
    assert names(tmp_path) == ["moved.nii.gz", "result.json"]


# ---- no room


@pytest.mark.parametrize("most_bytes", [0, 100, 10_000, 40_000, 150_000])
@pytest.mark.parametrize("ending", io.IMAGE_ENDINGS)
def test_without_room_a_registration_leaves_what_was_there(tmp_path: Path, ending: str, most_bytes: int) -> None:
    """A field of 20^3 takes 190 kB, which HDF5 must not even begin to write."""
    io.write_registration(tmp_path, **registration(8), ending=ending)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with largest_file(most_bytes), pytest.raises(DataError) as caught:
        io.write_registration(tmp_path, **registration(20), ending=ending)
    assert str(caught.value).startswith(f"{tmp_path}/")
    assert "/." not in str(caught.value)
    assert "(File too large); raise the limit on the size of files" in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_refusal_names_the_file_the_reason_and_a_remedy(tmp_path: Path, number: int) -> None:
    with pytest.raises(DataError) as caught, io.atomic(tmp_path / "a.csv"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"{tmp_path}/a.csv: cannot be written ({os.strerror(number)}); ")
    assert "choose another folder" in str(caught.value)
    assert names(tmp_path) == []


def test_a_library_that_does_not_know_why_is_helped(tmp_path: Path) -> None:
    def fail() -> None:
        with io.atomic(tmp_path / "a.dat") as temporary, largest_file(1000):
            temporary.write_bytes(bytes(1000))
            raise RuntimeError("ITK ERROR: something")

    with pytest.raises(DataError, match="ITK ERROR: something"):  # the limit is gone when it is asked for
        fail()
    with largest_file(1000), pytest.raises(DataError, match="File too large"), io.atomic(tmp_path / "a.dat"):
        raise RuntimeError("ITK ERROR: something")


def test_long_names_fit(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 120 + ".json")
    io.write_json({}, path)
    assert names(tmp_path) == [path.name]
    with pytest.raises(DataError, match="choose a shorter name"):
        io.write_json({}, tmp_path / ("ä" * 130 + ".json"))


@pytest.mark.parametrize("count", [1, 20, 200])
def test_room_is_asked_for_that_suffices(tmp_path: Path, count: int) -> None:
    field = sitk.GetImageFromArray(np.zeros((5, 6, 7, 3)), isVector=True)
    transform = sitk.CompositeTransform([sitk.AffineTransform(3)] * count)
    transform.AddTransform(sitk.DisplacementFieldTransform(field))
    for each in (transform, sitk.Transform(transform)):
        io.write_transform(each, tmp_path / "t.h5")
        assert (tmp_path / "t.h5").stat().st_size <= io.transforms._most_bytes(each)


@pytest.mark.parametrize("output", ["r.nii.gz", "r.nii", "r.mha", "r.nrrd", "r.npz", "r.ome.zarr"])
def test_represent_without_room_is_one_line(scans: dict[str, Path], tmp_path: Path, output: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with largest_file(5000):
        result = call("represent", scans["fixed"], "-o", out / output, "--threads", 1)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {out / output}: ")
    assert result.stderr.count("\n") == 1
    assert names(out) == []


# ---- a store


def test_a_store_that_fails_leaves_nothing_though_many_threads_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("zarr")
    from dsir_metric.io import zarr_store

    written, write = [], zarr_store.Path.write_bytes

    def fails_late(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(zarr_store.Path, "write_bytes", fails_late)
    image = sitk.Image([130, 130, 130], sitk.sitkFloat32)
    with pytest.raises(DataError, match=r"a\.zarr: cannot be written \(No space left on device\)"):
        io.write_zarr(image, tmp_path / "a.zarr")
    assert names(tmp_path) == []


def test_a_store_that_is_shut_takes_nothing_and_has_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zarr")
    from zarr.core.buffer import default_buffer_prototype

    from dsir_metric.io import zarr_store

    begun, go, write = threading.Event(), threading.Event(), zarr_store.Path.write_bytes

    def slow(path: Path, content: bytes) -> int:
        begun.set()
        go.wait(60)
        return write(path, content)

    monkeypatch.setattr(zarr_store.Path, "write_bytes", slow)
    store = zarr_store.ClosingStore(tmp_path)
    value = default_buffer_prototype().buffer.from_bytes(b"chunk")
    writer = threading.Thread(target=store.set_sync, args=("a", value))
    writer.start()
    assert begun.wait(60)
    shutter = threading.Thread(target=store.shut)
    shutter.start()
    shutter.join(0.2)
    assert shutter.is_alive()  # a chunk is being written
    go.set()
    shutter.join(60)
    store.set_sync("b", value)
    assert names(tmp_path) == ["a"]
    writer.join()


# ---- what the killed leave

HOLD = """
import sys
from pathlib import Path
from dsir_metric import io
from dsir_metric.io.scratch import settled
import SimpleITK as sitk
with io.atomic(sys.argv[1]) as temporary:
    if sys.argv[2] == "transform":
        io.transforms.put_transform(sitk.AffineTransform(3), temporary)
    with settled(temporary):
        print("here", flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize(("name", "what"), [("a.json", "file"), ("a.ome.zarr", "folder"), ("a.h5", "transform")])
def test_what_a_living_process_writes_stays_and_what_a_dead_one_left_goes(tmp_path: Path, name: str, what: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / name), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        io.prepare_folder(tmp_path)
        assert len(names(tmp_path)) == 1
        process.kill()
        process.wait()
        assert len(names(tmp_path)) == 1
        io.prepare_folder(tmp_path)
    assert names(tmp_path) == []


def test_a_sweep_takes_nothing_else(tmp_path: Path) -> None:
    for name in (".1234abcd-thesis.tex", ".dsir-cache", "moved.nii.gz", ".hidden"):
        (tmp_path / name).write_text("mine")
    before = names(tmp_path)
    io.sweep(tmp_path)
    assert names(tmp_path) == before


def test_a_sweep_leaves_young_files_of_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scratch.socket, "gethostname", lambda: "elsewhere")
        path = scratch.temporary_name(tmp_path / "a.json")
    path.touch()
    io.sweep(tmp_path)
    assert path.exists()
    os.utime(path, (0, 0))
    io.sweep(tmp_path)
    assert not path.exists()


def test_without_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "lock", lambda descriptor, wait: None)
    io.write_json({}, tmp_path / "a.json")
    path = scratch.temporary_name(tmp_path / "b.json")
    path.touch()
    io.sweep(tmp_path)
    assert path.exists()
    os.utime(path, (0, 0))
    io.sweep(tmp_path)
    assert names(tmp_path) == ["a.json"]


# ---- outputs that are inputs


def same_file(path: Path, link: Path) -> Path:
    return path


def symbolic_link(path: Path, link: Path) -> Path:
    link.symlink_to(path)
    return link


def hard_link(path: Path, link: Path) -> Path:
    link.hardlink_to(path)
    return link


def linked_folder(path: Path, link: Path) -> Path:
    link.symlink_to(path.parent)
    return link / path.name


LINKS = [same_file, symbolic_link, hard_link, linked_folder]


@pytest.mark.parametrize("link", LINKS)
def test_represent_does_not_write_over_its_scan(
    scans: dict[str, Path], tmp_path: Path, link: Callable[[Path, Path], Path]
) -> None:
    content, output = scans["fixed"].read_bytes(), link(scans["fixed"], tmp_path / "link.nii.gz")
    result = call("represent", scans["fixed"], "-o", output, "--threads", 1)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "would be written over the scan" in result.stderr
    assert scans["fixed"].read_bytes() == content


@pytest.mark.parametrize("name", ["fixed", "moving", "fixed_mask", "moving_mask", "moving_labels"])
@pytest.mark.parametrize("link", LINKS)
def test_register_does_not_write_over_what_it_reads(
    scans: dict[str, Path], tmp_path: Path, name: str, link: Callable[[Path, Path], Path]
) -> None:
    """Neither by a file that it writes nor by one of another ending, which it would remove."""
    out = tmp_path / "out"
    out.mkdir()
    source = out / "moved_labels.mha"
    source.write_bytes(scans["moving_labels" if name == "moving_labels" else "fixed"].read_bytes())
    content = source.read_bytes()
    given = {"fixed": scans["fixed"], "moving": scans["moving"], name: link(source, tmp_path / "link")}
    options = [
        part for key in given if key not in ("fixed", "moving") for part in (f"--{key}".replace("_", "-"), given[key])
    ]
    result = call("register", given["fixed"], given["moving"], "-o", out, *QUICK, *options)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "would be written over" in result.stderr
    assert f"the {name.replace('_', ' ')}" in result.stderr
    assert source.read_bytes() == content
    assert names(out) == ["moved_labels.mha"]


@pytest.mark.parametrize("option", ["--initial-transform", "--config", "--model"])
def test_register_does_not_write_over_other_files_that_it_reads(
    scans: dict[str, Path], tmp_path: Path, option: str
) -> None:
    io.write_transform(sitk.AffineTransform(3), tmp_path / "transform.h5")
    if option == "--config":
        (tmp_path / "transform.h5").write_text("seed = 1\n")
    content = (tmp_path / "transform.h5").read_bytes()
    result = call(
        "register", scans["fixed"], scans["moving"], "-o", tmp_path, *QUICK, option, tmp_path / "transform.h5"
    )
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "would be written over" in result.stderr
    assert (tmp_path / "transform.h5").read_bytes() == content


def test_a_store_that_is_read_is_written_over_neither_whole_nor_in_part(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    store = tmp_path / "a.ome.zarr"
    io.write_zarr(sitk.Image([8, 8, 8], sitk.sitkFloat32), store)
    for source in (store, store / "0", Path(f"{store}#channel=0")):
        for output in (store, store / "0" / "x.mha", tmp_path / "none" / ".." / "a.ome.zarr"):
            (tmp_path / "none").mkdir(exist_ok=True)
            with pytest.raises(ConfigError, match="would be written over the scan"):
                io.check_apart([("the scan", source)], [output])
        io.check_apart([("the scan", source)], [tmp_path / "b.ome.zarr", tmp_path / "x.mha"])
    with pytest.raises(ConfigError, match="would be written over the mask"):
        io.check_apart([("the mask", store / "zarr.json")], [store])


def test_one_pair_does_not_write_over_the_scan_of_another(scans: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    out, table = tmp_path / "out", tmp_path / "pairs.csv"
    (out / "a").mkdir(parents=True)
    moved = out / "a" / "moved.nii.gz"
    moved.write_bytes(scans["moving"].read_bytes())
    table.write_text(f"id,fixed,moving\na,{scans['fixed']},{scans['moving']}\nb,{scans['fixed']},{moved}\n")
    result = call("register-batch", table, "-o", out, *QUICK)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "would be written over the moving of" in result.stderr
    assert "row 3" in result.stderr
    assert names(out) == ["a"]


def test_the_table_of_results_does_not_take_the_place_of_the_table_of_pairs(
    scans: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    table = tmp_path / "table.csv"
    table.write_text(f"fixed,moving\n{scans['fixed']},{scans['moving']}\n")
    content = table.read_bytes()
    result = call("register-batch", table, "-o", tmp_path, *QUICK)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert table.read_bytes() == content


def test_channels_for_another_program_do_not_take_the_place_of_the_scans(
    scans: dict[str, Path], tmp_path: Path
) -> None:
    scan = tmp_path / "fixed.nii"  # as the images of greedy are called
    io.write_image(io.read_image(scans["fixed"]), scan)
    content = scan.read_bytes()
    result = call("represent", scan, scans["moving"], "--for", "greedy", "-o", tmp_path, "--threads", 1, "--spacing", 8)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert scan.read_bytes() == content
    assert names(tmp_path) == ["fixed.nii", "scans"]


# ---- signals and the screen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_a_library_swallows_ends_the_command_all_the_same(
    tmp_path: Path, scans: dict[str, Path], number: signal.Signals
) -> None:
    """SimpleITK makes a RuntimeError of what a callback raises, and prints a traceback."""
    code = f"""
import os, signal, sys
import SimpleITK as sitk
from dsir_metric_cli import represent
from dsir_metric_cli.main import main
def compute(*_):
    image = sitk.Image([64, 64, 64], sitk.sitkFloat32)
    smooth = sitk.DiscreteGaussianImageFilter()
    smooth.AddCommand(sitk.sitkStartEvent, lambda: os.kill(os.getpid(), {int(number)}))
    smooth.Execute(image)
represent.write = compute
sys.argv[1:] = ["represent", {str(scans["fixed"])!r}, "-o", {str(tmp_path / "r.mha")!r}]
main()
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 128 + number, process.stderr
    assert process.stderr == f"error: stopped by {number.name}; no file is half-written\n"


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    code = """
import os, signal
from dsir_metric_cli.stop import heed_signals, received
signal.signal(signal.SIGHUP, signal.SIG_IGN)
heed_signals()
os.kill(os.getpid(), signal.SIGHUP)
assert received() is None
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_what_cannot_be_printed_is_one_line() -> None:
    main = "from dsir_metric_cli.main import main; main()"
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-c", main, "models", "show", "default"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("error: ")
    assert "No space left on device" in process.stderr


# ---- long tables


def test_a_long_table_reads_each_header_once_and_shows_that_it_lives(
    scans: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsir_metric.batch import pairs as room

    read, made = [], []
    monkeypatch.setattr(room.io, "read_grid", lambda path, **_: read.append(path) or Grid((9, 9, 9)))
    working = room.working_grids
    monkeypatch.setattr(room, "working_grids", lambda *a, **k: made.append(a) or working(*a, **k))
    table = tmp_path / "pairs.csv"
    table.write_text("id,fixed,moving\n" + "".join(f"p{k},{scans['fixed']},{scans['moving']}\n" for k in range(2000)))
    rows: list[int] = []
    found = room.read_pairs(table, tmp_path / "out", on_row=rows.append)
    assert rows == list(range(2, 2002))
    assert len(found) == 2000
    assert (len(read), len(made)) == (2, 1)


def test_signs_of_life_are_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dsir_metric_cli import register_batch
    from rich.console import Console

    now = [0.0]
    monkeypatch.setattr(register_batch.time, "monotonic", lambda: now[0])
    sign = register_batch._Sign(Console(stderr=True), "{} rows checked")
    for row in range(1, 1_000_001, 100_000):
        sign(row)
        now[0] += 2.0
    assert capsys.readouterr().err.splitlines() == [
        "300,001 rows checked",
        "600,001 rows checked",
        "900,001 rows checked",
    ]
