"""ONNX Runtime: found, sane, and on the device that was asked for."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from dsir_metric.bounds import Threads
from dsir_metric.config import checked
from dsir_metric.errors import ConfigError, MissingDependencyError, ModelFileError

__all__ = ["DEVICES", "metadata_of", "onnxruntime", "open_session"]

DEVICES = ("auto", "cpu", "cuda")
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
# TensorFloat-32 would round descriptors to three digits.
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


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


def open_session(path: Path, device: str = "auto", threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession`; where CUDA was to be expected and does not start, the CPU and one warning.

    Parameters
    ----------
    path : Path
        An ONNX file.
    device : str
        "auto" (CUDA where ONNX Runtime has it), "cpu" or "cuda".
    threads : int or None
        Threads of one operator on the CPU; None lets ONNX Runtime take every core.

    Raises
    ------
    ConfigError
        If `device` or `threads` is none of these.
    MissingDependencyError
        See `onnxruntime`.
    ModelFileError
        If the file is no ONNX model that this ONNX Runtime can run.
    """
    if device not in DEVICES:
        raise ConfigError(f"device {device!r} is unknown; use one of {', '.join(DEVICES)}")
    threads = checked(Threads | None, threads, "threads")
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.enable_cpu_mem_arena = False  # an arena keeps every block it ever needed: twice the memory
    options.enable_mem_pattern = False  # one block for all that a shape seen twice needs: half as much again
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # a provider that cannot start is told by `_tell_fallback`, not on stderr
    listed = _CUDA in runtime.get_available_providers()  # listed by the GPU build even where no GPU is
    providers = [(_CUDA, _CUDA_OPTIONS), _CPU] if listed and device != "cpu" else [_CPU]
    try:
        session = runtime.InferenceSession(str(path), sess_options=options, providers=providers)
    except Exception as error:  # ONNX Runtime's classes have no common base of their own
        reason = " ".join(str(error)[:300].split())
        raise ModelFileError(f"{path}: is no ONNX model that ONNX Runtime can open ({reason})") from error
    if (listed or device == "cuda") and device != "cpu" and session.get_providers()[0] != _CUDA:
        _tell_fallback()
    return session


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


@cache
def _tell_fallback() -> None:
    """Warn, once a process."""
    warnings.warn(
        "CUDA did not start in ONNX Runtime, the network runs on the CPU; check the driver, CUDA and cuDNN, and that "
        "dsir-metric[gpu] is installed, or choose device='cpu'",
        RuntimeWarning,
        stacklevel=5,
    )
