"""Fuzz everything that reads a file, a setting or a request: `python benchmarks/fuzz.py --factor 50`.

Runs the tests named test_fuzz_*.py with many times the inputs that CI tries, newly drawn. A finding is a traceback, a
signal, a hang, an error of several lines or a half-written file; Hypothesis prints the smallest input that shows it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--factor", type=float, default=20.0, help="inputs, as a multiple of those in CI")
    parser.add_argument("--only", default="", help="part of the name of the tests to run")
    options = parser.parse_args()
    files = [str(path) for path in sorted(TESTS.glob("test_fuzz_*.py")) if options.only in path.name]
    environment = os.environ | {"DSIR_FUZZ": str(options.factor)}
    return subprocess.run([sys.executable, "-m", "pytest", "-x", *files], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
