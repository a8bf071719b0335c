"""ONNX Runtime: found, sane, and on the device that was asked for."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from dsir_metric.bounds import Bytes, Threads
from dsir_metric.config import checked
from dsir_metric.errors import MissingDependencyError, ModelFileError
from dsir_metric.represent.device import Device

__all__ = ["metadata_of", "onnxruntime", "open_or_fall_back", "open_session"]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
# TensorFloat-32 would round descriptors to three digits.
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
_ERROR, _NOTHING = 3, 4  # severities of ONNX Runtime's log


def onnxruntime() -> ModuleType:
    """The `onnxruntime` module.

    Raises
    ------
    MissingDependencyError
        If it is not installed, or if its CPU and its GPU build both are: they overwrite each other's files.
    """
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise MissingDependencyError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; run "
            "`pip uninstall -y onnxruntime onnxruntime-gpu`, then install dsir-metric[cpu] or dsir-metric[gpu] again"
        )
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingDependencyError(
            f"onnxruntime cannot be imported ({error}); install dsir-metric[cpu], or dsir-metric[gpu] for CUDA"
        ) from error


def open_session(
    path: Path, device: str = "auto", threads: int | None = None, gpu_memory_bytes: int | None = None
) -> Any:
    """An `onnxruntime.InferenceSession`; see `open_or_fall_back`."""
    return open_or_fall_back(path, device, threads, gpu_memory_bytes)[0]


def open_or_fall_back(
    path: Path, device: str = "auto", threads: int | None = None, gpu_memory_bytes: int | None = None
) -> tuple[Any, str]:
    """An `onnxruntime.InferenceSession`, and why it is on the CPU although this ONNX Runtime has CUDA.

    Parameters
    ----------
    path : Path
        An ONNX file.
    device : str
        "auto" (CUDA where it can be used), "cpu", "cuda", or "cuda:1" for the second GPU.
    threads : int or None
        Threads of one operator on the CPU; None lets ONNX Runtime take every core.
    gpu_memory_bytes : int or None
        The most that ONNX Runtime takes on the GPU.

    Returns
    -------
    session : onnxruntime.InferenceSession
    obstacle : str
        Only for "auto": that CUDA cannot be used, with ONNX Runtime's reason. Empty where it is used, and where the
        installed ONNX Runtime is the one for the CPU.

    Raises
    ------
    ConfigError
        If `device`, `threads` or `gpu_memory_bytes` is none of these.
    MissingDependencyError
        See `onnxruntime`; or if CUDA was asked for by name and cannot be used.
    ModelFileError
        If the file is no ONNX model that this ONNX Runtime can run.
    """
    wanted = Device.of(device)
    threads = checked(Threads | None, threads, "threads")
    gpu_memory_bytes = checked(Bytes | None, gpu_memory_bytes, "gpu_memory_bytes")
    runtime, obstacle = onnxruntime(), ""
    listed = _CUDA in runtime.get_available_providers()  # by the GPU build, even where no GPU is
    if wanted.kind == "cuda" and not listed:
        raise _not_there(device, f"the installed ONNX Runtime has only {', '.join(runtime.get_available_providers())}")
    if wanted.kind != "cpu" and listed:
        session, reason = _on_cuda(runtime, path, wanted.index, threads, gpu_memory_bytes)
        if session is not None:
            return session, ""
        if wanted.kind == "cuda":
            raise _not_there(device, reason)
        obstacle = f"ONNX Runtime for CUDA is installed and cannot use it, the network runs on the CPU: {reason}"
    try:
        return runtime.InferenceSession(str(path), sess_options=_options(runtime, threads), providers=[_CPU]), obstacle
    except Exception as error:  # ONNX Runtime's classes have no common base of their own
        raise ModelFileError(f"{path}: is no ONNX model that ONNX Runtime can open ({_first_line(error)})") from error


def _on_cuda(
    runtime: Any, path: Path, index: int, threads: int | None, gpu_memory_bytes: int | None
) -> tuple[Any, str]:
    """A session on a GPU, or None and the reason why there is none."""
    _preload(runtime)
    cuda = {**_CUDA_OPTIONS, "device_id": str(index)}
    if gpu_memory_bytes is not None:
        cuda["gpu_mem_limit"] = str(gpu_memory_bytes)
    options = _options(runtime, threads)
    options.log_severity_level = _ERROR
    said: list[str] = []
    try:
        with _heard(said):
            session = runtime.InferenceSession(
                str(path), sess_options=options, providers=[(_CUDA, cuda), _CPU], enable_fallback=0
            )
    except Exception as error:  # see `open_or_fall_back`
        return None, _first_line(error)
    if session.get_providers()[0] == _CUDA:
        return session, ""
    return None, _reason(said) or "CUDA did not start and ONNX Runtime gave no reason"


def _options(runtime: Any, threads: int | None) -> Any:
    options = runtime.SessionOptions()
    options.enable_cpu_mem_arena = False  # an arena keeps every block it ever needed: twice the memory
    options.enable_mem_pattern = False  # one block for all that a shape seen twice needs: half as much again
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = _NOTHING  # what fails is raised
    return options


@cache
def _preload(runtime: Any) -> None:
    """Load the CUDA libraries that pip installed, which the linker would not find; once a process.

    What cannot be loaded is told when a session starts.
    """
    load = getattr(runtime, "preload_dlls", None)  # since ONNX Runtime 1.21
    if load is not None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            load()


@contextlib.contextmanager
def _heard(said: list[str]) -> Iterator[None]:
    """Collect what C++ writes to standard error; ONNX Runtime tells in no other way why a provider cannot start."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said += file.read().decode(errors="replace").splitlines()


def _reason(said: list[str]) -> str:
    """The first error in lines of ONNX Runtime's log, without colours, time, file and function."""
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in said]
    errors = [line for line in plain if re.search(r"\[E:onnxruntime", line)] or [line for line in plain if line.strip()]
    return re.sub(r"^.*?\[[A-Z]:onnxruntime[^\]]*\]\s*", "", errors[0]).strip() if errors else ""


def _not_there(device: str, reason: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"device {device} was asked for and cannot be used: {reason}; install dsir-metric[gpu] and its driver and "
        "CUDA libraries, or choose device cpu"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def metadata_of(session: Any, path: Path) -> dict[str, str]:
    """What a model file says about itself: `metadata_props` of the open `session`; `path` is named in errors.

    Raises
    ------
    ModelFileError
        If it is not UTF-8.
    """
    try:
        found: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: the model card is damaged ({error}); make the file again") from error
    return found


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
