"""The command line: what it writes, and what it says, in one line and with exit code 2, about bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from dsir_metric_cli.main import app
from dsir_metric_cli.progress import progress_bar
from rich.console import Console

from dsir_metric import io
from dsir_metric.errors import DataError
from dsir_metric.geometry import Grid
from dsir_metric.phantom import PhantomPair
from dsir_metric.register import RegisterConfig

QUICK = ["--stages", "centre", "--spacing", "6", "--threads", "1", "-q"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def files(tmp_path: Path, pair: PhantomPair) -> dict[str, Path]:
    """The phantom on disk."""
    paths = {n: tmp_path / f"{n}.nii.gz" for n in ("fixed", "moving", "fixed_labels", "moving_labels")}
    for name, path in paths.items():
        io.write_image(getattr(pair, name), path)
    return paths


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_help_names_every_command() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for name in ("demo", "register", "represent", "backends", "models", "train", "export"):
        assert f"  {name}  " in result.stdout
        shown = call(name, "--help")
        assert shown.exit_code == 0
        assert "--debug" in shown.stdout


def test_register_writes_everything(files: dict[str, Path], tmp_path: Path, pair: PhantomPair) -> None:
    labels = ["--fixed-labels", files["fixed_labels"], "--moving-labels", files["moving_labels"]]
    out = tmp_path / "a" / "out"
    result = call("register", files["fixed"], files["moving"], "-o", out, *labels, *QUICK)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == [
        "moved.nii.gz",
        "moved_labels.nii.gz",
        "result.json",
        "transform.h5",
    ]
    report = json.loads((out / "result.json").read_text())
    assert report["files"]["fixed"] == str(files["fixed"])
    assert set(report["dice"]) == {"before", "after"}
    assert Grid.of(sitk.ReadImage(str(out / "moved.nii.gz"))).matches(Grid.of(pair.fixed))
    assert io.read_transform(out / "transform.h5").GetName() == "CompositeTransform"


def test_the_demo_measures_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = RegisterConfig(stages=("centre", "rigid"), threads=1, spacing_mm=6.25)
    monkeypatch.setattr("dsir_metric_cli.demo.settings", lambda *_: quick)
    result = call("demo", "-o", tmp_path / "demo", "--size", 32, "--fixed", "t2")
    assert result.exit_code == 0, result.output
    before, after = map(float, re.findall(r"([\d.]+) mm", result.stdout))
    assert after < before
    assert {p.name for p in (tmp_path / "demo").iterdir()} == {
        "fixed.nii.gz",
        "moving.nii.gz",
        "fixed_labels.nii.gz",
        "moving_labels.nii.gz",
        "truth.h5",
        "out",
    }
    report = json.loads((tmp_path / "demo" / "out" / "result.json").read_text())
    assert np.mean(list(report["dice"]["after"].values())) > np.mean(list(report["dice"]["before"].values()))


def test_options_go_before_the_config_file(files: dict[str, Path], tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('seed = 3\nspacing_mm = 8\nthreads = 1\nstages = ["centre"]\nmoving_intensity = "mr"\n')
    out = tmp_path / "out"
    arguments = ["--config", config, "--seed", 5, "--intensity", "window:0,1000", "--moving-intensity", "auto", "-q"]
    result = call("register", files["fixed"], files["moving"], "-o", out, *arguments)
    assert result.exit_code == 0, result.output
    used = json.loads((out / "result.json").read_text())["config"]
    assert (used["seed"], used["spacing_mm"], used["stages"]) == (5, 8.0, ["centre"])
    assert (used["fixed_intensity"], used["moving_intensity"]) == ("window:0,1000", "auto")


Spoil = Callable[[dict[str, Path], Path], list[object]]


def _with(option: str, make: Callable[[sitk.Image], sitk.Image]) -> Spoil:
    """The registration of the phantom with an image made from the fixed one given to an option."""

    def spoil(files: dict[str, Path], folder: Path) -> list[object]:
        path = folder / "made.nrrd"
        sitk.WriteImage(make(sitk.ReadImage(str(files["fixed"]))), str(path))
        return [files["fixed"], files["moving"], option, path]

    return spoil


def _moving(make: Callable[[sitk.Image], sitk.Image]) -> Spoil:
    def spoil(files: dict[str, Path], folder: Path) -> list[object]:
        path = folder / "made.nrrd"
        sitk.WriteImage(make(sitk.ReadImage(str(files["moving"]))), str(path))
        return [files["fixed"], path]

    return spoil


def _text(name: str, *option: str) -> Spoil:
    """The registration of the phantom with a text file as moving scan or as the value of an option."""

    def spoil(files: dict[str, Path], folder: Path) -> list[object]:
        (folder / name).write_text("this is = [no")
        return [files["fixed"], files["moving"], *option, folder / name] if option else [files["fixed"], folder / name]

    return spoil


def _truncated(files: dict[str, Path], folder: Path) -> list[object]:
    files["moving"].write_bytes(files["moving"].read_bytes()[:5000])
    return [files["fixed"], files["moving"]]


def _spoilt(value: float) -> Callable[[sitk.Image], sitk.Image]:
    def make(image: sitk.Image) -> sitk.Image:
        image[3, 4, 5] = value
        return image

    return make


def _shifted(image: sitk.Image, by_mm: float) -> sitk.Image:
    image.SetOrigin([o + by_mm for o in image.GetOrigin()])
    return image


BAD: dict[str, tuple[Spoil, str]] = {
    "missing": (lambda f, d: [f["fixed"], d / "none.nii.gz"], "none.nii.gz: there is no such file"),
    "truncated": (_truncated, "is truncated: 256000 bytes of voxels are promised"),
    "no image": (_text("scan.nii.gz"), "is no NIfTI image"),
    "2D": (_moving(lambda i: i[:, :, 9]), "has 2 axes (40, 40)"),
    "4D": (_moving(lambda i: sitk.JoinSeries([i, i])), "has 4 axes (40, 40, 40, 2)"),
    "NaN": (_moving(_spoilt(float("nan"))), "1 voxels are NaN or infinite"),
    "infinite": (_moving(_spoilt(float("inf"))), "1 voxels are NaN or infinite"),
    "constant": (_moving(lambda i: i * 0), "all voxels are 0"),
    "no overlap": (
        lambda f, d: [*_moving(lambda i: _shifted(i, 5000.0))(f, d), *QUICK, "--stages", "rigid"],
        "the images do not overlap",
    ),
    "empty mask": (_with("--fixed-mask", lambda i: i > 1e9), "the mask is empty"),
    "mask elsewhere": (_with("--fixed-mask", lambda i: i[1:, :, :] > 100), "lies on another grid"),
    "labels elsewhere": (
        lambda f, d: [
            *_with("--fixed-labels", lambda i: i[1:, :, :] > 100)(f, d),
            "--moving-labels",
            f["moving_labels"],
        ],
        "the labels lie on another grid",
    ),
    "labels of another scan": (
        _with("--moving-labels", lambda i: _shifted(sitk.Cast(i > 100, sitk.sitkUInt8), 5000.0)),
        "no label lies within the moving scan",
    ),
    "labels of one": (_with("--fixed-labels", lambda i: i > 100), "without moving labels"),
    "labels that are none": (_with("--moving-labels", lambda i: i), "labels are whole numbers"),
    "no transform": (_text("start.h5", "--initial-transform"), "holds no transform"),
    "no TOML": (_text("settings.toml", "--config"), "is no valid TOML"),
    "no model": (_text("model.onnx", "--model"), "model.onnx"),
    "absent model": (lambda f, d: [f["fixed"], f["moving"], "--model", "none"], "there is no model 'none'"),
    "voxels too many": (lambda f, d: [f["fixed"], f["moving"], "--spacing", "0.05"], "make the fixed scan"),
    "unknown backend": (lambda f, d: [f["fixed"], f["moving"], "--backend", "none"], "backend 'none' is unknown"),
    "unknown stage": (lambda f, d: [f["fixed"], f["moving"], "--stages", "rigid,bend"], "bend"),
    "unknown intensity": (lambda f, d: [f["fixed"], f["moving"], "--intensity", "loud"], "loud"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_written(files: dict[str, Path], tmp_path: Path, case: str) -> None:
    spoil, message = BAD[case]
    out = tmp_path / "out"
    refused(call("register", *spoil(files, tmp_path), "-o", out), message)
    assert not out.exists() or list(out.iterdir()) == []


def test_a_zero_spacing_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    image = sitk.ReadImage(str(files["moving"]))
    image.SetSpacing((1, 1, 1))
    path = tmp_path / "flat.mha"
    sitk.WriteImage(image, str(path))
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 1 0"))
    refused(call("register", files["fixed"], path, "-o", tmp_path / "out"), "the spacing has a zero")


def test_an_unwritable_output_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(call("register", "none.nii", "none.nii", "-o", tmp_path / "file"), "file: cannot be written to")
    refused(call("represent", "none.nii", "-o", tmp_path / "file" / "x.nrrd"), "file: cannot be written to")


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(path: Path, **_: object) -> sitk.Image:
        raise MemoryError(path)

    monkeypatch.setattr(io, "read_image", exhausted)
    refused(call("register", "a.nii", "b.nii", "-o", tmp_path / "out"), "not enough memory")


def test_debug_shows_where(tmp_path: Path) -> None:
    for arguments in (["register", "--debug"], ["--debug", "register"]):
        result = call(*arguments, "none.nii", "none.nii", "-o", tmp_path)
        assert isinstance(result.exception, DataError)


def test_cpp_readers_are_hushed(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "cut.mha"
    sitk.WriteImage(sitk.ReadImage(str(files["moving"])), str(path))
    path.write_bytes(path.read_bytes()[:9000])
    command = [sys.executable, "-c", "from dsir_metric_cli.main import main; main()", "represent", str(path), "-o"]
    answer = subprocess.run([*command, str(tmp_path / "x.nrrd")], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 2
    [line] = answer.stderr.splitlines()
    assert line.startswith(f"error: {path}: is truncated: 256000 bytes of voxels are promised, ")


@pytest.mark.parametrize("ending", ["nrrd", "nii.gz", "npz"])
def test_represent_writes_24_channels_on_the_grid_of_the_scan(tmp_path: Path, volume: sitk.Image, ending: str) -> None:
    scan, out = tmp_path / "scan.nrrd", tmp_path / "new" / f"dsir.{ending}"
    sitk.WriteImage(volume, str(scan))
    result = call("represent", scan, "-o", out, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    if ending == "npz":
        content = np.load(out)
        values, spacing = content["values"], content["spacing_mm"]
        assert json.loads(str(content["provenance"]))["model"]
    else:
        image = sitk.ReadImage(str(out))
        values, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()
    assert values.shape == (8, 10, 12, 24)
    np.testing.assert_allclose(np.linalg.norm(values, axis=-1), 1.0, atol=1e-5)
    assert tuple(spacing) == pytest.approx(volume.GetSpacing())


def test_represent_refuses_a_format_it_does_not_know(tmp_path: Path) -> None:
    refused(call("represent", "scan.nrrd", "-o", tmp_path / "x.xyz"), "the ending names no format")


def test_models_are_listed_shown_and_found() -> None:
    listed = call("models", "list").stdout
    assert "default" in listed
    assert "SynthSeg" in listed
    card = json.loads(call("models", "show", "default").stdout)
    assert (card["name"], card["channels"]) == ("default", 24)
    path = Path(call("models", "path", "default").stdout.strip())
    assert path.suffix == ".onnx"
    assert path.is_file()
    assert json.loads(call("models", "show", path).stdout) == card


def test_the_shipped_model_is_verified() -> None:
    result = call("models", "verify", "default")
    assert result.exit_code == 0, result.output
    told = [line.split(":")[0] for line in result.stdout.splitlines()]
    assert told == ["card", "graph", "weights", "reach", "descriptors", "reference", "parity"]


@pytest.mark.parametrize("command", ["show", "verify", "path"])
def test_a_model_that_is_not_there_is_refused(command: str, tmp_path: Path) -> None:
    refused(call("models", command, "defualt"), "no model 'defualt'; did you mean default?")
    if command != "path":
        (tmp_path / "text.onnx").write_text("no protobuf")
        refused(call("models", command, tmp_path / "text.onnx"), "is no ONNX model")


def test_progress_is_drawn() -> None:
    text = StringIO()
    with progress_bar(Console(file=text, force_terminal=True, force_interactive=True, width=80)) as show:
        show(SimpleNamespace(stage="rigid", fraction=0.5, metric=-0.25))
        show(SimpleNamespace(stage="affine", fraction=0.75, metric=None))
    assert "done" in text.getvalue()
    assert "100%" in text.getvalue()


def pieces(pair: PhantomPair) -> dict[str, object]:
    return {"transform": pair.truth, "moved": pair.moving, "report": {"new": True}, "moved_labels": pair.moving_labels}


@pytest.mark.parametrize("failing", ["transform.h5", "moved.nii.gz", "moved_labels.nii.gz"])
def test_a_writer_that_fails_midway_leaves_the_old_results(
    tmp_path: Path, pair: PhantomPair, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    names = ("transform.h5", "moved.nii.gz", "moved_labels.nii.gz", "result.json")
    for name in names:
        (tmp_path / name).write_text("old")

    def fail_on(writer: Callable[..., None]) -> Callable[..., None]:
        def write(thing: object, path: str, *rest: object, **options: object) -> None:
            if not path.endswith(failing):
                writer(thing, path, *rest, **options)
                return
            Path(path).write_text("hal")
            raise RuntimeError("sitk::ERROR\nNo space left on device")

        return write

    monkeypatch.setattr(sitk, "WriteImage", fail_on(sitk.WriteImage))
    monkeypatch.setattr(sitk, "WriteTransform", fail_on(sitk.WriteTransform))
    with pytest.raises(DataError, match="No space left on device"):
        io.write_registration(tmp_path, **pieces(pair))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(names, "old")


def test_a_kill_while_writing_leaves_the_old_results(tmp_path: Path) -> None:
    (tmp_path / "moved.nii.gz").write_text("old")
    code = """
import os, signal, sys
import SimpleITK as sitk
from dsir_metric import io
def killed(image, path, **options):
    open(path, "w").write("hal")
    os.kill(os.getpid(), signal.SIGKILL)
sitk.WriteImage = killed
io.write_registration(sys.argv[1], transform=sitk.AffineTransform(3), moved=sitk.Image(4, 4, 4, 1), report={})
"""
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=120)
    assert answer.returncode == -signal.SIGKILL
    assert (tmp_path / "moved.nii.gz").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["moved.nii.gz"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    refused(call("register", "a.nii", "b.nii", "-o", folder), "cannot be written to")


def test_the_command_is_installed() -> None:
    executable = shutil.which("dsir-metric", path=str(Path(sys.executable).parent))
    assert executable, "install the package first: pip install -e ."
    answer = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=60)
    assert answer.stdout.startswith("dsir-metric, version ")


@pytest.mark.skipif(os.name != "posix", reason="of shells of POSIX")
@pytest.mark.parametrize(
    ("streams", "code"),
    [
        (">&-", 0),
        ("2>&-", 0),
        ("<&- >&- 2>&-", 0),
        (">/dev/full", 2),
        ("2>/dev/full", 0),
        (">/dev/full 2>/dev/full", 2),
    ],
)
def test_a_stream_that_is_closed_or_full_is_no_crash(streams: str, code: int) -> None:
    if "full" in streams and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    for command in ("--version", "models list"):
        shell = f'exec "$0" -c "from dsir_metric_cli.main import main; main()" {command} {streams}'
        answer = subprocess.run(["sh", "-c", shell, sys.executable], capture_output=True, text=True, timeout=120)
        assert answer.returncode == code, answer.stderr
        assert "Traceback" not in answer.stderr


def test_demo_judges_its_seed_before_it_makes_anything(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["demo", "--seed", "-1", "-o", str(tmp_path / "out")])
    assert answer.exit_code == 2
    assert answer.stderr.startswith("error: seed must be a whole number")
    assert not (tmp_path / "out").exists()
