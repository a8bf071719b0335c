"""Where networks run: what is asked for by name is used or refused, and "auto" says why it is on the CPU.

There is no GPU where the tests run: ONNX Runtime is replaced by one that behaves as its build for CUDA does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from dsir_metric_cli.main import app

from dsir_metric.errors import ConfigError, MissingDependencyError
from dsir_metric.phantom import make_pair
from dsir_metric.register import RegisterConfig, register
from dsir_metric.represent import Representer, runtime
from dsir_metric.represent.device import Device

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# As ONNX Runtime 1.20 for CUDA writes it, in colours, where cuBLAS is absent.
LOG = (
    b"\x1b[1;31m2025-01-01 12:00:00.123 [E:onnxruntime:Default, provider_bridge_ort.cc:1862 TryGetProviderInfo_CUDA] "
    b"Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared object "
    b"file\x1b[m\n2025-01-01 12:00:00.124 [W:onnxruntime:Default, state.cc:993] Failed to create it.\n"
)
REASON = "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared"
Start = Callable[[], list[str]]


class Fake:
    """ONNX Runtime for CUDA; sessions run on the CPU, whatever they say."""

    def __init__(self, start: Start) -> None:
        self.start, self.asked, self.options = start, [], []
        self.preloaded = 0
        self.SessionOptions = onnxruntime.SessionOptions

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def preload_dlls(self) -> None:
        self.preloaded += 1
        print("Failed to load libcudnn.so.9")  # noqa: T201 as it does

    def InferenceSession(self, path: str, sess_options: Any, providers: list[Any], **more: int) -> Any:
        self.asked.append(providers)
        session = onnxruntime.InferenceSession(path, sess_options=sess_options, providers=[CPU])
        if providers == [CPU]:
            return session
        assert more == {"enable_fallback": 0}  # else it prints, and hides the reason
        shown = self.start()
        return SimpleNamespace(
            get_providers=lambda: shown,
            get_modelmeta=session.get_modelmeta,
            run=session.run,
            get_inputs=session.get_inputs,
            get_outputs=session.get_outputs,
            get_provider_options=lambda: {CUDA: {"device_id": "1"}, CPU: {}},
        )


def starts() -> list[str]:
    return [CUDA, CPU]


def logs() -> list[str]:
    os.write(2, LOG)
    return [CPU]


def stays_silent() -> list[str]:
    return [CPU]


def raises() -> list[str]:
    raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected\nmore")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Start], Fake]:
    def install(start: Start) -> Fake:
        made = Fake(start)
        monkeypatch.setattr(runtime, "onnxruntime", lambda: made)
        return made

    return install


@pytest.mark.parametrize(
    ("name", "device"),
    [("auto", Device("auto")), ("cpu", Device("cpu")), ("cuda", Device("cuda", 0)), ("cuda:12", Device("cuda", 12))],
)
def test_names_of_devices(name: str, device: Device) -> None:
    assert Device.of(name) == device


@pytest.mark.parametrize(
    "name", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:1", "auto:0", "CUDA", "cuda:1\n", "cuda:9999"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or cuda:N"):
        Device.of(name)


@pytest.mark.parametrize(
    ("start", "reason"), [(logs, REASON), (raises, "CUDA failure 100"), (stays_silent, "no reason")]
)
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_cannot_be_used_is_an_error_when_named(
    start: Start, reason: str, name: str, fake: Callable[[Start], Fake], capfd: pytest.CaptureFixture[str]
) -> None:
    fake(start)
    with pytest.raises(
        MissingDependencyError, match=f"device {name} was asked for and cannot be used: .*{reason}"
    ) as e:
        Representer(device=name, threads=1)
    assert "\n" not in str(e.value)
    assert "\x1b" not in str(e.value)
    assert capfd.readouterr() == ("", "")  # neither what C++ writes nor what preload_dlls prints


def test_the_build_for_the_cpu_says_what_it_has() -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(MissingDependencyError, match=r"has only .*CPUExecutionProvider; install dsir-metric\[gpu\]"):
        Representer(device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Representer(device="auto").obstacle == ""


def test_auto_says_why_it_is_on_the_cpu(fake: Callable[[Start], Fake], capfd: pytest.CaptureFixture[str]) -> None:
    fake(logs)
    with pytest.warns(RuntimeWarning, match="the network runs on the CPU: Failed to load library") as told:
        representer = Representer(device="auto", threads=1)
    assert told[0].filename == __file__
    assert REASON in representer.obstacle
    assert representer.provider == CPU
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_a_gpu_that_starts_is_used(name: str, fake: Callable[[Start], Fake]) -> None:
    made = fake(starts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        representer = Representer(device=name, gpu_memory_bytes=3_000_000_000, threads=1)
    assert representer.provider == CUDA
    (kind, options), other = made.asked[0]
    assert (kind, other) == (CUDA, CPU)
    assert options["device_id"] == ("1" if name == "cuda:1" else "0")
    assert options["gpu_mem_limit"] == "3000000000"
    assert made.preloaded == 1


def test_the_cpu_loads_no_cuda_libraries(fake: Callable[[Start], Fake]) -> None:
    made = fake(raises)
    assert Representer(device="cpu", threads=1).provider == CPU
    assert made.preloaded == 0


def test_memory_on_the_gpu_is_positive() -> None:
    with pytest.raises(ConfigError, match=r"gpu_memory_bytes must be a whole number from 1 .*, got 0"):
        Representer(device="cpu", gpu_memory_bytes=0)


def test_a_fall_back_is_in_the_result(fake: Callable[[Start], Fake]) -> None:
    fake(logs)
    pair = make_pair(16, 11.0, amplitude_mm=3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        result = register(pair.fixed, pair.moving, RegisterConfig(stages=("centre",), threads=1))
    assert any(REASON in warning for warning in result.warnings)
    assert not any(
        "CUDA" in w
        for w in register(pair.fixed, pair.moving, RegisterConfig(stages=("centre",), device="cpu")).warnings
    )


def test_no_fall_back_no_noise() -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    pair = make_pair(16, 11.0, amplitude_mm=3.0)
    result = register(pair.fixed, pair.moving, RegisterConfig(stages=("centre",), threads=1))
    assert not any("CUDA" in warning for warning in result.warnings)


@pytest.mark.parametrize("backend", ["sitk", "lapirn", "torch"])
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_the_command_refuses_a_gpu_that_is_not_there(backend: str, device: str, tmp_path: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    if backend == "torch":
        pytest.importorskip("torch")
    pair = make_pair(16, 11.0)
    for name in ("fixed", "moving"):
        sitk.WriteImage(getattr(pair, name), str(tmp_path / f"{name}.nii.gz"))
    files = [str(tmp_path / f"{name}.nii.gz") for name in ("fixed", "moving")]
    out = tmp_path / "out"
    answer = CliRunner().invoke(app, ["register", *files, "-o", str(out), "--backend", backend, "--device", device])
    assert (answer.exit_code, answer.stderr.count("\n")) == (2, 1)
    assert answer.stderr.startswith(f"error: device {device} was asked for and ")
    assert not list(out.glob("*"))


def test_auto_in_the_command(tmp_path: Path) -> None:
    """The whole command with the build for CUDA and no library of it: exit code 0, and the reason in result.json."""
    pair = make_pair(16, 11.0)
    for name in ("fixed", "moving"):
        sitk.WriteImage(getattr(pair, name), str(tmp_path / f"{name}.nii.gz"))
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import test_represent_device as t\n"
        "from dsir_metric.represent import runtime\n"
        "made = t.Fake(t.logs); runtime.onnxruntime = lambda: made\n"
        "from dsir_metric_cli.main import main; main()\n"
    )
    files = [str(tmp_path / f"{name}.nii.gz") for name in ("fixed", "moving")]
    command = [sys.executable, "-c", script, str(Path(__file__).parent), "register", *files]
    answer = subprocess.run(
        [*command, "-o", str(tmp_path / "out"), "--stages", "centre", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert " ".join(answer.stderr.split()).count(REASON) == 1  # however the lines are broken
    assert any(REASON in warning for warning in json.loads((tmp_path / "out" / "result.json").read_text())["warnings"])
