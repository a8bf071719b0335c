"""A user of the run time and the command line has no torch, and `--help` is quick."""

import subprocess
import sys

BLOCK = """
import sys
for name in ("torch", "lightning", "onnx", "onnxscript", "itk"):
    sys.modules[name] = None
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_run_time_and_command_line_import_without_torch() -> None:
    answer = run(
        BLOCK
        + """
import importlib, pkgutil
import dsir_metric, dsir_metric_cli
count = 0
for package in (dsir_metric, dsir_metric_cli):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith(("dsir_metric.torch", "dsir_metric.itk")):
            importlib.import_module(module.name)
            count += 1
print(count)
"""
    )
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) > 25


def test_training_without_torch_names_the_extra() -> None:
    for command, extra in (("train", "train"), ("export", "export")):
        answer = run(
            BLOCK + f"from dsir_metric_cli.main import app; app(['{command}', {__file__!r}, '-o', 'y/z.onnx'])"
        )
        assert answer.returncode == 2
        assert answer.stderr.count("\n") == 1
        assert f"pip install 'dsir-metric[{extra}]'" in answer.stderr


def test_help_imports_nothing_heavy() -> None:
    answer = run(
        """
import sys
from dsir_metric_cli.main import app
app(["--help"], standalone_mode=False)
print(sorted({"numpy", "SimpleITK", "numba", "scipy", "rich"} & set(sys.modules)))
"""
    )
    assert answer.stdout.splitlines()[-1] == "[]", answer.stderr
