"""The process in which an engine works: python -m dsir_metric.bridges.worker ENGINE COMMANDS.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dsir_metric.bridges.registry import engine

__all__ = ["main"]


def main(name: str, file: str) -> None:
    """Run the commands of a JSON file, one after the other, in the current folder."""
    job = json.loads(Path(file).read_text())
    for command in job["commands"]:
        engine(name).bridge.run(command, job["threads"])


if __name__ == "__main__":
    main(*sys.argv[1:])
