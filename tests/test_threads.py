"""One thread enters no pool; many share one; forked processes and several Python threads get the same answers."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import dsir_metric.threads as threads_module
from dsir_metric.errors import ConfigError, ModelFileError, RegistrationError
from dsir_metric.metric import information, kernel, lattice, transforms
from dsir_metric.phantom import make_pair
from dsir_metric.register import pair as levels
from dsir_metric.represent import Representer, loading
from dsir_metric.represent.zoo import model_path
from dsir_metric.threads import at_most, most_threads, one_for_blas, share, threads
from dsir_metric.torch import backend
from dsir_metric.torch.threads import torch_threads

LIMIT_S = 300  # a hang ends a test, not the run; the slowest takes 20 s on a free core
FORKS = "fork" in multiprocessing.get_all_start_methods()

PRELUDE = """
import multiprocessing, sys, threading
from dataclasses import replace
import SimpleITK as sitk
from dsir_metric.phantom import make_pair
from dsir_metric.register import DeformableConfig, RegisterConfig, register
from dsir_metric.represent import Representer
from dsir_metric.sitk import ImageRegistrationMethod

PAIR = make_pair(24, 8.0)
RIGID = RegisterConfig(stages=("centre", "rigid"), device="cpu")
POINT = (10.0, 20.0, 30.0)
OPENED = []

def registered(count, **changes):
    return register(PAIR.fixed, PAIR.moving, replace(RIGID, threads=count, **changes)).transform.TransformPoint(POINT)

def executed(count):
    method = ImageRegistrationMethod()
    method.SetMetricAsDNSCosine(device="cpu")
    method.SetNumberOfThreads(count)
    method.SetOptimizerAsGradientDescent(1.0, 2)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(sitk.Euler3DTransform(), inPlace=False)
    return method.Execute(PAIR.fixed, PAIR.moving).TransformPoint(POINT)

def represented(count):
    OPENED[:] = OPENED or [Representer(device="cpu", threads=count)]
    values = OPENED[0](PAIR.fixed).values.tobytes()
    OPENED[:] = [Representer(device="cpu", threads=count)]  # ends the session that a forked worker got from its parent
    return values

def deformed(count):
    lattice = DeformableConfig(lattice_mm=(60.0,), iterations=(3,))
    return registered(count, backend="torch", stages=("centre", "deformable"), deformable=lattice)

def in_workers(start, work, count):
    with multiprocessing.get_context(start).Pool(2) as pool:
        return pool.map_async(work, [count] * 2).get(100)
"""


def run(tmp_path: Path, script: str, **environment: str) -> str:
    """Standard output of a script in a process of its own; workers that are spawned import it."""
    file = tmp_path / "script.py"
    body = "".join(f"    {line}\n" for line in script.strip().splitlines())
    file.write_text(f'{PRELUDE}\nif __name__ == "__main__":\n{body}')
    more = {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", **environment}
    found = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, timeout=LIMIT_S, env={**os.environ, **more}
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.skipif(not FORKS, reason="no fork here")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("work", ["registered", "executed", "represented"])
def test_a_forked_worker_goes_on_after_the_parent(tmp_path: Path, work: str, count: int) -> None:
    script = f"""
here = {work}({count})
assert in_workers("fork", {work}, {count}) == [here, here]
assert {work}({count}) == here
print("done")
"""
    assert run(tmp_path, script) == "done\n"


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_a_fresh_worker_gives_the_same(tmp_path: Path, start: str) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    script = f"""
for count in (1, 2):
    here = registered(count)
    assert in_workers("{start}", registered, count) == [here, here]
print("done")
"""
    assert run(tmp_path, script) == "done\n"


@pytest.mark.skipif(not FORKS, reason="no fork here")
def test_a_forked_worker_of_torch_goes_on_with_one_thread(tmp_path: Path) -> None:
    script = """
one, two = deformed(1), deformed(2)
import torch
volume = torch.rand(64, 64, 64)
torch.set_num_threads(2)
(volume @ volume).sum()  # starts OpenMP's pool, whatever the stages above did
for there in in_workers("fork", deformed, 2):
    assert max(abs(a - b) for a, b in zip(there, one)) < 0.1
print("done")
"""
    assert run(tmp_path, script) == "done\n"


@pytest.mark.parametrize("layer", ["default", "workqueue"])
@pytest.mark.parametrize("count", [1, 2])
def test_python_threads_register_at_once(tmp_path: Path, layer: str, count: int) -> None:
    script = f"""
alone, found = registered({count}), []
workers = [threading.Thread(target=lambda: found.append(registered({count}))) for _ in range(4)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
assert found == [alone] * 4, (alone, found)
print("done")
"""
    assert run(tmp_path, script, NUMBA_THREADING_LAYER=layer) == "done\n"


def test_numba_starts_no_pool_and_one_thread_starts_none(tmp_path: Path) -> None:
    script = """
from numba.np.ufunc import parallel
own = lambda: [thread.name for thread in threading.enumerate() if thread.name.startswith("dsir-metric")]
registered(1), executed(1)
print(parallel._is_initialized, own())
registered(2), executed(2)
print(parallel._is_initialized, len(own()) > 0)
"""
    assert run(tmp_path, script) == "False []\nFalse True\n"


@pytest.mark.parametrize("module", [information, kernel, lattice, transforms, levels])
def test_loops_are_compiled_without_the_threads_of_numba(module: object) -> None:
    shared = [f for _, f in inspect.getmembers(module, inspect.isfunction) if "share" in f.__code__.co_names]
    assert shared
    for function in shared:
        dispatchers = [c.cell_contents for c in function.__closure__ or () if hasattr(c.cell_contents, "targetoptions")]
        assert [d.targetoptions.get("parallel", False) for d in dispatchers] == [False]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("block", [1, 8])
def test_parts_cover_the_work_once_in_whole_blocks(monkeypatch: pytest.MonkeyPatch, count: int, block: int) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "5")
    parts: list[tuple[int, int]] = []
    share(lambda first, last: parts.append((first, last)), count, block)
    parts.sort()
    assert [n for part in parts for n in range(*part)] == list(range(count))
    assert all(first % block == 0 for first, _ in parts)
    assert len(parts) == max(1, min(5, -(-count // block)))


def test_an_error_in_a_part_is_raised_when_all_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    for bad in range(3):
        done: list[int] = []

        def work(first: int, last: int, bad: int = bad, done: list[int] = done) -> None:
            if first == bad:
                raise ZeroDivisionError
            done.append(first)

        with pytest.raises(ZeroDivisionError):
            share(work, 3)
        assert sorted(done) == [n for n in range(3) if n != bad]


def test_the_number_of_threads_belongs_to_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "4")
    assert (most_threads(), threads()) == (4, 4)
    with at_most(2):
        assert threads() == 2
        with at_most(99), ThreadPoolExecutor(1) as other:
            assert threads() == 4
            assert other.submit(threads).result() == 4
        with at_most(None):
            assert threads() == 4
        with at_most(0):
            assert threads() == 1
        assert threads() == 2
    monkeypatch.setenv("NUMBA_NUM_THREADS", "none")
    assert most_threads() == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def overlapping(hold: Callable[[], object], read: Callable[[], object]) -> list[object]:
    """What is read when a first holder has come, a second too, the first has left, and both have left."""
    inside, leave, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with hold():  # type: ignore[attr-defined]
            inside.set()
            leave.wait(LIMIT_S)

    holder = threading.Thread(target=first)
    holder.start()
    inside.wait(LIMIT_S)
    seen.append(read())
    with hold():  # type: ignore[attr-defined]
        seen.append(read())
        leave.set()
        holder.join()
        seen.append(read())
    return [*seen, read()]


def test_blas_is_held_to_one_thread_until_the_last_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []

    class Limits:  # OpenBLAS may keep a number for each thread that asked, so that of another one tells nothing
        def __init__(self, count: int, user_api: str) -> None:
            assert user_api == "blas"
            limits.append(count)

        def restore_original_limits(self) -> None:
            limits.pop()

    monkeypatch.setattr(threads_module, "threadpool_limits", Limits)
    assert overlapping(one_for_blas, lambda: list(limits)) == [[1], [1], [1], []]


def test_number_of_torch_threads_is_given_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1) as used:
        assert used == torch.get_num_threads() == before + 1
    with torch_threads(None) as used:
        assert used == torch.get_num_threads() == before
    assert overlapping(lambda: torch_threads(before + 3), torch.get_num_threads)[-1] == before
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == before


def test_torch_says_that_a_forked_process_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RegistrationError, match="spawn"):
        backend.choose_device("cuda")
    assert backend.choose_device("auto") == torch.device("cpu")


def test_a_network_is_opened_again_in_another_process_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = make_pair(16, 12).fixed
    representer = Representer(device="cpu", threads=1)
    expected, before = representer(scan).values, representer.local.network._session  # type: ignore[union-attr]
    assert representer.local.network._session is before  # type: ignore[union-attr]
    monkeypatch.setattr(os, "getpid", lambda: -1)
    np.testing.assert_array_equal(representer(scan).values, expected)
    after = representer.local.network._session  # type: ignore[union-attr]
    assert after is not before
    assert representer.local.network._session is after  # type: ignore[union-attr]


def test_a_network_that_cannot_be_opened_again_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, file = make_pair(16, 12).fixed, tmp_path / "model.onnx"
    file.write_bytes(model_path("default").read_bytes())
    changed, lost = (Representer(file, device="cpu", threads=1) for _ in range(2))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    opened = loading.open_or_fall_back

    class OnAnotherProvider:
        def __init__(self, *arguments: object) -> None:
            self.get_modelmeta = opened(*arguments)[0].get_modelmeta  # type: ignore[arg-type]

        def get_providers(self) -> list[str]:
            return ["another"]

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_card", lambda _: lost.card)
        patch.setattr(loading, "open_or_fall_back", lambda *arguments: (OnAnotherProvider(*arguments), ""))
        with pytest.raises(ConfigError, match="spawn"):
            lost(scan)
    file.write_bytes(b"no model any more")
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        changed(scan)
